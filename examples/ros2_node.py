"""A ROS 2 node around a bundle: topics in, one per modality, results out as `std_msgs/Float32MultiArray`.

    ros2 run ... or: python examples/ros2_node.py digits.edgemm image=/camera/image_raw audio=/audio/samples

A topic's message type is taken from the running system: `sensor_msgs/Image`, `Imu` and `PointCloud2`, and
`audio_common_msgs/AudioData` or `AudioDataStamped` (16-bit PCM), become arrays as the functions below say. Capture
times are those of the message headers. What triggers, what may lack and what stands for it is in the bundle: the
recipe's `stream:` section. Fit `prepare` to what your model was trained on.

The conversions import numpy alone, and take any object with the fields of the message.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

ENCODINGS: Mapping[str, tuple[str, int]] = {
    "mono8": ("u1", 1),
    "mono16": ("u2", 1),
    "rgb8": ("u1", 3),
    "bgr8": ("u1", 3),
    "rgba8": ("u1", 4),
    "bgra8": ("u1", 4),
    "rgb16": ("u2", 3),
    "bgr16": ("u2", 3),
    "rgba16": ("u2", 4),
    "bgra16": ("u2", 4),
}
"""Named encodings of sensor_msgs/image_encodings.hpp -> dtype, channels. `8UC3`, `32FC1` ... are read, too."""

OPENCV: Mapping[str, str] = {
    "8U": "u1",
    "8S": "i1",
    "16U": "u2",
    "16S": "i2",
    "32S": "i4",
    "32F": "f4",
    "64F": "f8",
}

POINT_FIELDS: Mapping[int, str] = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""sensor_msgs/PointField.datatype -> dtype."""


def image_array(message: Any) -> np.ndarray:
    """Returns a `sensor_msgs/Image` as [height, width, channels], in the order red, green, blue, alpha.

    Rows may be longer than their pixels (`step`), values may be big endian (`is_bigendian`).

    Raises:
        ValueError: An encoding that is no plain pixel format (`yuv422`, `bayer_*`), or too few bytes.
    """
    encoding = str(message.encoding)
    kind, channels = ENCODINGS.get(encoding, ("", 0))
    if not kind:
        depth, letter, count = encoding.partition("C")
        kind = OPENCV.get(depth, "") if letter else ""
        channels = int(count) if count.isdigit() else 1
    if not kind:
        raise ValueError(f"image encoding '{encoding}': expected one of {', '.join(ENCODINGS)}, 8UC3, 32FC1, ...")
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    height, width, step = int(message.height), int(message.width), int(message.step)
    row = width * channels * dtype.itemsize
    data = _bytes(message.data)
    if step < row or len(data) < (height - 1) * step + row:
        raise ValueError(f"image {width} x {height} {encoding}: step {step} and {len(data)} bytes are too few")
    shape, strides = (height, width, channels), (step, channels * dtype.itemsize, dtype.itemsize)
    pixels = np.ndarray(shape, dtype, data, strides=strides).astype(dtype.newbyteorder("="))
    if encoding.startswith("bgr"):
        pixels = pixels[..., [2, 1, 0, 3][:channels]]
    return np.ascontiguousarray(pixels)


def imu_array(message: Any) -> np.ndarray:
    """Returns a `sensor_msgs/Imu` as float32 [6]: acceleration in m/s², then angular velocity in rad/s.

    Raises:
        ValueError: The sensor says that it has one of them not (-1 in the covariance).
    """
    parts = []
    for name in ("linear_acceleration", "angular_velocity"):
        if next(iter(getattr(message, f"{name}_covariance", [0.0]))) == -1:
            raise ValueError(f"this IMU gives no {name}")
        vector = getattr(message, name)
        parts += [vector.x, vector.y, vector.z]
    return np.array(parts, np.float32)


def points_array(message: Any, fields: tuple[str, ...] = ("x", "y", "z", "intensity")) -> np.ndarray:
    """Returns a `sensor_msgs/PointCloud2` as float32 [points, fields], without the points that are not finite.

    Args:
        message: Points and rows may be padded (`point_step`, `row_step`), values may be big endian.
        fields: Names; those that the message lacks are left out.

    Raises:
        ValueError: None of the fields, a datatype that there is not, or too few bytes.
    """
    order = ">" if message.is_bigendian else "<"
    found = {f.name: f for f in message.fields if f.name in fields}
    if not found:
        raise ValueError(f"none of {', '.join(fields)} among the fields {[f.name for f in message.fields]}")
    height, width = int(message.height), int(message.width)
    point_step, row_step = int(message.point_step), int(message.row_step)
    data = _bytes(message.data)
    columns = []
    for name in fields:
        if name not in found:
            continue
        field = found[name]
        if field.datatype not in POINT_FIELDS:
            raise ValueError(f"field '{name}': there is no datatype {field.datatype}")
        dtype = np.dtype(POINT_FIELDS[field.datatype]).newbyteorder(order)
        if not height * width:
            columns.append(np.zeros(0, np.float32))
            continue
        end = (height - 1) * row_step + (width - 1) * point_step + field.offset + dtype.itemsize
        if end > len(data):
            raise ValueError(f"{width} x {height} points need {end} bytes, there are {len(data)}")
        values = np.ndarray((height, width), dtype, data, field.offset, (row_step, point_step))
        columns.append(values.astype(np.float32).reshape(-1))
    points = np.stack(columns, axis=1)
    return points[np.isfinite(points).all(axis=1)]


