"""Archives, saved datasets and tables with times."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from make_files import write_csv

from edgemm.data import open_samples
from edgemm.data.readers.align import align
from edgemm.data.readers.description import Align
from edgemm.errors import DataError


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(value):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_archives_are_samples_by_basename(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    words = ["dog", "cat", "dog", "cow"]
    for shard in range(2):
        files = {}
        for i in (2 * shard, 2 * shard + 1):
            files |= {f"a/{i}.png": png(i), f"a/{i}.accel.npy": npy(np.full(3, i, np.float32))}
            files |= {f"a/{i}.cls": words[i].encode(), f"a/{i}.json": json.dumps({"v": i / 2}).encode()}
        if shard:
            del files["a/3.accel.npy"]
        write_tar(folder / f"{shard}.tar", files)
    description = tmp_path / "d.yaml"
    description.write_text(
        "source: set\ninputs: {image: {extension: png, layout: hw}, accel: {extension: accel.npy},"
        " speed: {extension: json, field: v}}\nlabel: {extension: cls}"
    )
    samples = open_samples(str(description))
    assert len(samples) == 3
    row = samples[2]
    assert (row["image"].shape, int(row["image"][0, 0]), float(row["speed"]), int(row["label"])) == (
        (2, 3),
        2,
        1.0,
        1,
    )
    np.testing.assert_array_equal(row["accel"], [2, 2, 2])
    assert samples.coverage["accel"].unmatched == 1
    assert "1 sample lacks a file and is left out; 3 of 4 are used" in samples.notes[0]
    assert samples.locate(2) == f"{folder / '1.tar'}: a/2"


def test_archive_without_a_description(tmp_path):
    files = {}
    for i in range(3):
        files |= {f"{i}.png": png(i), f"{i}.gyro.npy": npy(np.zeros(2)), f"{i}.cls": str(i).encode()}
    write_tar(tmp_path / "a.tar", files)
    samples = open_samples(str(tmp_path / "a.tar"))
    assert set(samples.names) == {"image", "gyro", "label"}
    assert int(samples[2]["label"]) == 2


def test_one_sample_without_a_label_does_not_drop_all_labels(tmp_path):
    files = {}
    for i in range(5):
        files |= {f"{i}.png": png(i), f"{i}.accel.npy": npy(np.zeros(2)), f"{i}.cls": str(i).encode()}
    del files["3.cls"]
    files["0.mask.png"] = png(0)  # too few have it
    write_tar(tmp_path / "a.tar", files)
    samples = open_samples(str(tmp_path / "a.tar"))
    assert set(samples.names) == {"image", "accel", "label"}
    assert [int(row["label"]) for row in samples] == [0, 1, 2, 4]
    assert "1 sample lacks a file and is left out; 4 of 5 are used" in samples.notes[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(600)), "compressed archive"),
        (lambda p: p.write_bytes(b"x" * 2000), "no tar archive"),
        (lambda p: write_tar(p, {"a.txt": b"x"}), "no extension that is known"),
    ],
)
def test_archives_that_are_none(tmp_path, make, message):
    make(tmp_path / "a.tar")
    with pytest.raises(DataError, match=message):
        open_samples(str(tmp_path / "a.tar"))


def save_dataset(folder, table, features=None):
    """Writes what `datasets.Dataset.save_to_disk` writes (checked against datasets 5)."""
    import pyarrow as pa

    folder.mkdir(parents=True)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))


def test_saved_datasets_and_their_splits(tmp_path):
    pa = pytest.importorskip("pyarrow")
    image = pa.array([{"bytes": png(i), "path": None} for i in range(3)])
    vector = pa.array([[float(i)] * 4 for i in range(3)], pa.list_(pa.float32()))
    table = pa.table({"img": image, "accel": vector, "label": pa.array([2, 0, 1], pa.int64())})
    save_dataset(tmp_path / "set/train", table)
    save_dataset(tmp_path / "set/test", table.slice(1))
    (tmp_path / "set/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="several splits"):
        open_samples(str(tmp_path / "set"))
    samples = open_samples(str(tmp_path / "set/train"))
    assert samples.names == ("img", "accel", "label")
    row = samples[2]
    assert (int(row["img"][0, 0, 0]), int(row["label"]), row["accel"].dtype) == (2, 1, np.float32)
    description = tmp_path / "d.yaml"
    description.write_text(
        "source: set\nsplit: test\ninputs: {image: {column: img, scale: 1/255, layout: chw}, accel: }\n"
        "label: {column: label}"
    )
    samples = open_samples(str(description))
    assert (len(samples), samples[0]["image"].shape, samples[0]["image"].dtype) == (2, (1, 2, 3), np.float32)


def ns(*seconds):
    return np.round(np.asarray(seconds) * 1e9).astype(np.int64)


def test_alignment_by_nearest_and_previous():
    times = {"camera": ns(0, 0.1, 0.2, 0.3), "lidar": ns(0.04, 0.11, 0.38)}
    found = align(times, Align("camera", {"": 0.05}, "nearest"))
    assert [found.indices[n].tolist() for n in ("camera", "lidar")] == [[0, 1], [0, 1]]
    assert (found.coverage["lidar"].unmatched, found.coverage["lidar"].used) == (2, 2)
    assert found.coverage["camera"].used == 2
    found = align(times, Align("camera", {"": 0.1}, "previous"))
    assert [found.indices[n].tolist() for n in ("camera", "lidar")] == [[1, 2], [0, 1]]
    found = align(times, Align("camera", {"": 0.05}, "nearest", {"lidar": -0.04}))
    assert found.indices["camera"].tolist() == [0, 1, 3]
    found = align(times, Align("camera", {"lidar": 0.2}, "previous"))
    assert found.indices["camera"].tolist() == [1, 2, 3]
    found = align(times, Align("camera", {"": 0.05}, "nearest"), {"lidar": 2})
    assert found.indices["camera"].tolist() == [1]


def timed(folder):
    write_csv(folder / "camera.csv", [{"time": f"1700000000.{i}00000001", "x": i} for i in range(5)])
    write_csv(folder / "imu.csv", [{"stamp": 1700000000 + k / 50, "a": k, "b": -k} for k in range(16)])
    return folder / "d.yaml"


def test_tables_with_times_are_put_together(tmp_path):
    path = timed(tmp_path)
    path.write_text(
        "source: camera.csv\ninputs:\n  camera: {column: x, dtype: float32}\n"
        "  imu: {table: imu.csv, time: stamp, column: [a, b], window: 4, layout: ct, dtype: float32}\n"
        "align: {to: camera, within: 0.011, method: nearest}"
    )
    samples = open_samples(str(path))
    assert [float(samples[i]["camera"]) for i in range(len(samples))] == [1, 2, 3]
    np.testing.assert_array_equal(samples[0]["imu"], [[2, 3, 4, 5], [-2, -3, -4, -5]])
    assert samples[0]["imu"].dtype == np.float32
    assert any("2 of 5 samples of 'camera' are left out" in note for note in samples.notes)
    assert samples.locate(0).endswith("camera.csv line 3")


@pytest.mark.parametrize(
    ("inputs", "align_text", "message"),
    [
        ("{camera: {column: x}, imu: {table: imu.csv, column: a, time: stmp}}", "{}", "no column of times 'stmp'"),
        ("{camera: {column: x}, imu: {table: im.csv, column: a}}", "{}", "no such file"),
        ("{camera: {column: x}}", "{to: lidar}", "no input 'lidar'"),
        (
            "{camera: {column: x}, imu: {table: imu.csv, column: a, time: a}}",
            "{to: camera}",
            "no sample has every",
        ),
    ],
)
def test_timed_tables_that_do_not_fit(tmp_path, inputs, align_text, message):
    path = timed(tmp_path)
    path.write_text(f"source: camera.csv\ninputs: {inputs}\nalign: {align_text}")
    with pytest.raises(DataError, match=message):
        open_samples(str(path))


def test_times_that_go_backwards_are_named(tmp_path):
    write_csv(tmp_path / "a.csv", [{"time": t, "x": 1} for t in (0.0, 0.2, 0.1)])
    (tmp_path / "d.yaml").write_text("source: a.csv\ninputs: {x: }\nalign: {}")
    with pytest.raises(DataError, match="goes backwards after sample 1"):
        open_samples(str(tmp_path / "d.yaml"))
