"""Manifests, folders of files and description files: rows are those of the files, and errors name the place."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from make_files import write_csv, write_image, write_wav

from edgemm.data import open_samples
from edgemm.errors import DataError, MissingExtraError


def describe(path: Path, text: str) -> str:
    path.write_text(textwrap.dedent(text))
    return str(path)


@pytest.fixture
def pairs(tmp_path):
    """Three rows of photo, voice, vector, speed and word."""
    random = np.random.default_rng(0)
    rows = []
    for i, word in enumerate(("yes", "no", "yes")):
        pixels = random.integers(0, 255, (6, 4, 3), np.uint8)
        sound = random.integers(-32768, 32767, 100 + 10 * i, np.int16)
        write_image(tmp_path / f"photos/{i}.png", pixels)
        write_wav(tmp_path / f"voices/{i}.wav", sound)
        np.save(tmp_path / f"{i}.npy", random.normal(size=3).astype(np.float32))
        files = {"photo": f"photos/{i}.png", "voice": f"voices/{i}.wav", "vector": f"{i}.npy"}
        rows.append({**files, "speed": 1.5 * i, "gear": i, "label": word})
    write_csv(tmp_path / "pairs.csv", rows)
    return tmp_path


def test_manifest_reads_paths_and_numbers_by_row(pairs):
    samples = open_samples(str(pairs / "pairs.csv"))
    assert samples.names == ("photo", "voice", "vector", "speed", "gear", "label")
    row = samples[2]
    assert (row["photo"].dtype, row["photo"].shape) == (np.uint8, (6, 4, 3))
    assert (row["voice"].dtype, row["voice"].shape) == (np.float32, (120,))
    np.testing.assert_array_equal(row["vector"], np.load(pairs / "2.npy"))
    assert [row[k].dtype.name for k in ("speed", "gear", "label")] == ["float32", "int64", "int64"]
    assert [float(row["speed"]), int(row["gear"])] == [3.0, 2]
    assert [int(samples[i]["label"]) for i in range(3)] == [1, 0, 1]
    assert any("no=0, yes=1" in note for note in samples.notes)
    assert samples.locate(2) == f"{pairs / 'pairs.csv'} line 4"


def test_description_makes_the_arrays_that_a_model_takes(pairs):
    path = describe(
        pairs / "pairs.yaml",
        """
        source: pairs.csv
        inputs:
          image: {column: photo, size: [8, 8], channels: gray, scale: 1/255, mean: 0.5, std: 0.25, layout: chw}
          audio: {column: voice, length: 64, layout: ct}
          table: {column: [speed, gear], dtype: float32}
        label: {column: label, classes: [yes, no, perhaps]}
        """.replace("[yes, no,", '["yes", "no",'),
    )
    samples = open_samples(path)
    row = samples[1]
    assert {k: (v.dtype.name, v.shape) for k, v in row.items()} == {
        "image": ("float32", (1, 8, 8)),
        "audio": ("float32", (1, 64)),
        "table": ("float32", (2,)),
        "label": ("int64", ()),
    }
    from PIL import Image

    gray = Image.open(pairs / "photos/1.png").convert("L").resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(row["image"][0], (np.array(gray) / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
    assert int(row["label"]) == 1
    np.testing.assert_array_equal(row["table"], [1.5, 1.0])


def test_reading_is_repeatable_and_has_one_digest(pairs, tmp_path):
    samples = open_samples(str(pairs / "pairs.csv"))
    np.savez(
        tmp_path / "same.npz", **{n: np.stack([samples[i][n] for i in (0,)]) for n in ("photo", "speed", "label")}
    )
    path = describe(tmp_path / "d.yaml", "source: pairs.csv\ninputs: {photo: , speed: }\nlabel: {column: label}")
    described = open_samples(path)
    assert described.digest == open_samples(path).digest
    first = open_samples(str(tmp_path / "same.npz"))[0]
    for name, value in first.items():
        np.testing.assert_array_equal(described[0][name], value)


def test_parquet_is_the_same_as_csv(pairs):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = open_samples(str(pairs / "pairs.csv")).table
    cells = [rows.cells(i) for i in range(len(rows))]
    columns = {name: [cell[name] for cell in cells] for name in rows.columns}
    columns["speed"] = arrow.array([float(v) for v in columns["speed"]], arrow.float32())
    columns["gear"] = [int(v) for v in columns["gear"]]
    parquet.write_table(arrow.table(columns), pairs / "pairs.parquet", row_group_size=2)
    assert open_samples(str(pairs / "pairs.parquet")).digest == open_samples(str(pairs / "pairs.csv")).digest
    columns["sequence"] = [[[1.0, 2.0], [3.0, 4.0]]] * 3
    parquet.write_table(arrow.table(columns), pairs / "pairs.parquet", row_group_size=2)
    samples = open_samples(str(pairs / "pairs.parquet"))
    np.testing.assert_array_equal(samples[2]["sequence"], [[1, 2], [3, 4]])
    assert samples.locate(2).endswith("pairs.parquet row 2")


def test_a_column_of_numbers_has_one_dtype(tmp_path):
    (tmp_path / "m.csv").write_text("temp,gear,x,y\n1,0,1,2\n2.5,1,1,2\n3,2,1,2.5\n")
    samples = open_samples(str(tmp_path / "m.csv"))
    assert [samples[i]["temp"].dtype.name for i in range(3)] == ["float32"] * 3
    assert [samples[i]["gear"].dtype.name for i in range(3)] == ["int64"] * 3
    both = open_samples(describe(tmp_path / "d.yaml", "source: m.csv\ninputs: {xy: {column: [x, y]}}"))
    assert [both[i]["xy"].dtype.name for i in range(3)] == ["float32"] * 3


def test_a_column_of_texts_may_hold_some_that_look_like_numbers(tmp_path):
    (tmp_path / "m.csv").write_text("review,place\nvery good,1 2\n10,3 4\nbad film,5 6.5\n")
    samples = open_samples(str(tmp_path / "m.csv"))
    assert [str(samples[i]["review"]) for i in range(3)] == ["very good", "10", "bad film"]
    np.testing.assert_array_equal(samples[0]["place"], np.array([1, 2], np.float32))
    assert samples[0]["place"].dtype == samples[2]["place"].dtype


def test_a_word_among_numbers_is_told_before_anything_is_read(tmp_path):
    (tmp_path / "m.csv").write_text("temp,label\n1,0\nn/a,1\n3,0\n")
    with pytest.raises(DataError, match=r"m\.csv line 3, column 'temp': got 'n/a', expected a number") as error:
        open_samples(str(tmp_path / "m.csv"))
    assert "description file" in error.value.hint
    rest = open_samples(describe(tmp_path / "d.yaml", "source: m.csv\ninputs: {label: }"))
    assert len(rest) == 3


def test_quoted_cells_semicolons_and_blank_lines(tmp_path):
    text = '\ufeffname;value;label\r\n"a;\r\nb";1.5;x\r\n\r\nc;2;y\r\n'
    (tmp_path / "m.csv").write_bytes(text.encode())
    samples = open_samples(str(tmp_path / "m.csv"))
    assert [str(samples[i]["name"]) for i in range(2)] == ["a;\r\nb", "c"]
    assert float(samples[1]["value"]) == 2
    assert samples.locate(1).endswith("line 5")


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (
            lambda f: (f / "photos/1.png").unlink(),
            "line 3, column 'photo': photos/1.png: no such file",
            "relative",
        ),
        (lambda f: (f / "photos/1.png").write_bytes(b"\x89PNG"), "line 3, column 'photo' .* cannot be read", "re"),
        (lambda f: (f / "voices/1.wav").write_bytes(b"RIFF"), "line 3, column 'voice' .*", "replace"),
        (lambda f: (f / "1.npy").write_bytes(b"no"), "line 3, column 'vector' .*no .npy array", "numpy.save"),
    ],
)
def test_errors_name_row_and_column(pairs, change, message, hint):
    change(pairs)
    with pytest.raises(DataError, match=message) as error:
        open_samples(str(pairs / "pairs.csv"))[1]
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("source: pair.csv", "source 'pair.csv': no such file", "'pairs.csv'"),
        ("inputs: {}", "`source` is missing", "source:"),
        ("model: {path: m}", "no key 'model'", "recipe"),
        ("source: pairs.csv\ninput: {}", "no key 'input'", "'inputs'"),
        ("source: pairs.csv\nform: manifesto", "no form 'manifesto'", "'manifest'"),
        ("source: pairs.csv\ninputs: {image: {column: phot}}", "no column 'phot' for 'image'", "'photo'"),
        ("source: pairs.csv\ninputs: {image: {topic: photo}}", "'topic' is not of this form", "column"),
        ("source: pairs.csv\ninputs: {image: {layot: chw}}", "no setting 'layot'", "'layout'"),
        ("source: pairs.csv\ninputs: {image: {layout: chv}}", "got 'chv', expected one of", "'chw'"),
        ("source: pairs.csv\ninputs: {image: {scale: big}}", "scale: got 'big'", ""),
        ("source: pairs.csv\nalign: {method: next}", "align.method: got 'next'", "nearest"),
        ("source: pairs.csv\ninputs: {a: }\nalign: {within: {b: 1}}", "align.within: no input or label 'b'", "a"),
        ("source: [", "no YAML", "for example"),
    ],
)
def test_description_errors_say_what_is_known(pairs, text, message, hint):
    with pytest.raises(DataError, match=message) as error:
        open_samples(describe(pairs / "d.yaml", text))
    assert hint in error.value.hint


def test_a_row_of_another_length_and_a_missing_class(pairs):
    with (pairs / "pairs.csv").open("a") as file:
        file.write("photos/0.png,voices/0.wav\n")
    with pytest.raises(DataError, match="line 5: 2 cells, the header has 6"):
        open_samples(str(pairs / "pairs.csv"))
    text = "source: {}\nlabel: {{column: label, classes: [nope]}}"
    (pairs / "m.csv").write_text("x,label\n1,no\n")
    with pytest.raises(DataError, match="line 2, column 'label': 'no' is none of the classes"):
        open_samples(describe(pairs / "d.yaml", text.format("m.csv")))[0]


def test_paths_out_of_the_folder_are_said(pairs):
    folder = pairs / "inner"
    folder.mkdir()
    write_csv(folder / "m.csv", [{"photo": "../photos/0.png"}, {"photo": str(pairs / "photos/1.png")}])
    samples = open_samples(str(folder / "m.csv"))
    assert samples[1]["photo"].shape == (6, 4, 3)
    assert any("outside" in note and "../photos/0.png" in note for note in samples.notes)


def test_subfolders_of_images_are_classes(tmp_path):
    for name in ("dog/b.png", "cat/a.png", "cat/sub.jpg"):
        write_image(tmp_path / "set" / name, np.full((4, 4), len(name), np.uint8))
    samples = open_samples(str(tmp_path / "set"))
    assert samples.names == ("image", "label")
    assert [int(samples[i]["label"]) for i in range(3)] == [0, 0, 1]
    assert samples[2]["image"].shape == (4, 4, 1)
    assert "cat=0, dog=1" in samples.notes[0]
    assert samples.locate(2).endswith("dog/b.png")


def test_patterns_pair_files_and_count_what_is_alone(tmp_path):
    for i in range(4):
        write_image(tmp_path / f"set/{'ab'[i % 2]}/img_{i}.png", np.full((4, 4), i, np.uint8))
        if i != 2:
            write_wav(tmp_path / f"set/{'ab'[i % 2]}/snd_{i}.wav", np.full(8, i, np.int16))
    with pytest.raises(DataError, match=r"images .* and wav .*nothing says which make a pair") as error:
        open_samples(str(tmp_path / "set"))
    assert "pattern" in error.value.hint
    path = describe(
        tmp_path / "d.yaml",
        """
        source: set
        inputs:
          image: {pattern: "*/img_*.png", layout: hw}
          audio: {pattern: "*/snd_*.wav", dtype: int16}
        label: {classes: [b, a]}
        """,
    )
    samples = open_samples(path)
    rows = [samples[i] for i in range(len(samples))]
    assert [(int(r["image"][0, 0]), int(r["audio"][0]), int(r["label"])) for r in rows] == [
        (0, 0, 1),
        (1, 1, 0),
        (3, 3, 0),
    ]
    assert (samples.coverage["image"].found, samples.coverage["image"].used) == (4, 3)
    assert samples.coverage["audio"].unmatched == 1
    assert "1 of 4 files of 'image' have no partner" in samples.notes[0]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width_is_scaled_to_one(tmp_path, width):
    import wave

    values = np.array([0, 1, -1, 2 ** (8 * width - 1) - 1, -(2 ** (8 * width - 1))], np.int64)
    stored = values + 128 if width == 1 else values
    data = b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in stored)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, width, 8000, 0, "NONE", ""))
        file.writeframes(data)
    write_csv(tmp_path / "m.csv", [{"audio": "a.wav"}])
    got = open_samples(str(tmp_path / "m.csv"))[0]["audio"]
    np.testing.assert_allclose(got, values / 2.0 ** (8 * width - 1), rtol=1e-6)


def test_stereo_is_mixed_and_resampled(tmp_path):
    time = np.arange(4000) / 8000
    tone = (10000 * np.sin(2 * np.pi * 200 * time)).astype(np.int16)
    write_wav(tmp_path / "set/a.wav", np.stack([tone, np.zeros_like(tone)], 1))
    samples = open_samples(str(tmp_path / "set"))
    assert samples[0]["audio"].shape == (4000, 2)
    path = describe(tmp_path / "d.yaml", "source: set\ninputs: {voice: {channels: mono, rate: 16000}}")
    got = open_samples(path)[0]["voice"]
    want = 5000 / 32768 * np.sin(2 * np.pi * 200 * np.arange(8000) / 16000)
    np.testing.assert_allclose(got[200:-200], want[200:-200], atol=2e-3)


def test_float_and_flac_audio_need_soundfile(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    values = np.linspace(-0.5, 0.5, 50, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", values, 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.flac", values, 8000)
    write_csv(tmp_path / "m.csv", [{"audio": "a.wav"}, {"audio": "b.flac"}])
    samples = open_samples(str(tmp_path / "m.csv"))
    np.testing.assert_array_equal(samples[0]["audio"], values)
    np.testing.assert_allclose(samples[1]["audio"], values, atol=1e-4)


@pytest.mark.parametrize(
    ("blocked", "column", "extra"), [("PIL.Image", "photo", "images"), ("yaml", None, "data")]
)
def test_what_is_not_installed_is_named(pairs, monkeypatch, blocked, column, extra):
    description = describe(pairs / "d.yaml", "source: pairs.csv")
    monkeypatch.setitem(sys.modules, blocked, None)
    samples = open_samples(str(pairs / "pairs.csv"))
    with pytest.raises(MissingExtraError) as error:
        samples[0] if column else open_samples(description)
    assert error.value.hint == f"pip install 'edgemm[{extra}]'"


def test_json_members_and_raw_points(tmp_path):
    points = np.arange(8, dtype=np.float32).reshape(2, 4)
    (tmp_path / "a.bin").write_bytes(points.tobytes())
    (tmp_path / "a.json").write_text('{"pose": {"x": 1.5, "q": [0, 1]}}')
    write_csv(tmp_path / "m.csv", [{"cloud": "a.bin", "meta": "a.json"}])
    path = describe(
        tmp_path / "d.yaml",
        """
        source: m.csv
        inputs:
          cloud: {dtype: float32, shape: [-1, 4], length: 6}
          meta: {field: [pose.x, pose.q]}
        """,
    )
    row = open_samples(path)[0]
    assert row["cloud"].shape == (6, 4)
    np.testing.assert_array_equal(row["cloud"][:2], points)
    assert not row["cloud"][2:].any()
    np.testing.assert_array_equal(row["meta"], [1.5, 0, 1])


def test_npz_under_a_description(tmp_path):
    np.savez(tmp_path / "a.npz", img=np.full((2, 4, 4, 3), 255, np.uint8), y=np.arange(2))
    path = describe(
        tmp_path / "d.yaml",
        "source: a.npz\ninputs: {image: {array: img, scale: 1/255, layout: chw}}\nlabel: {array: y}",
    )
    row = open_samples(path)[1]
    assert (row["image"].shape, float(row["image"].max())) == ((3, 4, 4), 1.0)
    assert int(row["label"]) == 1


@pytest.mark.slow
def test_a_manifest_of_images_and_audio_converts_as_arrays_do(trained_folder, tmp_path, capsys):
    """The files hold the calibration samples rounded to 8 and 16 bits: float accuracy must not notice."""
    import json

    from edgemm.cli import main

    for part in ("calib", "eval"):
        data, rows = np.load(trained_folder / f"{part}.npz"), []
        for i, label in enumerate(data["label"]):
            image = np.clip(np.rint(data["image"][i, 0] * 32 + 128), 0, 255).astype(np.uint8)
            audio = np.clip(np.rint(data["audio"][i].ravel() * 4096), -32768, 32767).astype(np.int16)
            write_image(tmp_path / part / f"{i}.png", image)
            write_wav(tmp_path / part / f"{i}.wav", audio)
            rows.append({"photo": f"{part}/{i}.png", "voice": f"{part}/{i}.wav", "word": "abcd"[label]})
        write_csv(tmp_path / f"{part}.csv", rows)
        describe(
            tmp_path / f"{part}.yaml",
            f"""
            source: {part}.csv
            inputs:
              image: {{column: photo, scale: 1/32, mean: 4, layout: chw}}
              audio: {{column: voice, scale: 8, shape: [24, 32]}}
            label: {{column: word, classes: [a, b, c, d]}}
            """,
        )
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("convert", str(trained_folder / "model.pt2"), "--calib", str(tmp_path / "calib.yaml")),
                *("--eval", str(tmp_path / "eval.yaml"), "--label", "label", "--search-seconds", "1"),
                *("-o", str(tmp_path / "m.edgemm"), "--json"),
            ]
        )
    out = capsys.readouterr()
    assert ended.value.code == 0, out.err
    assert json.loads(out.out)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *(
                    "run",
                    str(tmp_path / "m.edgemm"),
                    "--data",
                    str(tmp_path / "eval.yaml"),
                    "--variant",
                    "cpu-fp32",
                ),
                *("-o", str(tmp_path / "out.npz")),
            ]
        )
    assert ended.value.code == 0, capsys.readouterr().err
    with np.load(tmp_path / "out.npz") as outputs, np.load(trained_folder / "eval.npz") as data:
        correct = outputs["logits"].argmax(1) == data["label"]
    assert correct.mean() > 0.88
