from __future__ import annotations

import resource
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest

from edgemm.data import Subset, batches, describe, digest_of, make_feed, open_samples, split, split_in_order
from edgemm.errors import DataError
from edgemm.tensors import IOSpec, StateSpec, TensorSpec

IO = IOSpec(
    inputs=(TensorSpec("accel", "float32", ("batch", 3, 8)), TensorSpec("gyro", "float32", ("batch", 3, 8))),
    outputs=(TensorSpec("logits", "float32", ("batch", 4)),),
    modalities={"accel": "accel", "gyro": "gyro"},
)


def arrays(n=10, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "accel": rng.normal(size=(n, 3, 8)).astype(np.float32),
        "gyro": rng.normal(size=(n, 3, 8)).astype(np.float32),
        "label": rng.integers(0, 4, n),
    }


def equal(samples, expected):
    assert len(samples) == len(next(iter(expected.values())))
    for i in range(len(samples)):
        row = samples[i]
        assert set(row) == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(row[name], values[i])
            assert row[name].flags.aligned
            assert row[name].dtype.isnative


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_rows_are_those_that_were_saved(tmp_path, save):
    data = arrays()
    data["accel"] = np.asfortranarray(data["accel"])
    data["gyro"] = data["gyro"].astype(">f4")
    save(tmp_path / "calib.npz", **data)
    samples = open_samples(str(tmp_path / "calib.npz"))
    assert samples.names == ("accel", "gyro", "label")
    equal(samples, data)
    assert samples[0]["gyro"].dtype == np.float32


def test_equal_content_has_one_digest_whatever_the_source(tmp_path):
    data = arrays()
    np.savez(tmp_path / "a.npz", **data)
    np.savez_compressed(tmp_path / "b.npz", **data)
    folder = tmp_path / "shards"
    folder.mkdir()
    np.savez(folder / "0.npz", **{k: v[:6] for k, v in data.items()})
    np.savez(folder / "1.npz", **{k: v[6:] for k, v in data.items()})
    (tmp_path / "reader.py").write_text(
        textwrap.dedent(f"""
        import numpy as np
        class Reader:
            def __init__(self): self.data = np.load({str(tmp_path / "a.npz")!r})
            def __len__(self): return len(self.data["label"])
            def __getitem__(self, i): return {{k: self.data[k][i] for k in self.data}}
        """)
    )
    sources = [tmp_path / "a.npz", tmp_path / "b.npz", folder, f"{tmp_path}/reader.py:Reader"]
    opened = [open_samples(str(s)) for s in sources]
    assert len({s.digest for s in opened}) == 1
    assert digest_of(Subset(opened[0], tuple(range(9, -1, -1)))) != opened[0].digest
    for samples in opened:
        equal(samples, data)


def test_shards_may_differ_in_time_but_not_in_names(tmp_path):
    for name, steps in (("b", 5), ("a", 3)):
        np.savez(tmp_path / f"{name}.npz", x=np.full((2, steps), ord(name), np.float32))
    samples = open_samples(str(tmp_path))
    assert [samples[i]["x"].shape for i in range(4)] == [(3,), (3,), (5,), (5,)]
    assert samples.locate(3).endswith("b.npz row 1")
    assert describe(samples)["x"].varying == (0,)
    np.savez(tmp_path / "c.npz", y=np.zeros(2, np.float32))
    with pytest.raises(DataError, match=r"(?m)c\.npz: has arrays y, but .*a\.npz has x\.$"):
        open_samples(str(tmp_path))


