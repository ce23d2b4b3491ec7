"""Every stage of every development fixture as a real TensorRT-RTX engine, in float, half and symmetric int8."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from rtx import SKIP
from trt_graphs import half, quantize, write

from edgemm.backends.tensorrt import (
    BuildRequest,
    EngineBuild,
    SizeRange,
    build_engine,
    make_profiles,
    observed_sizes,
)
from edgemm.errors import BackendError
from edgemm.partition import Stage, partition
from edgemm.rewrite.pipeline import rewrite
from edgemm.tensors import StateSpec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # recipes/ and benchmarks/ stand beside the package

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(SKIP), reason=SKIP)]

TRAINED = ("imu", "av_digits", "av_gru", "av_attention", "review_image")
FOREIGN = ("riann", "wake_mel", "wake_embedding", "wake_word")
TINY = ("hf_clip", "hf_siglip", "hf_blip", "hf_clap", "hf_lxmert", "hf_whisper")
FLOAT, ALL = (86, 89, 120), (75, 86, 89, 120)
"""Turing has no float32 products in TensorRT-RTX."""


@cache
def stages(name: str) -> tuple[tuple[Stage, ...], dict[str, SizeRange]]:
    """Returns the float stages of a fixture and the sizes that its data has."""
    from benchmarks.fixtures import build
    from edgemm.data import open_samples
    from edgemm.export.model import ModelSource, load_model
    from edgemm.export.torch_onnx import ExportRequest, export_model

    fixture = build(name)
    options = list(zip(fixture.options[::2], fixture.options[1::2], strict=True))
    states = tuple(StateSpec(*value.split("=")) for option, value in options if option == "--state")
    loaded = load_model(ModelSource(fixture.model, dict(options).get("--factory"), False))
    exported = export_model(
        loaded, ExportRequest(states=states), open_samples(str(fixture.calib)), lambda text: None
    )
    inputs = exported.graph.io.feed_inputs
    with np.load(fixture.calib, allow_pickle=False) as data:
        shapes = {i.name: (1, *data[i.name].shape[1:]) for i in inputs}
    sizes = observed_sizes(inputs, [shapes]) | {"batch": SizeRange(1, 2, 4)}
    return partition(rewrite(exported.graph)[0]).stages, sizes


def build(
    stage: Stage, model: ir.Model, sizes: dict[str, SizeRange], folder: Path, gpus: tuple[int, ...]
) -> EngineBuild:
    request = BuildRequest(
        write(model, folder, stage.name),
        folder / f"{stage.name}.engine",
        "tensorrt_rtx",
        stage.name,
        stage.modalities,
        gpus,
        make_profiles(stage.inputs, [sizes]),
    )
    return build_engine(request)


@pytest.mark.parametrize("name", [*TRAINED, *FOREIGN, *TINY])
def test_stages_build_in_every_precision(name: str, tmp_path: Path) -> None:
    found, sizes = stages(name)
    for stage in found:
        quantized = quantize(stage.model, joins=False)
        made = {
            "fp32": build(stage, stage.model, sizes, tmp_path, FLOAT).sidecar,
            "fp16": build(stage, half(stage.model), sizes, tmp_path, ALL).sidecar,
            "int8": build(stage, quantized, sizes, tmp_path, FLOAT).sidecar,
            "int8 and fp16": build(stage, half(quantized), sizes, tmp_path, ALL).sidecar,
        }
        for sidecar in made.values():
            assert [i.name for i in sidecar.inputs] == [i.name for i in stage.inputs]
            assert [o.name for o in sidecar.outputs] == [o.name for o in stage.outputs]
        weighted = sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in stage.model.graph)
        assert made["int8"].precisions.get("int8", 0) >= weighted
        assert "int8" not in made["fp32"].precisions
        if made["int8"].size_limit is not None:
            assert made["int8"].size < made["int8"].size_limit < made["fp32"].size
        if stage.parameters > 10**7:  # kernels weigh nothing beside so many weights
            assert made["fp16"].size < 0.6 * made["fp32"].size
            assert made["int8 and fp16"].size < made["int8"].size < 0.75 * made["fp32"].size


def test_a_model_in_dynamic_integers_is_refused_by_name(tmp_path: Path) -> None:
    found, sizes = stages("voice_filter")
    stage = next(s for s in found if s.role == "fusion head")
    with pytest.raises(BackendError, match=r"\(DynamicQuantizeLinear\): operator .* is not supported .*\d more: "):
        build(stage, stage.model, sizes, tmp_path, FLOAT)
    assert not (tmp_path / f"{stage.name}.engine").exists()
