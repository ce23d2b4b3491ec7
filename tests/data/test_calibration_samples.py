"""The samples that ship: small, as their cards say, and the same bytes when they are made again."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgemm.data import open_samples

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "calibration" / "samples"
NAMES = sorted(p.name for p in SAMPLES.iterdir())


@pytest.fixture
def maker(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    sys.modules.pop("calibration.make_samples", None)
    from calibration import make_samples

    return make_samples


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_what_their_card_says(name, maker):
    content = (SAMPLES / name / "samples.npz").read_bytes()
    card = yaml.safe_load((SAMPLES / name / "card.yaml").read_text(encoding="utf-8"))
    assert {p.name for p in (SAMPLES / name).iterdir()} == {"samples.npz", "card.yaml"}
    assert len(content) < 100_000
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (card["sha256"], card["bytes"])
    terms = maker.TERMS[name]
    assert (card["origin"], card["licence"], card["synthetic"]) == (terms.origin, terms.licence, terms.synthetic)
    samples = open_samples(str(SAMPLES / name / "samples.npz"))
    assert len(samples) == card["samples"] == len(card["indices"])
    assert card["arrays"] == {
        n: {"dtype": a.dtype.name, "shape": [len(samples), *a.shape]} for n, a in samples[0].items()
    }
    recipe = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert recipe["data"].get("label") in (None, *samples.names)


@pytest.mark.slow
def test_samples_are_made_again_byte_by_byte(tmp_path, maker):
    from recipes.datasets.imu import load

    np.savez(tmp_path / "calib.npz", **load("TRAIN"))
    content, card = maker.make("imu", tmp_path / "calib.npz")
    assert (SAMPLES / "imu" / "samples.npz").read_bytes() == content
    assert (SAMPLES / "imu" / "card.yaml").read_bytes() == card
