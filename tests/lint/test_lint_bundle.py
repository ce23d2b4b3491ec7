"""Findings in a bundle name the variant, the stage and its modalities; ranges of the model reach its stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from edgemm.backends.targets import find_target
from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant, write_bundle
from edgemm.errors import BundleError, ModelError
from edgemm.lint.bundle import lint_bundle, lint_file
from edgemm.tensors import IOSpec, ShapeRange, TensorSpec

HEAD = '<ir_version: 10, opset_import: ["": 17, "com.microsoft": 1]>\n'
IMAGE = "image (float[batch,4] image) => (float[batch,4] features) { features = Relu(image) }"
AUDIO = "audio (float[batch,time] audio) => (int64[2,hits] loud) { loud = NonZero(audio) }"
FUSION = """fusion (float[batch,4] features, int64[2,hits] loud) => (float[batch,4] y, int64[2,hits] z) {
    y = Neg(features)  z = Identity(loud) }"""
FIXED = "audio (float[batch,time] audio) => (int64[2,hits] loud) { l = Shape(audio)  loud = Expand(l, l) }"


def onnx_bytes(text: str) -> bytes:
    return onnx.parser.parse_model(HEAD + text).SerializeToString(deterministic=True)


def tensor(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


IMAGE_IN, AUDIO_IN = tensor("image", "float32", "batch", 4), tensor("audio", "float32", "batch", "time")
FEATURES, LOUD = tensor("features", "float32", "batch", 4), tensor("loud", "int64", 2, "hits")
Y, Z = tensor("y", "float32", "batch", 4), tensor("z", "int64", 2, "hits")


def variant(name: str, target: str, precision: str, audio: str) -> tuple[Variant, dict[str, bytes]]:
    stages = {
        "image": (IMAGE, ("image",), ("features",)),
        "audio": (audio, ("audio",), ("loud",)),
        "fusion": (FUSION, ("features", "loud"), ("y", "z")),
    }
    files = {f"engines/{name}/{stage}.onnx": onnx_bytes(text) for stage, (text, _, _) in stages.items()}
    engines = tuple(
        EngineEntry(stage, (stage,), f"engines/{name}/{stage}.onnx", inputs, outputs, {precision: 1})
        for stage, (_, inputs, outputs) in stages.items()
    )
    size = sum(map(len, files.values()))
    return Variant(name, target, "onnxruntime", precision, "staged", engines, {precision: 3}, size), files


def write(path: Path, *made: tuple[Variant, Mapping[str, bytes]]) -> Path:
    manifest = Manifest(
        name="fusion",
        io=IOSpec((IMAGE_IN, AUDIO_IN), (Y, Z), {"image": "camera", "audio": "microphone"}),
        stages=(
            StageEntry("image", ("camera",), "encoder", (IMAGE_IN,), (FEATURES,), 1, 0),
            StageEntry("audio", ("microphone",), "encoder", (AUDIO_IN,), (LOUD,), 1, 0),
            StageEntry("fusion", ("camera", "microphone"), "fusion head", (FEATURES, LOUD), (Y, Z), 2, 0),
        ),
        joins=(),
        variants=tuple(v for v, _ in made),
    )
    write_bundle(path, manifest, {name: data for _, files in made for name, data in files.items()})
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "fusion.edgemm", variant("cpu-fp32", "cpu", "fp32", AUDIO))


RTX = find_target("rtx-ampere")


def test_a_finding_names_its_stage_and_modality(bundle: Path) -> None:
    report = lint_bundle(bundle, RTX)
    (finding,) = report.findings
    assert (finding.rule, finding.variant) == ("operator", "cpu-fp32")
    assert (finding.stage, finding.modalities) == (("audio",), ("microphone",))
    assert (report.graphs, report.nodes) == (3, 4)


def test_float_graphs_stand_in_where_no_variant_is_made_for_the_target(tmp_path: Path) -> None:
    made = variant("cpu-int8", "cpu", "int8", FIXED), variant("cpu-fp32", "cpu", "fp32", AUDIO)
    report = lint_bundle(write(tmp_path / "two.edgemm", *made), RTX)
    assert report.variants == ("cpu-fp32",)
    assert report.notes == ("no variant is made for rtx-ampere; the float graphs were checked (cpu-fp32)",)
    report = lint_bundle(write(tmp_path / "one.edgemm", made[0]), RTX)
    assert report.variants == ("cpu-int8",)
    assert "the graphs of cpu-int8, made for cpu, were checked" in report.notes[0]


def test_variants_of_the_target_are_checked_and_others_not(tmp_path: Path) -> None:
    made = (
        variant("cpu-fp32", "cpu", "fp32", AUDIO),
        variant("rtx-fp16", "rtx-ampere", "fp16", FIXED),
        variant("rtx-int8", "rtx-ampere", "int8", FIXED),
    )
    report = lint_bundle(write(tmp_path / "three.edgemm", *made), RTX)
    assert report.variants == ("rtx-fp16", "rtx-int8")
    assert (report.graphs, report.findings, report.notes) == (6, (), ())


def test_what_is_put_in_for_onnx_runtime_is_not_held_against_the_model(tmp_path: Path) -> None:
    text = """audio (float[batch,time] audio) => (int64[2,hits] loud) {
        a = com.microsoft.MultiHeadAttention<num_heads = 1>(audio, audio, audio)
        b = com.microsoft.FusedGemm(a, a)  c = Shape(b)  loud = Expand(c, c) }"""
    made = variant("cpu-fp32", "cpu", "fp32", text)
    report = lint_bundle(write(tmp_path / "attention.edgemm", made), RTX)
    assert {(f.severity, f.op) for f in report.findings} == {
        ("note", "com.microsoft.MultiHeadAttention"),
        ("error", "com.microsoft.FusedGemm"),
    }
    own, files = variant("rtx", "rtx-ampere", "fp16", text)
    report = lint_bundle(write(tmp_path / "own.edgemm", (own, files)), RTX)
    assert {f.severity for f in report.findings} == {"error"}


def test_an_engine_that_is_no_onnx_file_is_said(tmp_path: Path) -> None:
    made, files = variant("rtx", "rtx-ampere", "fp16", FIXED)
    files = {name.replace("audio.onnx", "audio.plan"): data for name, data in files.items()}
    engines = tuple(
        EngineEntry(e.name, e.stages, e.file.replace("audio.onnx", "audio.plan"), e.inputs, e.outputs, e.decisions)
        for e in made.engines
    )
    made = Variant("rtx", "rtx-ampere", "onnxruntime", "fp16", "staged", engines, {"fp16": 3}, made.size_bytes)
    report = lint_bundle(write(tmp_path / "plan.edgemm", (made, files)), RTX)
    assert report.graphs == 2
    assert report.notes == ("'audio' of rtx is no ONNX file and was not checked",)


class TestShapes:
    """What is given for the model's inputs is the range of each symbol, in every stage."""

    def report(self, path: Path, **given: tuple[tuple[int, ...], ...]):
        profile = {name: ShapeRange(*ranges) for name, ranges in given.items()}
        return [f for f in lint_bundle(path, RTX, profile).findings if f.rule.startswith("profile-")]

    def test_a_symbol_that_only_stages_have(self, bundle: Path) -> None:
        given = {"image": ((1, 4), (2, 4), (8, 4)), "audio": ((1, 9), (2, 9), (8, 9))}
        (finding,) = self.report(bundle, **given)
        assert (finding.tensor, finding.stage) == ("loud", ("fusion",))
        assert self.report(bundle, **given, loud=((2, 0), (2, 9), (2, 72))) == []

    def test_an_input_that_is_left_out_is_said_once(self, bundle: Path) -> None:
        findings = self.report(bundle, image=((1, 4), (2, 4), (8, 4)), loud=((2, 0), (2, 9), (2, 72)))
        assert [(f.rule, f.tensor, f.stage) for f in findings] == [("profile-missing", "audio", ())]

    def test_ranges_that_contradict_each_other(self, bundle: Path) -> None:
        findings = self.report(
            bundle,
            image=((1, 4), (2, 4), (8, 4)),
            audio=((1, 9), (2, 9), (4, 9)),
            loud=((2, 0), (2, 9), (2, 72)),
        )
        assert [(f.rule, f.tensor) for f in findings] == [("profile-symbol", "audio")]

    def test_a_name_that_nothing_has(self, bundle: Path) -> None:
        given = {"image": ((1, 4), (2, 4), (8, 4)), "audio": ((1, 9), (2, 9), (8, 9))}
        findings = self.report(bundle, **given, loud=((2, 0), (2, 9), (2, 72)), lood=((2, 0), (2, 9), (2, 72)))
        assert [f.tensor for f in findings] == ["lood"]


