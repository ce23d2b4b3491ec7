"""What steps for sound and motion become is what TensorRT takes, by the rules that its builder proved."""

import onnx
import onnx_ir as ir
import pytest

from edgemm.backends.targets import find_target
from edgemm.lint import ERROR, lint
from edgemm.preprocess.step import Step
from edgemm.tensors import TensorSpec
from tests.bake.step_graph import bake_alone
from tests.bake.test_emit_audio import CHAINS as SOUND
from tests.bake.test_emit_imu import CHAINS as MOTION


def errors(steps: tuple[Step, ...], dtype: str, shape: tuple[int, ...]) -> list[str]:
    model = ir.from_proto(onnx.load_from_string(bake_alone(steps, TensorSpec("raw", dtype, shape))))
    return [f.rule for f in lint(model, find_target("jetson-orin-agx")) if f.severity == ERROR]


@pytest.mark.parametrize("chain", SOUND)
def test_sound(chain: str) -> None:
    assert errors(SOUND[chain], "int32", (1, 22050)) == []


@pytest.mark.parametrize("chain", MOTION)
def test_motion(chain: str) -> None:
    assert errors(MOTION[chain], "int32", (1, 60, 6)) == []


def test_int16_is_what_it_does_not_take() -> None:
    assert errors(SOUND["av_digits"], "int16", (1, 22050)) == ["tensor-type"]
