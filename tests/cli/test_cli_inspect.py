from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import LENGTHS, STREAM, with_host_steps

from edgemm.bundle import Manifest, Schedule, Variant, read_manifest
from edgemm.cli._diagram import draw
from edgemm.cli.inspect import _variants
from edgemm.preprocess import parse
from edgemm.preprocess.front import InputSteps
from edgemm.runtime import open_session
from edgemm.tensors import BATCH, IOSpec, TensorSpec


def stage(name: str, inputs: list[str], outputs: list[str], role: str = "encoder") -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "nodes": 14,
        "parameters": 98_000,
        "inputs": [{"name": i} for i in inputs],
        "outputs": [{"name": o} for o in outputs],
    }


def graph(inputs: str, stages: list[dict[str, Any]], joins: str = "", outputs: str = "logits") -> dict[str, Any]:
    pairs = [text.split(":") for text in inputs.split()]
    return {
        "inputs": [{"name": p[0], "modality": p[-1]} for p in pairs],
        "outputs": [{"name": name} for name in outputs.split()],
        "states": [],
        "stages": stages,
        "joins": [dict(zip(("stage", "op"), text.split(":"), strict=True)) for text in joins.split()],
    }


TWO = graph(
    "image audio",
    [
        stage("image", ["image"], ["f"]),
        stage("audio", ["audio"], ["g"]),
        stage("fusion", ["f", "g"], ["logits"], "fusion head"),
    ],
    "fusion:Concat",
)
NESTED = graph(
    "a b c",
    [
        stage("a", ["a"], ["fa"]),
        stage("b", ["b"], ["fb"]),
        stage("a+b", ["fa", "fb"], ["fab"], "fusion head"),
        stage("c", ["c"], ["fc"]),
        stage("a+b+c", ["fab", "fc"], ["logits"], "fusion head"),
    ],
    "a+b:Concat a+b+c:Add",
)


def text(lines: list[str]) -> str:
    return "\n" + "\n".join(lines) + "\n"


def test_two_encoders_and_a_head() -> None:
    assert text(draw(TWO, 120)) == (
        """
image ─▶ image encoder (14 nodes, 98 k) ─┐
                                         ├─ Concat ─▶ fusion head (14 nodes, 98 k) ─▶ logits
audio ─▶ audio encoder (14 nodes, 98 k) ─┘
"""
    )


def test_a_narrow_terminal_drops_the_counts() -> None:
    lines = draw(NESTED, 90)
    assert max(map(len, lines)) <= 90
    assert text(lines) == (
        """
a ─▶ a encoder ─┐
                ├─ Concat ─▶ a+b fusion head ─┐
b ─▶ b encoder ─┘                             │
                                              ├─ Add ─▶ a+b+c fusion head ─▶ logits
c ─▶ c encoder ───────────────────────────────┘
"""
    )


def test_three_branches_join_in_the_middle() -> None:
    report = graph(
        "ids:text mask:text pixels:image flag",
        [
            stage("text", ["ids", "mask"], ["t"]),
            stage("image", ["pixels"], ["i"]),
            stage("fusion", ["t", "i", "flag"], ["logits"], "fusion head"),
        ],
        "fusion:Concat fusion:MatMul fusion:Add",
    )
    assert text(draw(report, 120)) == (
        """
ids, mask ─▶ text encoder (14 nodes, 98 k) ─┐
pixels ─▶ image encoder (14 nodes, 98 k) ───┼─ Concat, MatMul, … ─▶ fusion head (14 nodes, 98 k) ─▶ logits
flag ───────────────────────────────────────┘
"""
    )


def test_a_graph_that_is_no_tree_becomes_a_list() -> None:
    report = graph(
        "camera lidar",
        [
            stage("lidar", ["lidar"], ["depth"]),
            stage("camera", ["camera"], ["f"]),
            stage("near", ["f", "depth"], ["near"], "fusion head"),
            stage("far", ["f", "depth"], ["far"], "fusion head"),
        ],
        "near:Mul",
        "near far",
    )
    assert text(draw(report, 120)) == (
        """
lidar ─▶ lidar encoder (14 nodes, 98 k)
camera ─▶ camera encoder (14 nodes, 98 k)
camera encoder, lidar encoder ─ Mul ─▶ near fusion head (14 nodes, 98 k) ─▶ near
camera encoder, lidar encoder ─▶ far fusion head (14 nodes, 98 k) ─▶ far
"""
    )


def test_bundle_as_text(wide_terminal: None, edgemm, fusion_bundle: Path) -> None:
    result = edgemm("inspect", fusion_bundle)
    assert result.code == 0, result.err
    out = result.out
    assert "digits.edgemm   schema 1 · made 2026-11-22 by edgemm 0.1.0 · target cpu" in out
    assert "4 files, verified" in out
    assert "image ─▶ image encoder (1 node, 12) ─┐" in out
    assert "├─ Concat ─▶ fusion head (1 node, 0) ─▶ logits" in out
    assert re.search(r"input +image +float32 \[batch,4\] +image +an input of its own", out)
    assert "join     Concat of image and audio in fusion, node 'concat'" in out
    assert "parity   max-abs 2.3e-05, cosine 0.999999 to the source over 50 samples" in out
    assert "accuracy 0.975 → 0.975 (500 samples) · 0.159 ms (0.43 × float)" in out
    assert "refused  cpu-int8: 1.41 × slower than float" in out
    assert "\x1b" not in out


