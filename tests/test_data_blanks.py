from __future__ import annotations

import numpy as np
import pytest

from edgemm.data import Blank, blank_twins, blank_values, digest_of, never_blank, with_blanks
from edgemm.errors import DataError
from edgemm.tensors import IOSpec, TensorSpec

IO = IOSpec(
    (
        TensorSpec("image", "float32", ("batch", 3, 4)),
        TensorSpec("audio", "float32", ("batch", "time")),
        TensorSpec("ids", "int64", ("batch", 5)),
        TensorSpec("mask", "int64", ("batch", 5)),
    ),
    (TensorSpec("out", "float32", ("batch", 2)),),
    {"image": "image", "audio": "audio", "ids": "text", "mask": "text"},
)


def rows(count=30, times=(7,)):
    random = np.random.default_rng(0)
    return [
        {
            "image": random.normal(2, 1, (3, 4)).astype(np.float32),
            "audio": random.normal(-1, 1, times[i % len(times)]).astype(np.float32),
            "ids": random.integers(1, 9, 5),
            "mask": np.ones(5, np.int64),
            "label": np.int64(i),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zeros", Blank()),
        ("mean", Blank("mean")),
        ("silence", Blank("silence", 1e-3)),
        ("silence:0.5", Blank("silence", 0.5)),
        ("constant:-2", Blank("constant", -2.0)),
        ("a/quiet.npy", Blank("file", path="a/quiet.npy")),
    ],
)
def test_texts(text, expected):
    assert Blank.parse(text) == expected


@pytest.mark.parametrize("text", ["silnce:1", "constant:x", "zeros:1", "", "quiet.wav"])
def test_texts_that_name_no_blank(text):
    with pytest.raises(DataError, match=r"expected zeros, mean, silence:LEVEL, constant:VALUE or FILE\.npy"):
        Blank.parse(text)


def test_a_typo_is_named():
    with pytest.raises(DataError) as caught:
        Blank.parse("silense:1")
    assert caught.value.hint == "did you mean 'silence'?"


def test_every_kind(tmp_path):
    np.save(tmp_path / "quiet.npy", np.arange(12, dtype=np.float64).reshape(3, 4))
    data = rows()
    mean = np.mean([r["image"] for r in data], axis=0)
    cases = {
        "zeros": np.zeros((3, 4)),
        "mean": mean,
        "constant:0.5": np.full((3, 4), 0.5),
        str(tmp_path / "quiet.npy"): np.arange(12).reshape(3, 4),
    }
    for text, expected in cases.items():
        values = blank_values(IO, data, {"image": Blank.parse(text)})
        for index in (0, 29):
            got = blank_twins(data, IO, values)["image"][index]
            assert got["image"].dtype == np.float32
            np.testing.assert_allclose(got["image"], expected, rtol=1e-5)
            np.testing.assert_array_equal(got["audio"], data[index]["audio"])


def test_silence_is_seeded_noise_that_differs_between_samples_and_inputs():
    data = rows(200)
    values = blank_values(IO, data, {"image": Blank("silence", 0.01), "audio": Blank("silence", 0.01)}, seed=4)
    twin = blank_twins(data, IO, values)["image"]
    noise = np.stack([twin[i]["image"] for i in range(200)])
    assert noise.std() == pytest.approx(0.01, rel=0.05)
    assert len(np.unique(noise)) > 2000
    np.testing.assert_array_equal(twin[7]["image"], twin[7]["image"])
    again = blank_twins(data, IO, blank_values(IO, data, {"image": Blank("silence", 0.01)}, seed=4))["image"]
    assert digest_of(again) == twin.digest
    assert not np.array_equal(values.row("image", data[0]["audio"], 0), values.row("audio", data[0]["audio"], 0))


def test_mean_of_rows_of_several_lengths_is_one_number():
    data = rows(times=(3, 9))
    values = blank_values(IO, data, {"audio": Blank("mean")})
    twin = blank_twins(data, IO, values)["audio"]
    every = np.concatenate([r["audio"] for r in data])
    np.testing.assert_allclose(twin[1]["audio"], np.full(9, every.mean()), rtol=1e-5)


def test_integers_are_blank_only_where_that_is_said():
    data = rows()
    assert set(blank_twins(data, IO)) == {"image", "audio"}
    values = blank_values(IO, data, {"ids": Blank("constant", 0)})
    twins = blank_twins(data, IO, values)
    assert set(twins) == {"image", "audio", "text"}
    assert not twins["text"][3]["ids"].any()
    assert twins["text"][3]["mask"].all()
    assert with_blanks(data, IO, 0.1, 0, values)[1] == {"image": 3, "audio": 3, "text": 3}


def test_a_modality_names_its_float_inputs_and_an_input_outdoes_it():
    io = IOSpec(IO.inputs[:2] + IO.inputs[2:3], IO.outputs, {"image": "cam", "audio": "cam", "ids": "text"})
    values = blank_values(io, rows(), {"audio": Blank("constant", 7), "cam": Blank("constant", 1)})
    got = blank_twins(rows(), io, values)["cam"][0]
    assert got["image"].max() == got["image"].min() == 1
    assert got["audio"].max() == got["audio"].min() == 7


def test_calibration_blanks_and_twins_are_the_same():
    data = rows()
    values = blank_values(IO, data, {"audio": Blank("silence", 0.1)}, seed=1)
    mixed, counts = with_blanks(data, IO, 0.1, 1, values)
    assert counts == {"image": 3, "audio": 3}
    twins = blank_twins(data, IO, values)
    for index, names in mixed.inputs.items():
        (modality,) = names
        np.testing.assert_array_equal(mixed[index][modality], twins[modality][index][modality])


def test_one_modality_has_no_twin():
    single = IOSpec(IO.inputs[:1], IO.outputs, {"image": "image"})
    assert blank_twins(rows(), single) == {}


def test_what_does_not_fit_is_said(tmp_path):
    np.save(tmp_path / "quiet.npy", np.zeros((2, 4)))
    cases = [
        ({"imge": Blank()}, "no float input or modality 'imge'", "did you mean 'image'?"),
        ({"text": Blank()}, "no float input or modality 'text'", None),
        ({"image": Blank("zero")}, "no kind 'zero'", "did you mean 'zeros'?"),
        (
            {"image": Blank("file", path=str(tmp_path / "quiet.npy"))},
            r"shape \(2, 4\), a row of 'image' has \(3, 4\)",
            None,
        ),
        ({"image": Blank("file", path=str(tmp_path / "no.npy"))}, "no .npy file that can be read", None),
    ]
    for blanks, message, hint in cases:
        with pytest.raises(DataError, match=message) as caught:
            blank_values(IO, rows(), blanks)
        assert hint is None or caught.value.hint == hint


def test_a_modality_of_integers_alone_is_told():
    (warning,) = never_blank(IO, blank_values(IO, rows()))
    assert "modality 'text'" in warning
    assert "--blank ids=constant:0" in warning
    assert never_blank(IO, blank_values(IO, rows(), {"ids": Blank("constant", 0.0)})) == ()
