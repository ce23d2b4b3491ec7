from __future__ import annotations

import numpy as np
import pytest

from edgemm.data import check_samples, open_samples, with_blanks
from edgemm.errors import DataError
from edgemm.tensors import IOSpec, StateSpec, TensorSpec

IO = IOSpec(
    inputs=(
        TensorSpec("image", "float32", ("batch", 1, 4, 4)),
        TensorSpec("audio", "float32", ("batch", "time", 5)),
        TensorSpec("ids", "int64", ("batch", "time")),
    ),
    outputs=(TensorSpec("logits", "float32", ("batch", 3)),),
    modalities={"image": "image", "audio": "audio", "ids": "text"},
)


def arrays(n=6, time=7):
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(n, 1, 4, 4)).astype(np.float32),
        "audio": rng.normal(size=(n, time, 5)).astype(np.float32),
        "ids": rng.integers(0, 9, (n, time)),
        "label": np.arange(n) % 3,
    }


@pytest.fixture
def check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(data, io=IO, label="label"):
        np.savez("calib.npz", **data)
        return check_samples(open_samples("calib.npz"), io, label=label)

    return run


def refused(check, data, **options):
    with pytest.raises(DataError) as caught:
        check(data, **options)
    return str(caught.value), caught.value.hint


def test_good_data_passes(check):
    report = check(arrays())
    assert (report.samples, report.labels, report.warnings) == (6, ("label",), ())
    assert report.arrays["audio"].largest == (7, 5)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "Inf")])
def test_nan_names_array_and_row(check, value, kind):
    data = arrays()
    data["audio"][4, 2, 1] = value
    message, hint = refused(check, data)
    assert message == f"calib.npz row 4: array 'audio' has {kind} (1 of 35 values)."
    assert "before saving" in hint


def test_wrong_dtype_says_how_to_convert(check):
    data = arrays()
    data["image"] = data["image"].astype(np.float64)
    assert refused(check, data) == (
        "calib.npz: array 'image' is float64, the model takes float32.",
        "before saving, convert it: image.astype('float32')",
    )
    data["image"] = np.zeros((6, 1, 4, 4), np.uint8)
    assert "/ 255" in refused(check, data)[1]


def test_missing_input(check):
    data = arrays()
    data["audoi"] = data.pop("audio")
    message, hint = refused(check, data)
    assert message == "calib.npz: no array 'audio' (arrays: image, ids, label, audoi)."
    assert hint == "did you mean 'audoi'?"


def test_wrong_shape(check):
    data = arrays()
    data["image"] = data["image"][:, :, :3]
    message, hint = refused(check, data)
    assert message == "calib.npz row 0: array 'image' has a row of shape (1, 3, 4), the model takes [1,4,4]."
    assert "axis 1 of a row must be 4" in hint
    data["image"] = data["image"][:, 0]
    message, hint = refused(check, data)
    assert message == "calib.npz row 0: array 'image' has a row of shape (3, 4), the model takes rows of [1,4,4]."
    assert hint == "the array needs the shape [samples,1,4,4]; got one of 3 axes"


def test_symbolic_axes_must_agree(check):
    data = arrays()
    data["ids"] = data["ids"][:, :5]
    assert refused(check, data)[0] == "calib.npz row 0: array 'ids' has 5 along 'time', 'audio' has 7."


def test_label_missing_or_an_input(check):
    assert refused(check, arrays(), label="lable") == (
        "calib.npz: label 'lable' is not there (labels: label).",
        "did you mean 'label'?",
    )
    assert "is an input of the model, not a label" in refused(check, arrays(), label="image")[0]


def test_no_samples(check):
    message, hint = refused(check, arrays(0))
    assert message == "calib.npz: no samples."
    assert hint == "calibration needs at least one row in every array"


def test_constant_columns_are_warnings(check):
    io = IOSpec((TensorSpec("tab", "float32", ("batch", 8)),), (), {"tab": "tab"})
    data = {"tab": np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32), "label": np.full(5, 2)}
    data["tab"][:, [1, 4, 5, 6]] = 3.0
    report = check(data, io)
    assert report.warnings == (
        "calib.npz: array 'tab' is constant in column 1, 4–6 over 5 samples.",
        "calib.npz: array 'label' is 2 in all 5 samples.",
    )


def test_a_dead_channel_is_a_constant_column(check):
    io = IOSpec((TensorSpec("imu", "float32", ("batch", 3, 20)),), (), {"imu": "imu"})
    data = {"imu": np.random.default_rng(0).normal(size=(5, 3, 20)).astype(np.float32)}
    data["imu"][:, 2] = 0
    assert check(data, io, None).warnings == ("calib.npz: array 'imu' is constant in column 2 over 5 samples.",)
    data["imu"][:] = 0
    assert check(data, io, None).warnings == ("calib.npz: array 'imu' never changes in 5 samples.",)


def test_no_batch_axis_takes_whole_inputs(check):
    io = IOSpec((TensorSpec("x", "float32", (1, 4)),), (), {"x": "x"}, batch=None)
    assert check({"x": np.random.default_rng(0).normal(size=(3, 1, 4)).astype(np.float32)}, io, None).samples == 3
    message, _ = refused(check, {"x": np.zeros((3, 4), np.float32)}, io=io, label=None)
    assert "whole inputs (it has no batch axis) of [1,4]" in message


def test_states_in_the_data_are_ignored_with_a_warning(check):
    io = IOSpec(
        (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("h", "float32", (1, "batch", 4))),
        (TensorSpec("h_out", "float32", (1, "batch", 4)),),
        {"x": "x"},
        states=(StateSpec("h", "h_out"),),
    )
    data = {"x": np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32), "h": np.zeros((3, 1, 1, 4))}
    assert "is a state of the model" in check(data, io, None).warnings[0]


def test_plain_lists_are_samples_too():
    rows = [{k: v[i] for k, v in arrays().items()} for i in range(6)]
    assert check_samples(rows, IO, label="label").samples == 6
    rows[3] = {k: v for k, v in rows[3].items() if k != "ids"}
    with pytest.raises(DataError, match="the data row 3: no array 'ids'"):
        check_samples(rows, IO, label="label")
    rows[3] = dict(rows[2], ids=np.array([None, 1], object))
    with pytest.raises(DataError, match="the data row 3: array 'ids' holds Python objects"):
        check_samples(rows, IO, label=None)


def test_blanks_silence_one_modality_at_a_time():
    rows = [{k: v[i] for k, v in arrays(40).items()} for i in range(40)]
    blanked, counts = with_blanks(rows, IO, 0.1, seed=3)
    assert counts == {"image": 4, "audio": 4}
    silent = {n: {i for i in range(40) if not blanked[i][n].any()} for n in ("image", "audio")}
    assert [len(s) for s in silent.values()] == [4, 4]
    assert not silent["image"] & silent["audio"]
    np.testing.assert_array_equal(blanked[7]["ids"], rows[7]["ids"])
    assert check_samples(blanked, IO, label="label").samples == 40
    assert with_blanks(rows, IO, 0.1, seed=3)[0].inputs == blanked.inputs
    single = IOSpec(IO.inputs[:1], (), {"image": "image"})
    assert with_blanks(rows, single, 0.1, seed=3)[1] == {}