def audio_array(message: Any, channels: int = 1) -> np.ndarray:
    """Returns `audio_common_msgs` bytes, 16-bit little-endian PCM, as float32 [channels, samples] in [-1, 1).

    Raises:
        ValueError: The bytes are no whole number of frames.
    """
    data = _bytes(getattr(message, "audio", message).data)
    if len(data) % (2 * channels):
        raise ValueError(f"{len(data)} bytes are no 16-bit samples of {channels} channels")
    samples = np.frombuffer(data, "<i2").reshape(-1, channels)
    return np.ascontiguousarray(samples.T.astype(np.float32) / 32768)


def stamp_of(message: Any) -> float | None:
    """Returns when a message was captured in seconds, None where it has no header or an empty one."""
    stamp = getattr(getattr(message, "header", None), "stamp", None)
    if stamp is None or (stamp.sec == 0 and stamp.nanosec == 0):
        return None
    return stamp.sec + stamp.nanosec * 1e-9


def _bytes(data: Any) -> bytes:
    """Returns a copy of the bytes of a message, which rclpy gives as an array, a list or bytes."""
    return bytes(data)


CONVERSIONS: Mapping[str, Callable[[Any], np.ndarray]] = {
    "sensor_msgs/msg/Image": image_array,
    "sensor_msgs/msg/Imu": imu_array,
    "sensor_msgs/msg/PointCloud2": points_array,
    "audio_common_msgs/msg/AudioData": audio_array,
    "audio_common_msgs/msg/AudioDataStamped": audio_array,
}


def prepare(array: np.ndarray, shape: tuple[int | str, ...], dtype: str) -> np.ndarray:
    """Returns an array as a model takes it: pixels as [channels, height, width] in [0, 1], of the model's dtype.

    Args:
        array: What a conversion gave.
        shape: Of the model's input without the batch axis.
        dtype: Of the input.
    """
    if array.ndim == 3 and len(shape) == 3 and array.shape[-1] in (1, 3, 4) and shape[0] == array.shape[-1]:
        scale = np.iinfo(array.dtype).max if array.dtype.kind == "u" and np.dtype(dtype).kind == "f" else 1
        array = array.transpose(2, 0, 1) / scale
    if array.ndim > len(shape) and array.shape[0] == 1:  # one channel, of an input that has no axis for it
        array = array[0]
    return np.ascontiguousarray(array, dtype)


def main() -> None:
    """Runs the node until Ctrl-C."""
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    try:
        import rclpy
        from rclpy.qos import qos_profile_sensor_data
        from rosidl_runtime_py.utilities import get_message
        from std_msgs.msg import Float32MultiArray
    except ImportError as error:
        raise SystemExit(f"this example needs ROS 2: {error}. source /opt/ros/DISTRIBUTION/setup.bash") from error
    from edgemm.errors import DataError
    from edgemm.runtime import open_session

    bundle, topics = sys.argv[1], dict(pair.split("=", 1) for pair in sys.argv[2:])
    rclpy.init()
    node = rclpy.create_node("edgemm")

    def now() -> float:
        return node.get_clock().now().nanoseconds * 1e-9

    with open_session(bundle) as session, session.stream(clock=now) as stream:
        publisher = node.create_publisher(Float32MultiArray, "~/result", 10)
        specs = {session.io.modalities[i.name]: i for i in session.io.feed_inputs}
        published = dict(node.get_topic_names_and_types())

        def listen(modality: str, topic: str) -> None:
            kind = published.get(topic, ["sensor_msgs/msg/Image"])[0]
            convert, spec = CONVERSIONS[kind], specs[modality]

            def push(message: Any) -> None:
                try:
                    sample = prepare(convert(message), spec.shape[1:], spec.dtype)
                    stream.push(modality, sample, t=stamp_of(message))
                except (ValueError, DataError) as error:
                    node.get_logger().warning(f"{topic}: {error}", throttle_duration_sec=5.0)

            node.create_subscription(get_message(kind), topic, push, qos_profile_sensor_data)

        def publish(result: Any) -> None:
            first = next(iter(result.outputs.values()))
            publisher.publish(Float32MultiArray(data=np.ravel(first).astype(float).tolist()))
            if result.filled:
                node.get_logger().info(f"without {dict(result.filled)}", throttle_duration_sec=5.0)

        for modality, topic in topics.items():
            listen(modality, topic)
        stream.start(publish, lambda error: node.get_logger().error(str(error)))
        try:
            rclpy.spin(node)
        except KeyboardInterrupt:
            pass
        finally:
            node.destroy_node()


if __name__ == "__main__":
    main()
