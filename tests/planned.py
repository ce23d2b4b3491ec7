"""Bundles with variants for TensorRT, assembled from small graphs as a conversion would write them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, read_manifest, write_bundle
from edgemm.graph import serialize
from edgemm.runtime._trt.engines import Gpu
from edgemm.tensors import IOSpec, TensorSpec

sys.path.append(str(Path(__file__).parent / "backends"))
from trt_graphs import half, model_of, quantize, random_weights

from edgemm.backends.tensorrt import SizeRange, make_profiles

GRAPHS = {
    "image": (
        "image (float[batch,64] image) => (float[batch,64] seen) { [fc1] p = MatMul(image, w1) seen = Relu(p) }",
        random_weights(w1=(64, 64)),
    ),
    "audio": (
        "audio (float[batch,32] audio) => (float[batch,64] heard) { [fc2] p = MatMul(audio, w2) heard = Tanh(p) }",
        random_weights(w2=(32, 64)),
    ),
    "fusion": (
        """fusion (float[batch,64] seen, float[batch,64] heard) => (float[batch,16] logits) {
            [join] j = Concat<axis=1>(seen, heard) [fc3] logits = MatMul(j, w3)
        }""",
        random_weights(w3=(128, 16)),
    ),
}
STAGES = tuple(GRAPHS)
MODALITIES = {"image": ("image",), "audio": ("audio",), "fusion": ("image", "audio")}
RANGE = {"batch": SizeRange(1, 2, 4)}

ORIN = Gpu("Orin", 87, 8, 8 * 2**30, integrated=True)
RTX_3060 = Gpu("NVIDIA GeForce RTX 3060", 86, 28, 12 * 2**30, integrated=False)
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", 120, 170, 32 * 2**30, integrated=False)

AMPERE = {"rtx-ampere-int8": ("rtx-ampere", "tensorrt_rtx", "int8")}
JETSON = {"jetson-orin-nano-int8": ("jetson-orin-nano", "tensorrt", "int8")}
CPU = {"cpu-fp32": ("cpu", "", "fp32")}


def model(stage: str, precision: str) -> ir.Model:
    """Returns the graph of a stage: fp32, fp16, bf16, int8, or int8 in fp16 ("mixed")."""
    text, weights = GRAPHS[stage]
    made = model_of(text, weights)
    if precision in ("int8", "mixed"):
        made = quantize(made)
    if precision in ("fp16", "mixed"):
        made = half(made)
    if precision == "bf16":
        made = half(made)
        for part in made.graphs():
            for value in [*part.initializers.values(), *(v for n in part for v in n.outputs)]:
                if value.dtype == ir.DataType.FLOAT16:
                    value.type = ir.TensorType(ir.DataType.BFLOAT16)
            for value in part.initializers.values():
                array = value.const_value.numpy()
                if array.dtype.name == "float16":
                    import ml_dtypes

                    value.const_value = ir.tensor(array.astype(ml_dtypes.bfloat16), name=value.name)
            for node in part:
                if node.op_type == "Cast" and node.attributes["to"].as_int() == int(ir.DataType.FLOAT16):
                    node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.BFLOAT16))
    return made


HOLDS = {"int8": ["int8"], "fp16": ["fp16"], "bf16": ["bf16"], "mixed": ["fp16", "int8"], "fp32": []}


def planned_bundle(
    path: Path, variants: Mapping[str, tuple[str, str, str]], more: Mapping[str, bytes | Path] | None = None
) -> Path:
    """Writes a bundle of an image encoder, an audio encoder and a fusion head.

    Args:
        path: Where.
        variants: Name -> target, TensorRT module (empty: ONNX Runtime on the CPU), precision of the graphs.
        more: Further files.
    """
    files: dict[str, bytes | Path] = dict(more or {})
    stages = tuple(stage_entry(name) for name in STAGES)
    made = []
    for name, (target, module, precision) in variants.items():
        entries = []
        for stage in stages:
            file = f"engines/{name}/{stage.name}.onnx"
            files[file] = serialize(model(stage.name, precision))
            entries.append(entry(stage, file, module, precision))
        backend = "tensorrt" if module else "onnxruntime"
        size = sum(len(files[e.file]) for e in entries)  # type: ignore[arg-type]
        made.append(Variant(name, target, backend, precision, "staged", tuple(entries), {precision: 3}, size))
    inputs = tuple(TensorSpec(n, "float32", ("batch", s)) for n, s in (("image", 64), ("audio", 32)))
    outputs = (TensorSpec("logits", "float32", ("batch", 16)),)
    io = IOSpec(inputs, outputs, {"image": "image", "audio": "audio"}, batch="batch")
    write_bundle(path, Manifest("tiny", io, stages, (), tuple(made)), files)
    return path


def stage_entry(name: str) -> StageEntry:
    graph = model(name, "fp32").graph
    ins, outs = (
        tuple(TensorSpec(v.name, "float32", tuple(_dim(d) for d in v.shape)) for v in values)
        for values in (graph.inputs, graph.outputs)
    )
    role = "encoder" if len(MODALITIES[name]) == 1 else "fusion head"
    return StageEntry(name, MODALITIES[name], role, ins, outs, len(list(graph)), 0)


def _dim(dim: Any) -> int | str:
    return dim if isinstance(dim, int) else str(dim.value)


def entry(stage: StageEntry, file: str, module: str, precision: str) -> EngineEntry:
    options = {
        "module": module,
        "profiles": [p.to_json() for p in make_profiles(stage.inputs, [RANGE])],
        "precisions": HOLDS[precision],
        "build": {},
    }
    names = tuple(i.name for i in stage.inputs), tuple(o.name for o in stage.outputs)
    return EngineEntry(
        stage.name, (stage.name,), file, *names, {precision: stage.nodes}, options=options if module else {}
    )


def engines_in(bundle: Path) -> list[str]:
    """Returns the built engines that the manifest lists."""
    return [name for name in read_manifest(bundle).files if name.endswith(".engine")]


def with_build(bundle: Path, **asked: Any) -> Path:
    """Writes the bundle again with options of the builder in every plan."""
    manifest = read_manifest(bundle)
    variants = []
    for variant in manifest.variants:
        engines: Sequence[EngineEntry] = variant.engines
        if variant.backend == "tensorrt":
            engines = [replace(e, options={**e.options, "build": asked}) for e in engines]
        variants.append(replace(variant, engines=tuple(engines)))
    path = bundle.with_suffix(".asked")
    files = {name: bundle / name for name in manifest.files}
    write_bundle(path, replace(manifest, variants=tuple(variants)), files)
    return path