def test_a_large_file_is_not_read_into_memory(tmp_path):
    path = tmp_path / "large.npz"
    values = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (400, 256, 1024))
    values.flush()
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
    samples = open_samples(str(path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(0, 400, 40):
        assert samples[i]["x"].shape == (256, 1024)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 100  # MB; the file has 400


def error_of(path):
    with pytest.raises(DataError) as caught:
        open_samples(str(path))
    return str(caught.value).replace(str(path.parent) + "/", ""), caught.value.hint


def test_unequal_lengths_name_both_arrays(tmp_path):
    np.savez(tmp_path / "calib.npz", gyro=np.zeros((7, 3)), accel=np.zeros((200, 3)), label=np.zeros(200))
    message, hint = error_of(tmp_path / "calib.npz")
    assert message == "calib.npz: array 'gyro' has 7 samples, 'accel' has 200."
    assert "--calib my_reader.py:Reader" in hint


def test_object_arrays_are_refused_with_a_remedy(tmp_path):
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros(2), np.zeros(3)]
    np.savez(tmp_path / "calib.npz", x=ragged)
    message, hint = error_of(tmp_path / "calib.npz")
    assert message == "calib.npz: array 'x' holds Python objects, which are pickled and are not loaded."
    assert "numpy.stack" in hint


def test_truncated_file(tmp_path):
    np.savez(tmp_path / "calib.npz", x=np.zeros((50, 3)))
    whole = (tmp_path / "calib.npz").read_bytes()
    for keep in (len(whole) // 2, len(whole) - 10, 4):
        (tmp_path / "calib.npz").write_bytes(whole[:keep])
        message, hint = error_of(tmp_path / "calib.npz")
        assert message.startswith("calib.npz: the file is truncated or damaged (")
        assert hint == "copy or write it again"


def test_a_compressed_member_that_is_damaged_is_an_error_when_read(tmp_path):
    path = tmp_path / "calib.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(5000,)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="truncated or damaged"):
        open_samples(str(path))[0]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "the file is empty"),
        (b"\x80\x04\x95", "found a pickle, which is not opened because loading one runs code"),
        (b"\x93NUMPY\x01\x00", "found a single .npy array without a name"),
        (b"a,b\n1,2\n", "found bytes b'a,b\\n1,2\\n'"),
    ],
)
def test_another_kind_of_file_says_what_was_found(tmp_path, content, found):
    (tmp_path / "calib.npz").write_bytes(content)
    message, _ = error_of(tmp_path / "calib.npz")
    assert message == f"calib.npz: {found}, expected an .npz file."


def test_missing_file_and_empty_folder(tmp_path):
    np.savez(tmp_path / "calib.npz", x=np.zeros(2))
    message, hint = error_of(tmp_path / "calb.npz")
    assert (message, hint) == ("calb.npz: no such file.", "did you mean 'calib.npz'?")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.csv").touch()
    assert error_of(tmp_path / "folder")[0] == "folder: no data in it that is known (found: a.csv)."


