"""The nodes of the steps for inertial sensors, run by ONNX Runtime, against the steps in numpy."""

import numpy as np
import pytest

from edgemm.errors import DataError
from edgemm.preprocess import output_of, run
from edgemm.preprocess.audio import FitLength
from edgemm.preprocess.imu import Gravity, MountAxes, Transpose, Units
from edgemm.preprocess.step import Step
from edgemm.tensors import TensorSpec
from tests.bake.step_graph import bake_alone, run_baked

LSB = Units("g", "m/s2", counts=2048)
CHAINS: dict[str, tuple[Step, ...]] = {
    "turned": (LSB, MountAxes(("-y", "x", "z")), Transpose()),
    "mirrored": (LSB, MountAxes(("x", "y", "-z"))),
    "as it is": (LSB, MountAxes(("x", "y", "z"))),
    "without gravity": (LSB, Gravity(), Transpose()),
    "filtered": (LSB, Gravity(by="low_pass", constant=0.9), Transpose()),
    "gravity is 1": (LSB, Gravity(by="unit")),
    "latest samples": (LSB, FitLength(40, "end"), Gravity()),
    "filled": (LSB, FitLength(90, "end"), Gravity(by="low_pass")),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_the_graph_computes_what_the_steps_do(chain: str) -> None:
    steps = CHAINS[chain]
    raw = np.random.default_rng(1).integers(-9000, 9000, (3, 60, 6)).astype(np.int16)
    wanted = run(steps, raw)
    for shape in ((3, 60, 6), ("batch", "time", 6)):
        spec = TensorSpec("imu", "int16", shape)
        if chain == "filtered" and "time" in shape:
            with pytest.raises(DataError, match="windows of a fixed length"):
                bake_alone(steps, spec)
            continue
        assert output_of(steps, TensorSpec("imu", "int16", (3, 60, 6))).shape == wanted.shape
        assert np.abs(run_baked(steps, spec, raw) - wanted).max() <= 1e-5 * np.abs(wanted).max()
