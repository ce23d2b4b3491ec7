"""What `calib inspect` reports is what was put into the data; what `calib sample` chooses covers it."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgemm.cli import main
from edgemm.data import digest_of, open_samples
from edgemm.data.standout import robust_z
from edgemm.data.subset import choose, k_centre, quotas
from edgemm.data.survey import survey
from edgemm.errors import DataError


def arrays(count=60, seed=0):
    random = np.random.default_rng(seed)
    return {
        "image": random.normal(2, 3, (count, 1, 6, 6)).astype(np.float32),
        "accel": random.normal(size=(count, 3, 20)).astype(np.float32),
        "label": random.integers(0, 3, count),
    }


@pytest.fixture
def run(capsys):
    def call(*args):
        with pytest.raises(SystemExit) as ended:
            main(["calib", *map(str, args)])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def save(path, data):
    np.savez(path, **data)
    return open_samples(str(path))


def test_statistics_are_those_of_numpy(tmp_path):
    data = arrays()
    data["accel"][3, 0, 0], data["accel"][4, 1, 2] = np.nan, np.inf
    data["image"][7] = 0.25
    found = survey(save(tmp_path / "a.npz", data))
    image, accel = found.arrays["image"], found.arrays["accel"]
    exact = data["image"].astype(np.float64)
    np.testing.assert_allclose(
        [image.minimum, image.maximum, image.mean, image.std],
        [exact.min(), exact.max(), exact.mean(), exact.std()],
    )
    assert (accel.nan, accel.inf, image.silent) == (1, 1, 1 / 60)
    finite = data["accel"][np.isfinite(data["accel"])].astype(np.float64)
    np.testing.assert_allclose([accel.mean, accel.std], [finite.mean(), finite.std()])
    assert found.label == "label"
    assert found.arrays["label"].counts == {str(k): int((data["label"] == k).sum()) for k in range(3)}
    assert found.digest == digest_of(open_samples(str(tmp_path / "a.npz")))
    assert not found.duplicates
    assert found.near_count == 0


def test_duplicates_near_duplicates_and_outliers_are_found(tmp_path):
    data = arrays()
    for name in ("image", "accel"):
        data[name][50] = data[name][10]
        data[name][51] = data[name][11] * 1.001
    data["label"][50] = (data["label"][10] + 1) % 3
    data["accel"][20] *= 40
    found = survey(save(tmp_path / "a.npz", data))
    assert found.duplicates == ((10, 50),)
    assert found.contradictions == ((10, 50),)
    assert [(a, b) for a, b, _ in found.near] == [(11, 51)]
    assert {o.index for o in found.outliers} == {20}
    assert found.outliers[0].array == "accel"
    assert found.outliers[0].where.endswith("a.npz row 20")


def test_one_of_two_inputs_alike_is_no_duplicate(tmp_path):
    data = arrays()
    data["image"][50] = data["image"][10]
    found = survey(save(tmp_path / "a.npz", data))
    assert not found.duplicates
    assert found.near_count == 0


def test_shapes_that_vary_and_constants(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for i, length in enumerate((5, 9)):
        np.savez(folder / f"{i}.npz", audio=np.ones((2, length), np.float32), word=np.array(["a", "b"]))
    found = survey(open_samples(str(folder)), label="word")
    assert (found.arrays["audio"].smallest, found.arrays["audio"].largest) == ((5,), (9,))
    assert found.arrays["audio"].constant
    assert found.arrays["audio"].silent == 1
    assert found.arrays["word"].counts == {"a": 2, "b": 2}
    with pytest.raises(DataError, match="no array 'wort'"):
        survey(open_samples(str(folder)), label="wort")


def test_a_usual_value_is_no_outlier():
    flags = np.r_[np.zeros(95), np.ones(5)]
    assert not robust_z(flags).any()
    assert robust_z(np.r_[np.zeros(999), 50.0])[-1] > 6
    assert not robust_z(np.arange(5.0)).any()


def test_every_cluster_has_a_centre():
    random = np.random.default_rng(0)
    centres = random.normal(size=(8, 4)) * 50
    sizes = [200, 100, 50, 5, 3, 2, 1, 1]
    points = np.concatenate([c + random.normal(size=(n, 4)) for c, n in zip(centres, sizes, strict=True)])
    owner = np.repeat(np.arange(8), sizes)
    assert sorted(owner[k_centre(points, 8, 0)]) == list(range(8))
    choice = choose(points, [""] * len(points), 8, seed=0)
    assert choice.radius < 10 < choice.random_radius


@given(st.integers(0, 1000), st.integers(1, 12))
def test_the_radius_is_at_most_twice_the_best(seed, count):
    """Gonzalez 1985; the best by trying all subsets of a few points on a line, where intervals are optimal."""
    points = np.sort(np.random.default_rng(seed).uniform(size=14))
    chosen = points[k_centre(points[:, None], count, seed % 14)]
    radius = np.abs(points[:, None] - chosen[None, :]).min(axis=1).max()
    low, high = 0.0, 1.0
    for _ in range(50):  # smallest radius for which `count` intervals cover the line, by bisection
        middle, start, used = (low + high) / 2, -1.0, 0
        for p in points:
            if p > start:
                # a centre must be a point: the last within `middle` of the first uncovered one
                centre = points[points <= p + middle][-1]
                start, used = centre + middle, used + 1
        low, high = (low, middle) if used <= count else (middle, high)
    assert radius <= 2 * high + 1e-6


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 40), min_size=1, max_size=8),
    st.integers(1, 60),
)
def test_quotas_add_up_and_keep_shares(sizes, count):
    found = quotas(sizes, count)
    total = sum(sizes.values())
    assert sum(found.values()) == min(count, total)
    assert all(0 <= found[n] <= sizes[n] for n in sizes)
    if count >= 2 * len(sizes):
        assert all(found[n] >= 1 for n in sizes)


def test_sample_writes_a_subset_and_its_card(tmp_path, run):
    data = arrays(90)
    data["image"][5, 0, 0, 0] = np.nan
    save(tmp_path / "a.npz", data)
    args = ("sample", tmp_path / "a.npz", "-o", tmp_path / "s.npz", "--count", 12, "--licence", "CC0-1.0")
    code, out, err = run(*args)
    assert code == 0, err
    assert "12 of 90 samples" in out
    card = yaml.safe_load((tmp_path / "s.card.yaml").read_text())
    content = (tmp_path / "s.npz").read_bytes()
    assert card["sha256"] == hashlib.sha256(content).hexdigest()
    assert (card["licence"], card["samples"], card["of"], card["left_out"]) == ("CC0-1.0", 12, 90, 1)
    assert card["source_sha256"] == digest_of(open_samples(str(tmp_path / "a.npz")))
    small = open_samples(str(tmp_path / "s.npz"))
    labels = [str(small[i]["label"]) for i in range(12)]
    assert {k: labels.count(k) for k in set(labels)} == card["labels"]
    originals = {data["accel"][i].tobytes() for i in range(90) if i != 5}
    assert all(small[i]["accel"].tobytes() in originals for i in range(12))
    assert run(*args)[0] == 1  # never over an existing file
    assert run(*args, "--force", "--json")[0] == 0
    assert (tmp_path / "s.npz").read_bytes() == content
    run(*args, "--force", "--seed", 1)
    assert (tmp_path / "s.npz").read_bytes() != content


def test_rows_of_different_shapes_are_refused(tmp_path, run):
    folder = tmp_path / "set"
    folder.mkdir()
    for i, length in enumerate((5, 9)):
        np.savez(folder / f"{i}.npz", audio=np.random.default_rng(i).normal(size=(2, length)))
    code, _, err = run("sample", folder, "-o", tmp_path / "s.npz")
    assert code == 1
    assert "1.npz row 0: array 'audio' has the shape (9,)" in err
    assert "`length`" in err
    assert not (tmp_path / "s.npz").exists()


def test_inspect_prints_a_table_or_json(tmp_path, run):
    data = arrays()
    data["image"][50], data["accel"][50] = data["image"][10], data["accel"][10]
    save(tmp_path / "a.npz", data)
    code, out, err = run("inspect", tmp_path / "a.npz")
    assert code == 0, err
    assert "60 samples" in out
    assert "duplicates  1 (samples 10 = 50)" in out
    code, out, _ = run("inspect", tmp_path / "a.npz", "--json")
    assert json.loads(out)["duplicates"] == [[10, 50]]


def test_inspect_shows_coverage(tmp_path, run):
    for i in range(4):
        (tmp_path / "set").mkdir(exist_ok=True)
        np.save(tmp_path / f"set/a_{i}.npy", np.full(3, i, np.float32))
        if i:
            np.save(tmp_path / f"set/b_{i}.npy", np.full(2, i, np.float32))
    (tmp_path / "d.yaml").write_text("source: set\ninputs: {a: {pattern: a_*.npy}, b: {pattern: b_*.npy}}")
    code, out, err = run("inspect", tmp_path / "d.yaml")
    assert code == 0, err
    assert "coverage    a: 3 of 4 used" in out
    assert "b: 3 of 3 used; 1 samples lack it" in out


@pytest.mark.slow
def test_encoders_of_a_bundle_choose(trained_folder, tmp_path, run, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("convert", str(trained_folder / "model.pt2"), "--calib", str(trained_folder / "calib.npz")),
                *("--precision", "fp32", "--layout", "staged", "-o", str(tmp_path / "m.edgemm")),
            ]
        )
    assert ended.value.code == 0, capsys.readouterr().err
    capsys.readouterr()
    args = ("--model", tmp_path / "m.edgemm")
    data = trained_folder / "calib.npz"
    code, out, err = run("sample", data, "-o", tmp_path / "s.npz", "--count", 12, "--json", *args)
    assert code == 0, err
    card = json.loads(out)["card"]
    assert card["by"] == "encoder outputs of cpu-fp32"
    assert card["samples"] == 12
    code, out, err = run("inspect", data, *args)
    assert code == 0, err
    assert "compared by encoder outputs of cpu-fp32" in out
