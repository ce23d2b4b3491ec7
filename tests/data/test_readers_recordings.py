"""MCAP files and rosbag2 folders, written by their own libraries, with cameras, lidar, inertial data and audio."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgemm.data import open_samples
from edgemm.errors import DataError

pytest.importorskip("mcap")
pytest.importorskip("mcap_ros2")
pytest.importorskip("rosbags")

START = 1_700_000_000_000_000_000
MS = 1_000_000
DESCRIPTION = """
source: {source}
inputs:
  camera: {{topic: /camera, size: [4, 4], scale: 1/255, layout: chw}}
  lidar: {{topic: /lidar, field: [x, y, z], length: 8}}
  imu: {{topic: /imu, window: 4, layout: ct}}
label: {{topic: /label, classes: [road, grass]}}
align: {{to: camera, within: 0.03}}
"""


def store():
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.LATEST)


def messages():
    """Yields topic, type, time of recording and message: camera at 10 Hz, lidar at 5, imu at 100, 0.6 s."""
    types = store().types
    make = {name.rpartition("/")[2]: kind for name, kind in types.items()}
    names = {name.rpartition("/")[2]: name for name in types}

    def header(ns):
        return make["Header"](make["Time"](ns // 10**9, ns % 10**9), "frame")

    def vector(*values):
        return make["Vector3"](*map(float, values))

    for k in range(60):
        at = START + 10 * k * MS
        late = at + 2 * MS  # recorded later than captured
        imu = make["Imu"](
            header(at),
            make["Quaternion"](0.0, 0.0, 0.0, 1.0),
            np.zeros(9),
            vector(k, 0, 1),
            np.zeros(9),
            vector(0, -k, 9.8),
            np.zeros(9),
        )
        yield "/imu", names["Imu"], late, imu
        if k % 10 == 0:
            pixels = np.zeros((4, 4, 3), np.uint8)
            pixels[..., 0] = k  # blue
            image = make["Image"](header(at), 4, 4, "bgr8", 0, 12, pixels.ravel())
            yield "/camera", names["Image"], late, image
            yield "/label", names["String"], late, make["String"]("grass" if k >= 30 else "road")
        if k % 20 == 0:
            points = np.full((3, 4), k, np.float32)
            points[2, 0] = np.nan
            fields = [make["PointField"](n, 4 * i, 7, 1) for i, n in enumerate(("x", "y", "z", "intensity"))]
            cloud = make["PointCloud2"](
                header(at + 20 * MS), 1, 3, fields, False, 16, 48, points.view(np.uint8).ravel(), True
            )
            yield "/lidar", names["PointCloud2"], at + 25 * MS, cloud


def write_rosbag2(folder: Path, plugin: str) -> Path:
    from rosbags.rosbag2 import StoragePlugin, Writer

    types = store()
    with Writer(folder, version=9, storage_plugin=StoragePlugin[plugin]) as writer:
        connections = {}
        for topic, kind, logged, message in messages():
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=types)
            writer.write(connections[topic], logged, types.serialize_cdr(message, kind))
    return folder


def write_mcap(path: Path, **options) -> Path:
    from mcap.writer import Writer

    types = store()
    with path.open("wb") as file:
        writer = Writer(file, **options)
        writer.start()
        channels = {}
        for topic, kind, logged, message in messages():
            if topic not in channels:
                text, _ = types.generate_msgdef(kind, ros_version=2)
                schema = writer.register_schema(kind, "ros2msg", text.encode())
                channels[topic] = writer.register_channel(topic, "cdr", schema)
            data = bytes(types.serialize_cdr(message, kind))
            writer.add_message(channels[topic], logged, data, logged)
        writer.finish()
    return path


def described(path: Path) -> str:
    description = path.parent / "drive.yaml"
    description.write_text(DESCRIPTION.format(source=path.name))
    return str(description)


def check(samples):
    # camera at 0, 0.1, ... 0.5 s; lidar at 0.02, 0.22, 0.42 s: within 0.03 s of every second image; the first
    # image has no four inertial messages up to it
    assert len(samples) == 2
    assert samples.coverage["lidar"].unmatched == 3
    assert samples.coverage["imu"].unmatched == 1
    row = samples[1]
    assert {k: (v.dtype.name, v.shape) for k, v in row.items()} == {
        "camera": ("float32", (3, 4, 4)),
        "lidar": ("float32", (8, 3)),
        "imu": ("float32", (6, 4)),
        "label": ("int64", ()),
    }
    np.testing.assert_allclose(row["camera"][:, 0, 0], [0, 0, 40 / 255], rtol=1e-6)
    np.testing.assert_array_equal(row["lidar"][:, 0], [40, 40, 0, 0, 0, 0, 0, 0])  # the point with NaN is gone
    np.testing.assert_array_equal(row["imu"][1], [-37, -38, -39, -40])
    np.testing.assert_array_equal(row["imu"][3], [37, 38, 39, 40])
    assert int(row["label"]) == 1
    assert any("'lidar' has no match" in note for note in samples.notes)
    assert "topic '/camera' at 1700000000.400 s" in samples.locate(1)
    again = samples[1]
    assert all(np.array_equal(row[k], again[k]) for k in row)


@pytest.mark.parametrize("plugin", ["SQLITE3", "MCAP"])
def test_rosbag2_is_aligned_by_header_stamps(tmp_path, plugin):
    check(open_samples(described(write_rosbag2(tmp_path / "bag", plugin))))


def test_mcap_with_and_without_chunks_is_the_same(tmp_path):
    samples = open_samples(described(write_mcap(tmp_path / "a.mcap", chunk_size=2000)))
    check(samples)
    digest = samples.digest
    plain = write_mcap(tmp_path / "b.mcap", use_chunking=False)
    assert open_samples(described(plain)).digest == digest
    assert open_samples(described(write_rosbag2(tmp_path / "bag", "MCAP"))).digest == digest


def test_a_recording_without_a_description_shows_its_topics(tmp_path):
    path = write_mcap(tmp_path / "a.mcap")
    with pytest.raises(DataError, match="a recording of 4 topics") as error:
        open_samples(str(path))
    assert "camera: {topic: /camera}   # sensor_msgs/msg/Image, 6 messages" in error.value.hint


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (("topic: /camera,", "topic: /camer,"), "no topic '/camer'", "/camera"),
        (("field: [x, y, z]", "field: [x, w]"), "no field 'w'", "intensity"),
        (("[road, grass]", "[grass]"), "'road' is none of the classes", "list every class"),
        (("within: 0.03", "within: 0.001"), "no sample has every modality", "within"),
        (("window: 4", "window: 4, field: orient"), "no member 'orient'", "orientation"),
    ],
)
def test_errors_name_topic_and_time(tmp_path, change, message, hint):
    path = Path(described(write_mcap(tmp_path / "a.mcap")))
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(DataError, match=message) as error:
        open_samples(str(path))[0]
    assert hint in error.value.hint


def test_damaged_recordings(tmp_path):
    path = write_mcap(tmp_path / "a.mcap")
    described(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"a\.mcap"):
        open_samples(str(tmp_path / "drive.yaml"))
    path.write_bytes(b"no recording")
    with pytest.raises(DataError, match="cannot be read"):
        open_samples(str(tmp_path / "drive.yaml"))


def test_json_messages_compressed_images_and_audio(tmp_path):
    import base64
    import io

    from mcap.writer import Writer
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(buffer, "PNG")
    pcm = np.array([0, 16384, -32768], "<i2")
    with (tmp_path / "a.mcap").open("wb") as file:
        writer = Writer(file)
        writer.start()
        channels = {t: writer.register_channel(t, "json", 0) for t in ("/image", "/audio", "/state")}
        for k in range(3):
            at = {"sec": 5, "nsec": k * 10**8}
            contents = {
                "/image": {"timestamp": at, "format": "png", "data": base64.b64encode(buffer.getvalue()).decode()},
                "/audio": {
                    "timestamp": at,
                    "data": base64.b64encode(pcm.tobytes()).decode(),
                    "format": "pcm-s16",
                    "sample_rate": 8000,
                    "number_of_channels": 1,
                },
                "/state": {"pose": {"x": k, "y": 0.5}, "name": "a"},
            }
            for topic, content in contents.items():
                logged = 5 * 10**9 + k * 10**8
                writer.add_message(channels[topic], logged, json.dumps(content).encode(), logged)
        writer.finish()
    (tmp_path / "d.yaml").write_text(
        "source: a.mcap\ninputs: {image: {topic: /image, layout: hw}, audio: {topic: /audio},"
        " state: {topic: /state, field: [pose.x, pose.y]}}\nalign: {to: image, within: 0.001}"
    )
    samples = open_samples(str(tmp_path / "d.yaml"))
    assert len(samples) == 3
    np.testing.assert_array_equal(samples[2]["state"], [2, 0.5])
    np.testing.assert_array_equal(samples[2]["audio"], [0, 0.5, -1])
    assert samples[2]["image"].tolist() == [[7, 7], [7, 7]]


def test_protobuf_messages(tmp_path):
    from google.protobuf.timestamp_pb2 import Timestamp
    from google.protobuf.wrappers_pb2 import FloatValue

    writer = pytest.importorskip("mcap_protobuf.writer")
    with (tmp_path / "a.mcap").open("wb") as file, writer.Writer(file) as out:
        for k in range(3):
            at = 10**9 + k * 10**8
            out.write_message("/speed", FloatValue(value=k / 2), at, at)
            out.write_message("/clock", Timestamp(seconds=k, nanos=7), at, at)
    (tmp_path / "d.yaml").write_text(
        "source: a.mcap\ninputs: {speed: {topic: /speed}, clock: {topic: /clock, field: [seconds, nanos]}}"
    )
    samples = open_samples(str(tmp_path / "d.yaml"))
    assert len(samples) == 3
    assert float(samples[2]["speed"]) == 1.0
    assert samples[2]["clock"].tolist() == [2, 7]


@pytest.mark.slow
def test_a_recording_converts_and_says_what_it_left_out(trained_folder, tmp_path, capsys):
    from rosbags.rosbag2 import StoragePlugin, Writer

    from edgemm.cli import main

    types = store()
    make = {name.rpartition("/")[2]: (name, kind) for name, kind in types.types.items()}
    with np.load(trained_folder / "calib.npz") as arrays:
        data = dict(arrays)
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connections = {}
        for i, label in enumerate(data["label"]):
            at = START + 100 * i * MS
            header = make["Header"][1](make["Time"][1](at // 10**9, at % 10**9), "frame")
            pixels = data["image"][i, 0].view(np.uint8).ravel()
            layout = make["MultiArrayLayout"][1]([], 0)
            sent = {
                "/image": ("Image", make["Image"][1](header, 16, 16, "32FC1", 0, 64, pixels)),
                "/audio": ("Float32MultiArray", make["Float32MultiArray"][1](layout, data["audio"][i].ravel())),
                "/label": ("String", make["String"][1]("abcd"[label])),
            }
            if i % 10 == 9:
                del sent["/audio"]
            for topic, (kind, message) in sent.items():
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, make[kind][0], typestore=types)
                writer.write(connections[topic], at, types.serialize_cdr(message, make[kind][0]))
    (tmp_path / "drive.yaml").write_text(
        "source: bag\ninputs:\n  image: {topic: /image, layout: chw}\n  audio: {topic: /audio, shape: [24, 32]}\n"
        "label: {topic: /label, classes: [a, b, c, d]}\nalign: {to: image, within: 0.02}"
    )
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("convert", str(trained_folder / "model.pt2"), "--calib", str(tmp_path / "drive.yaml")),
                *("--label", "label", "--precision", "fp32", "-o", str(tmp_path / "m.edgemm")),
            ]
        )
    err = capsys.readouterr().err
    assert ended.value.code == 0, err
    assert "12 of 120 samples of 'image' are left out: 'audio' has no match" in err
    samples = open_samples(str(tmp_path / "drive.yaml"))
    np.testing.assert_array_equal(samples[9]["audio"], data["audio"][10])
    np.testing.assert_array_equal(samples[9]["image"], data["image"][10])
