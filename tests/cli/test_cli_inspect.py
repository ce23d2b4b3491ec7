from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgemm.cli._diagram import draw

ROOT = Path(__file__).resolve().parents[2]


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


def test_bundle_as_text(edgemm, fusion_bundle: Path) -> None:
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


def test_bundle_as_json_needs_no_heavy_package(fusion_bundle: Path) -> None:
    """On the device there is no torch, no onnx, no pydantic and no yaml."""
    program = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *_):\n"
        "        blocked = {'torch', 'onnx', 'onnx_ir', 'onnxscript', 'pydantic', 'yaml', 'onnxruntime'}\n"
        "        if name.split('.')[0] in blocked: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from edgemm.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "inspect", str(fusion_bundle), "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
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
