"""`make test-aarch64`: the device side on arm64 Python under emulation, with bundles that were made on x86-64.

What is emulated are the instructions: Debian's arm64 Python, the arm64 wheels of numpy and ONNX Runtime, and the
kernels that ONNX Runtime picks for each processor. Speed says nothing there and is not tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm_board import BOARDS, Board, Emulator, run_cases_here
from arm_cases import JETSON, Case, make_cases
from arm_root import NotReady
from device_side import ROOT, device_files

pytestmark = [pytest.mark.aarch64, pytest.mark.timeout(3600)]

HERE_TAG = "x86-64"
FLOAT_RTOL = 2e-6
"""Of the largest output: some twenty roundings of float32, which other kernels order differently."""
INTEGER_MARGIN_DB = 6.0
"""Integer products are exact on both; what may differ is float: the rounding to a step before an integer kernel,
fp16 arithmetic, and activations of int4 weights, which ONNX Runtime rounds to int8 where the processor has a dot
product. That must stay below half of what quantization itself changes against float."""
AGREEMENT = 0.99
"""Share of samples with the same class."""


@dataclass(frozen=True)
class Made:
    """The emulator, the cases, and what this machine answered."""

    emulator: Emulator
    folder: Path
    cases: dict[str, Case]
    here: dict[str, Any]


@dataclass(frozen=True)
class Ran:
    """A board and what it told; its outputs lie with the cases."""

    board: Board
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Everything that is made once: the arm64 root, the bundles, the answers of this machine."""
    scratch = tmp_path_factory.mktemp("aarch64")
    try:
        emulator = Emulator(ROOT / ".cache" / "aarch64", scratch)
        emulator.run(BOARDS[0], ["/usr/bin/python3", "-c", "pass"])
    except NotReady as missing:
        pytest.exit(str(missing), returncode=1)
    cases = make_cases(scratch / "cases")
    return Made(emulator, scratch / "cases", cases, run_cases_here(emulator.device, scratch / "cases", HERE_TAG))


@pytest.fixture(scope="module", params=BOARDS, ids=lambda b: b.name)
def ran(request: pytest.FixtureRequest, made: Made) -> Ran:
    """All cases, run on one board."""
    return Ran(request.param, made.emulator.run_cases(request.param, made.folder))


def outputs(made: Made, case: str, tag: str) -> dict[str, np.ndarray]:
    """Returns output -> all samples of all calls, in order."""
    with np.load(made.folder / case / f"{tag}.npz") as file:
        calls = dict(file)
    names = sorted({key.partition("/")[2] for key in calls})
    count = len({key.partition("/")[0] for key in calls})
    return {name: np.concatenate([calls[f"{at}/{name}"] for at in range(count)]) for name in names}


def sqnr(reference: np.ndarray, other: np.ndarray) -> float:
    noise = float(((reference.astype(np.float64) - other) ** 2).sum())
    return 10 * np.log10(float((reference.astype(np.float64) ** 2).sum()) / noise) if noise else np.inf


def test_it_is_the_board_that_it_says_it_is(ran: Ran, made: Made) -> None:
    machine, flags = ran.facts["machine"], ran.board.features.split()
    assert machine["arch"] == "aarch64"
    assert machine["cpu"] == ran.board.model
    assert machine["int8"] == ("asimddp" in flags)
    assert machine["jetson"] is None
    assert machine["memory_mb"] > 0
    told = set(ran.facts["instructions"])
    assert told == {name for name in ("asimddp", "asimdhp", "sve", "i8mm", "bf16", "sme") if name in flags}
    for package in ("numpy", "onnxruntime"):
        assert ran.facts[package] == made.here[package]


def test_every_device_module_imports_with_numpy_alone(ran: Ran) -> None:
    names = {".".join(f.with_suffix("").parts).removesuffix(".__init__") for f in device_files()}
    assert set(ran.facts["modules"]) == names - {"edgemm"}
    assert [m for m in ran.facts["foreign"] if m != "numpy" and not m.startswith(("_cy", "cython_"))] == []


def test_device_files_compile_on_the_devices_python(made: Made) -> None:
    command = [
        "/usr/bin/python3",
        "-W",
        "error",
        "-X",
        "pycache_prefix=/tmp",
        "-m",
        "compileall",
        "-q",
        "-f",
        "/device",
    ]
    assert made.emulator.run(BOARDS[0], command) == ""


def test_float_answers_are_those_of_x86(ran: Ran, made: Made) -> None:
    for name in (n for n, case in made.cases.items() if not case.integer):
        expected, got = outputs(made, name, HERE_TAG), outputs(made, name, ran.board.name)
        assert list(got) == list(expected)
        for output, values in expected.items():
            bound = FLOAT_RTOL * np.abs(values).max()
            np.testing.assert_allclose(got[output], values, rtol=0, atol=bound, err_msg=f"{name}: {output}")


def test_integer_answers_differ_by_less_than_half_of_what_quantization_changes(ran: Ran, made: Made) -> None:
    for name, case in made.cases.items():
        if case.integer:
            exact = outputs(made, case.float_twin, HERE_TAG)["logits"]
            expected = outputs(made, name, HERE_TAG)["logits"]
            got = outputs(made, name, ran.board.name)["logits"]
            quantization = sqnr(exact, expected)
            assert np.isfinite(quantization), f"{name} is not quantized"
            assert sqnr(expected, got) >= quantization + INTEGER_MARGIN_DB, name
            assert (got.argmax(-1) == expected.argmax(-1)).mean() >= AGREEMENT, name


def test_accuracy_is_that_of_x86(ran: Ran, made: Made) -> None:
    for name, case in made.cases.items():
        if case.labels is not None:
            tags = (HERE_TAG, ran.board.name)
            here, there = ((outputs(made, name, tag)["logits"].argmax(-1) == case.labels).mean() for tag in tags)
            assert here > 0.7, f"{name} has learnt nothing"
            assert abs(here - there) <= 1 - AGREEMENT, name


def test_onnx_runtime_serves_what_was_planned_for_tensorrt_and_says_why(ran: Ran, made: Made) -> None:
    assert {c["backend"] for c in ran.facts["cases"].values()} == {"onnxruntime"}
    for name in ("jetson-float", "jetson-int8"):
        told = ran.facts["cases"][name]
        assert told["variant"].startswith(JETSON)
        assert any("CUDA" in reason for reason in told["passed_over"]), told


def test_what_needs_tensorrt_or_a_gpu_is_refused_with_what_to_do(ran: Ran) -> None:
    refusals = ran.facts["refusals"]
    assert all(refusals.values()), refusals
    missing = refusals["tensorrt"]
    assert missing["type"] == "MissingExtraError"
    assert "pip install 'edgemm[tensorrt]'" in missing["hint"]
    assert "on a Jetson it comes with JetPack" in missing["hint"]
    assert "--system-site-packages" in missing["hint"]
    assert refusals["tensorrt_rtx"]["type"] == "MissingExtraError"
    assert refusals["openvino session"]["type"] == "MissingExtraError"
    assert refusals["find_gpu"]["type"] == "UnsupportedDeviceError"
    assert all(error["hint"] for error in refusals.values())
