"""Shapes that contradict themselves, the model or each other."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from edgemm.backends.targets import find_target
from edgemm.lint import Finding, lint
from edgemm.tensors import ShapeRange

MODEL = """<ir_version: 10, opset_import: ["": 17]>
g (float[batch,4] image, float[batch,length] audio, float[3] scale) => (float[batch,4] y, float[batch,length] z) {
    y = Relu(image)  z = Neg(audio)
}"""
FULL = {"image": ((1, 4), (2, 4), (8, 4)), "audio": ((1, 10), (2, 20), (8, 30))}


def check(*profiles: dict[str, tuple[tuple[int, ...], ...]]) -> list[Finding]:
    ranges = [{name: ShapeRange(*given) for name, given in profile.items()} for profile in profiles]
    model = ir.from_proto(onnx.parser.parse_model(MODEL))
    return list(lint(model, find_target("rtx-ampere"), ranges))


def test_ranges_that_fit() -> None:
    assert check(FULL) == []
    assert check(FULL, FULL) == []


def test_nothing_is_said_while_nothing_is_decided() -> None:
    assert lint(ir.from_proto(onnx.parser.parse_model(MODEL)), find_target("rtx-ampere")) == ()


def test_no_profile_at_all() -> None:
    assert [(f.rule, f.tensor) for f in check()] == [("profile-missing", "image"), ("profile-missing", "audio")]


def test_an_input_that_is_left_out() -> None:
    (finding,) = check({"image": FULL["image"]})
    assert (finding.rule, finding.tensor, finding.severity) == ("profile-missing", "audio", "error")
    assert "[batch,length]" in finding.reason
    (finding,) = check(FULL, {"image": FULL["image"]})
    assert "in profile 2 of 2" in finding.reason


def test_an_input_that_there_is_not() -> None:
    (finding,) = check(FULL | {"imge": FULL["image"]})
    assert (finding.rule, finding.tensor) == ("profile-missing", "imge")


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (((8, 10), (2, 20), (8, 30)), "axis 0: 8..2..8 is no range"),
        (((1, 10), (2, 40), (8, 30)), "axis 1: 10..40..30 is no range"),
        (((1,), (2,), (8,)), "has 1, 1 and 1 sizes, the input 2"),
    ],
)
def test_ranges_that_are_none(audio: tuple[tuple[int, ...], ...], reason: str) -> None:
    assert any(f.rule == "profile-range" and reason in f.reason for f in check(FULL | {"audio": audio}))


def test_a_size_that_is_fixed() -> None:
    (finding,) = check(FULL | {"image": ((1, 4), (2, 5), (8, 6))})
    assert (finding.rule, finding.tensor) == ("profile-range", "image")
    assert "axis 1 is 4 and fixed, the profile says 4..5..6" in finding.reason


def test_one_symbol_with_two_ranges() -> None:
    """The builder takes it without a word, which is why this exists."""
    (finding,) = check(FULL | {"audio": ((1, 10), (2, 20), (4, 30))})
    assert (finding.rule, finding.tensor) == ("profile-symbol", "audio")
    assert "'batch' is 1..2..4 here and 1..2..8 in input 'image'" in finding.reason
