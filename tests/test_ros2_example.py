"""The message conversions of the ROS 2 example, without ROS: plain objects with the fields of the messages."""

from __future__ import annotations

import array
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "ros2_node.py"


@pytest.fixture(scope="module")
def node() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ros2_node", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def image(pixels: np.ndarray, encoding: str, *, padding: int = 0, big: bool = False) -> Any:
    """A sensor_msgs/Image of [height, width, channels] with `padding` bytes behind each row."""
    height, width, _ = pixels.shape
    rows = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<"))
    data = b"".join(row.tobytes() + b"\xaa" * padding for row in rows)
    step = len(data) // height
    fields = {"height": height, "width": width, "encoding": encoding, "is_bigendian": int(big), "step": step}
    return SimpleNamespace(data=array.array("B", data), **fields)


def some(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    limit = 250 if np.dtype(dtype).itemsize == 1 else 30_000
    return (np.arange(np.prod(shape)) * 7919 % limit).reshape(shape).astype(dtype)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("encoding", "dtype", "order"),
    [
        ("rgb8", "u1", (0, 1, 2)),
        ("bgr8", "u1", (2, 1, 0)),
        ("bgra8", "u1", (2, 1, 0, 3)),
        ("rgba16", "u2", (0, 1, 2, 3)),
        ("mono8", "u1", (0,)),
        ("mono16", "u2", (0,)),
        ("16UC1", "u2", (0,)),
        ("32FC1", "f4", (0,)),
        ("64FC2", "f8", (0, 1)),
        ("8UC", "u1", (0,)),
    ],
)
def test_images_of_every_layout(
    node: ModuleType, encoding: str, dtype: str, order: tuple[int, ...], big: bool, padding: int
) -> None:
    pixels = some((3, 4, len(order)), dtype)
    got = node.image_array(image(pixels, encoding, padding=padding, big=big))
    assert got.dtype == np.dtype(dtype)
    assert got.dtype.isnative
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, pixels[..., list(order)])


def test_images_that_are_not_read(node: ModuleType) -> None:
    with pytest.raises(ValueError, match="image encoding 'bayer_rggb8': expected one of mono8"):
        node.image_array(image(some((2, 2, 1), "u1"), "bayer_rggb8"))
    short = image(some((2, 2, 3), "u1"), "rgb8")
    short.data = short.data[:-1]
    with pytest.raises(ValueError, match="image 2 x 2 rgb8: step 6 and 11 bytes are too few"):
        node.image_array(short)
    short.step = 5
    with pytest.raises(ValueError, match="step 5"):
        node.image_array(short)


def test_a_message_that_is_used_again_does_not_change_the_array(node: ModuleType) -> None:
    message = image(some((2, 2, 3), "u1"), "rgb8")
    got = node.image_array(message)
    before = got.copy()
    message.data[0] = 99
    np.testing.assert_array_equal(got, before)


def vector(x: float, y: float, z: float) -> Any:
    return SimpleNamespace(x=x, y=y, z=z)


def test_imu(node: ModuleType) -> None:
    message = SimpleNamespace(
        linear_acceleration=vector(0.1, 0.2, 9.81),
        linear_acceleration_covariance=[0.0] * 9,
        angular_velocity=vector(1, 2, 3),
        angular_velocity_covariance=[0.0] * 9,
    )
    got = node.imu_array(message)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [0.1, 0.2, 9.81, 1, 2, 3], rtol=1e-6)
    message.angular_velocity_covariance = [-1.0] + [0.0] * 8
    with pytest.raises(ValueError, match="no angular_velocity"):
        node.imu_array(message)


def cloud(*, big: bool) -> Any:
    """Two rows of three points, 3 bytes behind each point and 4 behind each row; y before x, a ring between."""
    order = ">" if big else "<"
    parts = [("y", order + "f4"), ("ring", order + "u2"), ("x", order + "f4"), ("intensity", "u1")]
    names, formats = zip(*parts, strict=True)
    dtype = np.dtype({"names": names, "formats": formats, "offsets": (0, 4, 6, 10), "itemsize": 14})
    points = np.zeros((2, 3), dtype)
    points["x"], points["y"] = np.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3) * 10
    points["ring"], points["intensity"] = 7, np.arange(200, 206).reshape(2, 3)
    points["x"][1, 0] = np.nan
    data = b"".join(row.tobytes() + b"\xff" * 4 for row in points)
    kinds = {"y": 7, "ring": 4, "x": 7, "intensity": 2}
    fields = [SimpleNamespace(name=n, offset=dtype.fields[n][1], datatype=kinds[n], count=1) for n in names]
    layout = {"height": 2, "width": 3, "point_step": 14, "row_step": 46, "is_bigendian": big}
    return SimpleNamespace(data=data, fields=fields, **layout)


@pytest.mark.parametrize("big", [False, True])
def test_point_clouds(node: ModuleType, big: bool) -> None:
    message = cloud(big=big)
    got = node.points_array(message)
    expected = [[i, 10 * i, 200 + i] for i in (0, 1, 2, 4, 5)]  # 3 is not finite
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(node.points_array(message, ("ring",)), np.full((6, 1), 7))
    with pytest.raises(ValueError, match="none of velocity among the fields"):
        node.points_array(message, ("velocity",))
    message.data = message.data[:-10]
    with pytest.raises(ValueError, match="3 x 2 points need 84 bytes, there are 82"):
        node.points_array(message)


def test_an_empty_cloud_has_no_points(node: ModuleType) -> None:
    message = cloud(big=False)
    message.width, message.row_step, message.data = 0, 0, b""
    assert node.points_array(message).shape == (0, 3)


def test_audio(node: ModuleType) -> None:
    pcm = np.array([[0, 1], [16384, -32768], [32767, -1]], "<i2")
    message = SimpleNamespace(data=array.array("B", pcm.tobytes()))
    np.testing.assert_allclose(node.audio_array(message, 2), pcm.T / 32768)
    stamped = SimpleNamespace(audio=message)
    assert node.audio_array(stamped).shape == (1, 6)
    message.data = message.data[:-1]
    with pytest.raises(ValueError, match="11 bytes are no 16-bit samples"):
        node.audio_array(message)


def test_stamps(node: ModuleType) -> None:
    stamp = SimpleNamespace(sec=12, nanosec=500_000_000)
    assert node.stamp_of(SimpleNamespace(header=SimpleNamespace(stamp=stamp))) == 12.5
    stamp.sec = stamp.nanosec = 0
    assert node.stamp_of(SimpleNamespace(header=SimpleNamespace(stamp=stamp))) is None
    assert node.stamp_of(SimpleNamespace(data=b"")) is None


def test_arrays_become_what_a_model_takes(node: ModuleType) -> None:
    pixels = some((4, 5, 3), "u1")
    got = node.prepare(pixels, (3, 4, 5), "float32")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, pixels.transpose(2, 0, 1) / 255, rtol=1e-6)
    assert node.prepare(np.zeros((1, 8), np.float32), (8,), "float32").shape == (8,)
    assert node.prepare(np.zeros(6, np.float32), (6,), "float32").shape == (6,)


def test_without_ros_it_says_what_it_needs() -> None:
    command = [sys.executable, str(EXAMPLE), "x.edgemm", "image=/camera"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "this example needs ROS 2: No module named 'rclpy'" in done.stderr
