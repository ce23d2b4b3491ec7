"""The steps for inertial sensors against scipy and what the units are, and windows against a plain loop."""

import math

import numpy as np
import pytest
import scipy.signal
import scipy.spatial.transform
from hypothesis import given
from hypothesis import strategies as st

from edgemm.errors import DataError, RecipeError
from edgemm.preprocess import output_of, parse, to_json
from edgemm.preprocess.imu import UNITS, Gravity, MountAxes, Transpose, Units, Windows
from edgemm.tensors import TensorSpec

WINDOWS = np.random.default_rng(5).normal(0, 2, (3, 50, 6)).astype(np.float32) + np.float32(3)


@pytest.mark.parametrize(
    ("step", "got", "wanted"),
    [
        (Units("g", "m/s2"), 1.0, 9.80665),
        (Units("mg", "g"), 500.0, 0.5),
        (Units("deg/s", "rad/s"), 180.0, math.pi),
        (Units("rad/s", "mdeg/s"), math.pi, 180_000.0),
        (Units("gauss", "uT"), 0.5, 50.0),
        (Units("deg", "rad"), 90.0, math.pi / 2),
        (Units("g", "m/s2", counts=16384), 16384.0, 9.80665),
    ],
)
def test_units(step: Units, got: float, wanted: float) -> None:
    assert step.apply(np.array([[got]], np.float32))[0, 0] == pytest.approx(wanted, rel=1e-6)


def test_every_unit_converts_to_its_own_kind_and_back() -> None:
    for source, (kind, _) in UNITS.items():
        for target, (other, _) in UNITS.items():
            if kind == other:
                assert Units(source, target).factor * Units(target, source).factor == pytest.approx(1)
            else:
                with pytest.raises(RecipeError, match=f"expected a unit of {kind}"):
                    Units(source, target)


def test_counts_of_a_sensor_are_integers() -> None:
    step, spec = Units("g", "m/s2", counts=16384), TensorSpec("accel", "int16", ("batch", 50, 3))
    made = step.apply(np.array([[[16384, -8192, 0]]], np.int16))
    assert made.dtype == np.float32
    assert np.allclose(made, [[[9.80665, -4.903325, 0]]])
    assert step.output(spec) == TensorSpec("accel", "float32", ("batch", 50, 3))


def test_mount_axes_is_a_rotation() -> None:
    turned = MountAxes(("y", "-x", "z")).apply(WINDOWS)
    rotation = scipy.spatial.transform.Rotation.from_euler("z", -90, degrees=True)
    for sensor in (slice(0, 3), slice(3, 6)):
        wanted = rotation.apply(WINDOWS[..., sensor].reshape(-1, 3)).reshape(3, 50, 3)
        assert np.abs(turned[..., sensor] - wanted).max() < 1e-5


def test_the_mean_is_subtracted() -> None:
    made = Gravity().apply(WINDOWS)
    assert np.abs(made.mean(axis=1)).max() < 1e-5
    assert np.allclose(made - made[:, :1], WINDOWS - WINDOWS[:, :1], atol=1e-5)


def test_the_low_pass_is_scipys_first_order_filter() -> None:
    constant = 0.8
    start = scipy.signal.lfilter_zi([1 - constant], [1, -constant])
    low = np.empty_like(WINDOWS, np.float64)
    for i, j in np.ndindex(3, 6):
        series = WINDOWS[i, :, j].astype(np.float64)
        low[i, :, j], _ = scipy.signal.lfilter([1 - constant], [1, -constant], series, zi=start * series[0])
    step = Gravity(by="low_pass", constant=constant)
    assert np.abs(step.apply(WINDOWS) - (WINDOWS - low)).max() < 1e-5
    assert np.abs(step.filter(50) @ WINDOWS - (WINDOWS - low)).max() < 1e-5


def test_unit_makes_sensors_with_other_gains_agree() -> None:
    made = Gravity(by="unit").apply(WINDOWS)
    for sensor in (slice(0, 3), slice(3, 6)):
        assert np.linalg.norm(made[..., sensor].mean(axis=1), axis=-1) == pytest.approx([1] * 3, abs=1e-4)
    louder = WINDOWS * np.array([5, 5, 5, 0.1, 0.1, 0.1], np.float32)
    assert np.allclose(Gravity(by="unit").apply(louder), made, atol=1e-5)
    assert np.isfinite(Gravity(by="unit").apply(np.zeros((1, 9, 3), np.float32))).all()


def test_transpose() -> None:
    made = Transpose().apply(WINDOWS)
    assert made.shape == (3, 6, 50)
    assert made.flags.c_contiguous
    assert np.array_equal(made.transpose(0, 2, 1), WINDOWS)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([{"mount_axes": {"axes": ["x", "x", "z"]}}], "x, y and z, each once"),
        ([{"mount_axes": {"axes": ["x", "y", "--z"]}}], "x, y and z, each once"),
        ([{"gravity": {"constant": 1}}], "over 0 and less than 1"),
        ([{"transpose": {"order": [1, 0, 2]}}], "0, then each other axis once"),
        ([{"units": {"source": "g", "target": "furlong"}}], "expected m/s2 or g"),
    ],
)
def test_options_are_checked(items: list, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse(items)


def test_json_keeps_every_option() -> None:
    steps = parse(
        [{"units": {"source": "g", "target": "m/s2"}}, {"mount_axes": {"axes": ["-y", "x", "z"]}}, "gravity"]
    )
    assert parse(to_json(steps)) == steps


@pytest.mark.parametrize("step", [MountAxes(("x", "y", "z")), Gravity()])
@pytest.mark.parametrize("shape", [("batch", 50, 4), ("batch", 50, "channels"), ("batch",)])
def test_sensors_with_other_axes_are_refused(step: object, shape: tuple) -> None:
    with pytest.raises(DataError, match="x, y, z of one or more sensors"):
        output_of([step], TensorSpec("imu", "float32", shape))


@given(
    length=st.integers(1, 12),
    stride=st.integers(1, 15),
    pushes=st.lists(st.integers(0, 20), max_size=12),
)
def test_windows_do_not_depend_on_how_samples_arrive(length: int, stride: int, pushes: list[int]) -> None:
    stream = np.arange(sum(pushes) * 2, dtype=np.float32).reshape(-1, 2)
    wanted = [stream[s : s + length] for s in range(0, len(stream) - length + 1, stride)]
    windows, got = Windows(length, stride), []
    for part in np.split(stream, np.cumsum(pushes)[:-1]) if pushes else []:
        got.extend(windows.push(part))
    assert len(got) == len(wanted)
    assert all(np.array_equal(g, w) for g, w in zip(got, wanted, strict=True))


def test_windows_say_what_is_wrong_and_forget() -> None:
    windows = Windows(4, 2)
    assert windows.push(np.zeros((3, 2), np.float32)).shape == (0, 4, 2)
    with pytest.raises(DataError, match=r"got samples of float32 \[3\], those before are float32 \[2\]"):
        windows.push(np.zeros((3, 3), np.float32))
    windows.reset()
    assert windows.push(np.zeros((4, 3), np.float32)).shape == (1, 4, 3)
    with pytest.raises(DataError, match="expected at least 1"):
        Windows(0, 1)