def test_inputs_are_what_is_to_be_fed(wide_terminal: None, edgemm, raw_bundle: Path) -> None:
    with open_session(raw_bundle) as session:
        fed = session.io.to_json()
    report = edgemm("inspect", raw_bundle, "--json").json
    assert {key: report[key] for key in fed} == fed
    assert [i["name"] for i in report["inputs"]] == ["camera", "audio"]
    out = edgemm("inspect", raw_bundle).out
    assert re.search(r"input +camera +uint8 \[batch,4\] +image +an input of its own", out)
    assert not re.search(r"input +image", out)
    assert "camera ─▶ image encoder (1 node, 12) ─┐" in out


def test_raw_text_is_shown_without_the_package_that_reads_it(
    edgemm, fusion_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    steps = parse([{"tokenize": {"file": "preprocess/tokenizer.json", "length": 4}}])
    way = InputSteps("image", TensorSpec("text", "str", (BATCH,)), steps)
    path = with_host_steps(fusion_bundle, way, {"preprocess/tokenizer.json": b"{}"})
    result = edgemm("inspect", path, "--json")
    assert result.code == 0, result.err
    assert [(i["name"], i["dtype"]) for i in result.json["inputs"]] == [("text", "str"), ("audio", "float32")]


def test_inputs_of_one_array_are_drawn_once() -> None:
    report = graph("text:words", [stage("words", ["ids", "mask"], ["logits"])])
    lines = draw(report | {"made_of": {"ids": "text", "mask": "text"}}, 120)
    assert lines == ["text ─▶ words encoder (14 nodes, 98 k) ─▶ logits"]


def test_schedule_and_second_layout_are_shown(wide_terminal: None, edgemm, fusion_bundle: Path) -> None:
    manifest = read_manifest(fusion_bundle)
    shipped = manifest.shipped[0]
    stages = replace(shipped, name="stages", schedule=Schedule("parallel", "spin"))
    whole = replace(shipped, engines=shipped.engines[-1:], reuse="stages")
    lines = "\n".join(_variants({"variants": [as_shown(v) for v in (whole, stages)]}))
    assert "with stages for what is unchanged" in lines
    assert "engines parallel, spinning" in lines
    assert "sequential" not in edgemm("inspect", fusion_bundle).out


def as_shown(variant: Variant) -> dict[str, Any]:
    (data,) = Manifest("m", IOSpec((), (), {}), (), (), (variant,)).to_json()["variants"]
    return data | {"latency": None, "lint": None}


def test_bundle_as_json_on_a_device(edgemm_on_device, fusion_bundle: Path) -> None:
    """On the device there is no torch, no onnx, no pydantic and no yaml."""
    result = edgemm_on_device("inspect", fusion_bundle, "--json")
    assert result.code == 0, result.err
    report = result.json
    assert report["kind"] == "bundle"
    assert [i["modality"] for i in report["inputs"]] == ["image", "audio"]
    assert [s["precision"]["cpu-fp32"] for s in report["stages"]] == [{"fp32": 1}, {"fp32": 1}]
    assert report["joins"][0]["kind"] == "concat"
    assert report["variants"][0]["latency"]["ratio"] == 0.426
    assert report["variants"][1]["refused"] == "1.41 × slower than float"
    assert report["parity"]["samples"] == 50


def test_states_are_shown(edgemm, stream_bundle: Path) -> None:
    out = edgemm("inspect", stream_bundle).out
    assert re.search(r"input +h .*state, from output 'h_out'", out)
    assert re.search(r"output +h_out .*state, for input 'h'", out)
    assert "accuracy not measured · latency not measured" in out


def test_damaged_bundle_is_refused(edgemm, fusion_bundle: Path) -> None:
    (fusion_bundle / "engines" / "stowaway").write_text("x")
    result = edgemm("inspect", fusion_bundle)
    assert result.code == 1
    assert "stowaway" in result.err


def test_folder_that_is_no_bundle(edgemm, tmp_path: Path) -> None:
    result = edgemm("inspect", tmp_path)
    assert result.code == 1
    assert "not a bundle" in result.err


@pytest.mark.parametrize("name", ["none.edgemm", "none.pt2"])
def test_missing_file(edgemm, tmp_path: Path, name: str) -> None:
    result = edgemm("inspect", tmp_path / name)
    assert result.code == 1
    assert name in result.err


def test_model_on_a_device_names_the_extra(edgemm_on_device, onnx_file) -> None:
    result = edgemm_on_device("inspect", onnx_file(LENGTHS))
    assert result.code == 1
    assert "needed to inspect a model" in result.err
    assert "pip install 'edgemm[convert]'" in result.err


def test_onnx_file_with_a_declared_state(edgemm, onnx_file) -> None:
    result = edgemm("inspect", onnx_file(STREAM), "--state", "h=h_out", "--json")
    assert result.code == 0, result.err
    report = result.json
    assert report["kind"] == "onnx"
    assert report["states"] == [{"input": "h", "output": "h_out"}]
    assert {d["symbol"] for d in report["dynamic"]["dynamic"]} == {"batch"}
    text = edgemm("inspect", onnx_file(STREAM), "--state", "h=h_out").out
    assert "ONNX model · opset 20" in text


@pytest.mark.parametrize("text", ["h", "h=", "=h_out"])
def test_malformed_state(edgemm, onnx_file, text: str) -> None:
    result = edgemm("inspect", onnx_file(STREAM), "--state", text)
    assert result.code == 2
    assert "expected IN=OUT" in result.err


def test_data_is_no_model(edgemm, npz) -> None:
    result = edgemm("inspect", npz(x=np.ones(2)))
    assert result.code == 1
    assert "not a model" in result.err
