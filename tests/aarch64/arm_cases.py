"""Bundles made on this machine, and the calls that every board answers.

A case is a folder with the bundle or ONNX file, `calls.npz` (arrays `CALL/INPUT`) and `case.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fusion_nets
import numpy as np
import onnx_ir as ir
import torch
from builders import concat_model, random_feed

from benchmarks import fixtures
from edgemm import convert

Feeds = Sequence[Mapping[str, np.ndarray]]
BY_PLAN = ("int8-dynamic", "int8-weight", "int4-weight")
"""Precisions that only a plan can ask for; here for the fusion head's first layer; all else is int8."""

JETSON = "jetson-orin-nano"
DIGITS = 50
"""Held-out pairs of the audio-visual digits that are scored on every board."""


@dataclass(frozen=True)
class Case:
    """What was made and how its answers are judged.

    Attributes:
        integer: Whether it computes in int8: float ones must agree to the rounding of float32.
        float_twin: The float case over the same model and calls, of an integer one.
        labels: Class of every sample, or None.
        backend: What is to run it where there is neither OpenVINO nor a GPU.
    """

    integer: bool = False
    float_twin: str = ""
    labels: np.ndarray | None = None
    backend: str = "onnxruntime"


def make_cases(folder: Path) -> dict[str, Case]:
    """Writes every case to `folder/NAME` and returns what they are."""
    trained = fusion_nets.save(_new(folder.parent / "trained"))
    cases = _image_audio(folder, trained) | _recurrent(folder) | _digits(folder)
    place = _new(folder / "bare-onnx")
    graph = concat_model()
    ir.save(graph.model, place / "model.onnx")
    _write(place, "model.onnx", [random_feed(graph, batch=b, seed=b) for b in (1, 3)])
    return cases | {"bare-onnx": Case()}


def _image_audio(folder: Path, trained: Path) -> dict[str, Case]:
    """The image + audio model of the tests: float and every kind of integers, for CPU and Jetson."""
    data = {"calib": str(trained / "calib.npz"), "eval": str(trained / "eval.npz"), "label": "label"}
    recipe = {"model": {"path": trained / "model.pt2"}, "data": data, "evaluate": {"max_drop": 1.0}}
    recipe |= {"engine": "onnxruntime"}
    with np.load(trained / "eval.npz") as file:
        samples = {name: file[name] for name in ("image", "audio", "label")}
    feeds = _batches(samples, ("image", "audio"), (1, 7, 64))

    def make(name: str, **sections: Any) -> Path:
        place = _new(folder / name)
        convert(recipe | sections, place / "model.edgemm")
        _write(place, "model.edgemm", feeds, [t for t in [sections.get("target")] if t])
        return place / "model.edgemm"

    make("float-staged", quantize={"precision": "fp32"}, layout="staged")
    make("float-whole", quantize={"precision": "fp32"}, layout="whole")
    int8 = make("int8-staged", quantize={"precision": "int8"}, layout="staged")
    plan = json.loads(next((int8 / "plans").glob("*.json")).read_text())
    for precision in BY_PLAN:
        decisions = [
            d | {"precision": precision if d["node"] == "node_linear" else "int8"} for d in plan["decisions"]
        ]
        file = trained / f"{precision}.json"
        file.write_text(json.dumps(plan | {"decisions": decisions}))
        make(precision, quantize={"precision": "int8", "plan": file}, layout="whole")
    make("jetson-float", quantize={"precision": "fp32"}, target=JETSON)
    make("jetson-int8", quantize={"precision": "int8"}, target=JETSON)
    integers = ("int8-staged", *BY_PLAN, "jetson-int8")
    labels = np.concatenate([samples["label"][:n] for n in (1, 7, 64)])
    floats = dict.fromkeys(("float-staged", "float-whole", "jetson-float"), Case(labels=labels))
    return floats | dict.fromkeys(integers, Case(True, "float-staged", labels))


def _recurrent(folder: Path) -> dict[str, Case]:
    """A GRU cell: its state goes from call to call, so that what differs could add up."""
    torch.manual_seed(1)
    example = (torch.zeros(2, 6), torch.zeros(2, 8), torch.zeros(2, 16))
    program = fusion_nets.export(fusion_nets.Recurrent(), example, "motion", "image", "h")
    file = folder.parent / "recurrent.pt2"
    torch.export.save(program, file)
    place = _new(folder / "state")
    recipe = {
        "model": {"path": file},
        "quantize": {"precision": "fp32"},
        "layout": "whole",
        "engine": "onnxruntime",
    }
    convert(recipe, place / "model.edgemm")
    random = np.random.default_rng(5)
    shapes = {"motion": (1, 6), "image": (1, 8)}
    feeds = [{n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(30)]
    _write(place, "model.edgemm", feeds)
    return {"state": Case()}


def _digits(folder: Path) -> dict[str, Case]:
    """The model of `make demo`, trained on real data, and pairs that it has not seen."""
    fixture = fixtures.build("av_digits")
    data = {"calib": str(fixture.calib), "eval": str(fixture.eval), "label": "label"}
    recipe = {"model": {"path": fixture.model}, "data": data, "layout": "staged", "engine": "onnxruntime"}
    with np.load(fixture.eval) as file:
        samples = {name: file[name][:DIGITS] for name in ("image", "audio", "label")}
    feeds = [{n: samples[n][at : at + 25] for n in ("image", "audio")} for at in range(0, DIGITS, 25)]
    for name, precision in (("digits-float", "fp32"), ("digits-int8", "int8")):
        place = _new(folder / name)
        convert(recipe | {"quantize": {"precision": precision}}, place / "model.edgemm")
        _write(place, "model.edgemm", feeds)
    labels = samples["label"]
    return {"digits-float": Case(labels=labels), "digits-int8": Case(True, "digits-float", labels)}


def _batches(samples: Mapping[str, np.ndarray], inputs: Sequence[str], sizes: Sequence[int]) -> Feeds:
    return [{n: samples[n][:size] for n in inputs} for size in sizes]


def _write(place: Path, path: str, feeds: Feeds, not_here: Sequence[str] = ()) -> None:
    np.savez(place / "calls.npz", **{f"{at}/{n}": a for at, feed in enumerate(feeds) for n, a in feed.items()})
    case = {"path": path, "inputs": list(feeds[0]), "calls": len(feeds), "not_here": list(not_here)}
    (place / "case.json").write_text(json.dumps(case))


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
