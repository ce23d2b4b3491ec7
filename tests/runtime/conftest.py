"""Bundles built from ONNX text, with real engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from edgemm.backends import get_backend
from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, write_bundle
from edgemm.tensors import IOSpec, StateSpec, TensorSpec

HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'

IMAGE = """image (float[batch,4] image) => (float[batch,3] image_features)
<float[4,3] w = {1,2,3, 4,5,6, 7,8,9, 1,1,1}> { p = MatMul(image, w)  image_features = Tanh(p) }"""
AUDIO = """audio (float[batch,2,2] audio) => (float[batch,2] audio_features, float[batch] audio_energy)
{ audio_features = ReduceSum<keepdims=0>(audio, axis)
  square = Mul(audio, audio)  audio_energy = ReduceSum<keepdims=0>(square, both) }"""
AUDIO = AUDIO.replace("\n{", "\n<int64[1] axis = {2}, int64[2] both = {1,2}> {")
FUSION = """fusion (float[batch,3] image_features, float[batch,2] audio_features) => (float[batch,5] logits)
{ joined = Concat<axis=1>(image_features, audio_features)  logits = Sigmoid(joined) }"""

MakeBundle = Callable[..., Path]


def specs_of(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(v.name, v.dtype.numpy().name, tuple(d if isinstance(d, int) else d.value for d in v.shape))
        for v in values
    )


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    def make(
        engines: Mapping[str, str],
        outputs: tuple[str, ...] = (),
        states: Mapping[str, str] | None = None,
        batch: int | str | None = "batch",
        backend: str = "onnxruntime",
    ) -> Path:
        """Writes a bundle with one engine per entry of `engines` (name -> graph text)."""
        models = {name: ir.from_onnx_text(HEADER + text) for name, text in engines.items()}
        taken = {i.name: i for m in models.values() for i in specs_of(m.graph.inputs)}
        given = {o.name: o for m in models.values() for o in specs_of(m.graph.outputs)}
        io = IOSpec(
            inputs=tuple(spec for name, spec in taken.items() if name not in given),
            outputs=tuple(s for n, s in given.items() if n in outputs or (not outputs and n not in taken)),
            modalities={n: n for n in taken if n not in given and n not in (states or {})},
            states=tuple(StateSpec(i, o) for i, o in (states or {}).items()),
            batch=batch,
        )
        files, stages, entries = {}, [], []
        for name, model in models.items():
            builder = get_backend(backend)
            file = f"engines/cpu-fp32/{name}{builder.suffix}"
            files[file] = builder.build(model, "cpu", tmp_path / f"engine{builder.suffix}").file.read_bytes()
            ins, outs = specs_of(model.graph.inputs), specs_of(model.graph.outputs)
            stages.append(StageEntry(name, (name,), "encoder", ins, outs, len(list(model.graph)), 0))
            entry_io = tuple(i.name for i in ins), tuple(o.name for o in outs)
            entries.append(EngineEntry(name, (name,), file, *entry_io, {"fp32": 1}))
        size = sum(map(len, files.values()))
        variants = (
            Variant("cpu-fp32", "cpu", backend, "fp32", "staged", tuple(entries), {"fp32": 3}, size),
            Variant("cpu-int8", "cpu", backend, "int8", "staged", (), {}, 0, refused="1.4 x slower than float"),
        )
        path = tmp_path / f"{'-'.join(engines)}.edgemm"
        write_bundle(path, Manifest("tiny", io, tuple(stages), (), variants), files)
        return path

    return make


@pytest.fixture
def fusion_bundle(make_bundle: MakeBundle) -> Path:
    """Two encoders and a fusion head; the outputs are logits[batch,5] and audio_energy[batch]."""
    return make_bundle({"image": IMAGE, "audio": AUDIO, "fusion": FUSION})