def test_scalars_and_foreign_members(tmp_path):
    np.savez(tmp_path / "calib.npz", x=np.zeros(2), rate=np.float32(8000))
    assert error_of(tmp_path / "calib.npz")[0] == (
        "calib.npz: array 'rate' is a single value and has no sample axis."
    )
    with zipfile.ZipFile(tmp_path / "model.npz", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80")
    assert (
        error_of(tmp_path / "model.npz")[0] == "model.npz: a zip with 'archive/data.pkl' in it, which is no array."
    )


READERS = """
import numpy as np
class Good:
    def __len__(self): return 3
    def __getitem__(self, i): return {"x": np.full(2, i, np.float32), "label": i}
class Stream:
    def __len__(self): return 3
    def __iter__(self):
        for i in range(3):
            yield {"x": np.full(2, i, np.float32), "label": i}
class Once:
    def __init__(self): self.rows = iter([{"x": np.zeros(2)}] * 3)
    def __len__(self): return 3
    def __iter__(self): return self.rows
class Fails:
    def __len__(self): return 3
    def __getitem__(self, i):
        return {"x": self.missing[i]}
class NoLength:
    def __getitem__(self, i): return {}
class Tuples:
    def __len__(self): return 1
    def __getitem__(self, i): return (1, 2)
"""


@pytest.fixture
def readers(tmp_path):
    path = tmp_path / "reader.py"
    path.write_text(READERS)
    return path


@pytest.mark.parametrize("name", ["Good", "Stream"])
def test_readers_give_random_access(readers, name):
    samples = open_samples(f"{readers}:{name}")
    assert samples.names == ("x", "label")
    for i in (2, 0, 1, 1):
        assert samples[i]["label"] == i
        np.testing.assert_array_equal(samples[i]["x"], np.full(2, i))


def test_a_stream_that_cannot_be_rewound_says_so(readers):
    samples = open_samples(f"{readers}:Once")
    samples[2]
    with pytest.raises(DataError, match="__iter__ gave 0 samples, __len__ says 3") as caught:
        samples[0]
    assert "cannot be rewound" in caught.value.hint


def test_errors_in_the_readers_code_name_the_line(readers):
    line = READERS.splitlines().index('        return {"x": self.missing[i]}') + 1
    with pytest.raises(DataError, match=rf"reader\.py:{line}: __getitem__\(1\) failed: AttributeError"):
        open_samples(f"{readers}:Fails")[1]


def test_reader_that_is_no_reader(readers):
    with pytest.raises(DataError, match=r"NoLength has no __len__"):
        open_samples(f"{readers}:NoLength")
    with pytest.raises(DataError, match=r"reader\.py:Tuples row 0: got tuple, expected a dict of arrays"):
        open_samples(f"{readers}:Tuples")[0]
    with pytest.raises(DataError, match=r"no 'Goood' in it") as caught:
        open_samples(f"{readers}:Goood")
    assert caught.value.hint == "did you mean 'Good'?"
    with pytest.raises(DataError, match="a reader needs the name of its class"):
        open_samples(str(readers))
    readers.write_text("import numpy\nclass R(:\n")
    with pytest.raises(DataError, match=r"reader\.py:2: loading the file failed: SyntaxError"):
        open_samples(f"{readers}:R")


def test_split_is_disjoint_deterministic_and_in_order():
    source = [{"x": np.float32(i)} for i in range(101)]
    parts = split(source, {"calibration": 0.3, "search": 0.3, "evaluation": 0.4}, seed=7)
    again = split(source, {"calibration": 0.3, "search": 0.3, "evaluation": 0.4}, seed=7)
    assert {k: v.indices for k, v in parts.items()} == {k: v.indices for k, v in again.items()}
    flat = [i for p in parts.values() for i in p.indices]
    assert sorted(flat) == list(range(101))
    assert [len(p) for p in parts.values()] == [30, 30, 41]
    assert all(list(p.indices) == sorted(p.indices) for p in parts.values())
    other = split(source, {"calibration": 0.3, "search": 0.3, "evaluation": 0.4}, seed=8)
    assert other["search"].indices != parts["search"].indices
    in_order = split_in_order(source, {"a": 0.5, "b": 0.5})
    assert in_order["b"].indices == tuple(range(50, 101))


def test_split_refuses_what_cannot_be_disjoint():
    with pytest.raises(DataError, match="2 samples cannot be split into 3 disjoint parts"):
        split([{}, {}], {"a": 0.3, "b": 0.3, "c": 0.4}, seed=0)
    with pytest.raises(DataError, match="add up to at most 1"):
        split([{}, {}], {"a": 0.7, "b": 0.7}, seed=0)
    assert {k: len(v) for k, v in split([{}] * 3, {"a": 0.01, "b": 0.98, "c": 0.01}, seed=0).items()} == {
        "a": 1,
        "b": 1,
        "c": 1,
    }


def test_batches_end_where_shapes_change():
    rows = [{"accel": np.zeros((3, t), np.float32), "gyro": np.zeros((3, t), np.float32)} for t in (8, 8, 8, 9, 9)]
    assert [len(r) for r, _ in batches(IO, rows, 2)] == [2, 1, 2]
    assert [f["accel"].shape for _, f in batches(IO, rows, 4)] == [(3, 3, 8), (2, 3, 9)]


def test_inputs_without_a_batch_axis_go_one_by_one():
    io = IOSpec(
        (TensorSpec("image", "float32", ("batch", 2)), TensorSpec("camera", "float32", (3, 3))),
        (),
        {"image": "image", "camera": "camera"},
    )
    rows = [{"image": np.zeros(2, np.float32), "camera": np.eye(3, dtype=np.float32)}] * 2
    feeds = [f for _, f in batches(io, rows, 8)]
    assert [f["camera"].shape for f in feeds] == [(3, 3), (3, 3)]
    assert [f["image"].shape for f in feeds] == [(1, 2), (1, 2)]


def test_make_feed_leaves_states_out():
    io = IOSpec(
        (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("h", "float32", ("batch", 4))),
        (TensorSpec("h_out", "float32", ("batch", 4)),),
        {"x": "x"},
        states=(StateSpec("h", "h_out"),),
    )
    assert set(make_feed(io, [{"x": np.zeros(2, np.float32), "h": np.ones(4, np.float32)}])) == {"x"}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reading_a_large_file_leaves_little_of_it_in_memory(tmp_path, save):
    code = (
        "import sys, re\nfrom edgemm.data import open_samples\n"
        "def resident(): return int(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "samples = open_samples(sys.argv[1]); samples[0]; before = resident()\n"
        "for _ in range(2):\n    for i in range(len(samples)): samples[i]\n"
        "print(resident() - before)\n"
    )
    path = tmp_path / "large.npz"
    save(path, image=np.ones((100, 1_000_000), np.float32))
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100e6  # of 400 MB