def test_a_changed_bundle_is_refused(bundle: Path) -> None:
    (bundle / "engines/cpu-fp32/audio.onnx").write_bytes(onnx_bytes(FIXED))
    with pytest.raises(BundleError, match=r"audio\.onnx"):
        lint_bundle(bundle, RTX)


class TestFiles:
    def test_an_onnx_file(self, tmp_path: Path) -> None:
        path = tmp_path / "audio.onnx"
        path.write_bytes(onnx_bytes(AUDIO))
        report = lint_file(path, RTX)
        assert [f.rule for f in report.findings] == ["operator"]
        assert report.to_json()["counts"] == {"error": 1, "warning": 0, "note": 0}

    def test_no_file_and_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no such file"):
            lint_file(tmp_path / "none.onnx", RTX)
        for content in (b"", b"not protobuf at all", b"\x08\x07"):
            path = tmp_path / "broken.onnx"
            path.write_bytes(content)
            with pytest.raises(ModelError, match="is no ONNX model"):
                lint_file(path, RTX)

    def test_weights_outside_of_the_folder(self, tmp_path: Path) -> None:
        from builders import write_model_with_outside_weight

        (tmp_path / "secret").write_bytes(np.zeros(2, np.float32).tobytes())
        write_model_with_outside_weight(tmp_path / "model" / "model.onnx")
        with pytest.raises(ModelError, match="'w' lies outside of the model's folder"):
            lint_file(tmp_path / "model" / "model.onnx", RTX)

    def test_weights_in_a_file_beside_it(self, tmp_path: Path) -> None:
        model = onnx.parser.parse_model(
            HEAD
            + "g (float[batch,4] x) => (float[batch,4] y) { q = QuantizeLinear(x, s)  y = DequantizeLinear(q, s) }"
        )
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "s"))
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        assert {f.rule for f in lint_file(tmp_path / "m.onnx", RTX).findings} == {"scale", "quantized-type"}

    def test_targets_that_no_rule_is_for(self, tmp_path: Path) -> None:
        path = tmp_path / "audio.onnx"
        path.write_bytes(onnx_bytes(AUDIO))
        report = lint_file(path, find_target("cpu"))
        assert report.findings == ()
        assert report.notes == ("no TensorRT reads graphs for cpu: no rule applies to it",)
        assert "shows on the device only" in lint_file(path, find_target("jetson-thor")).notes[0]
