"""Scores of the recipes against values that are known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # recipes/ stands beside the package

from recipes import metrics


def test_f1_of_logit_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    logit, labels = rng.standard_normal((50, 1)), rng.integers(0, 2, 50)
    assert metrics.f1_of_logit({"logit": logit}, labels) == pytest.approx(f1_score(labels, logit[:, 0] > 0))
    assert metrics.f1_of_logit({"logit": -np.ones((3, 1))}, np.zeros(3)) == 0


def test_calibration_is_one_minus_how_far_confidence_is_from_truth() -> None:
    logit = np.full((10, 1), np.log(0.7 / 0.3))  # says 70 %
    assert metrics.calibration({"logit": logit}, np.array([1] * 7 + [0] * 3)) == pytest.approx(1.0)
    assert metrics.calibration({"logit": logit}, np.zeros(10)) == pytest.approx(0.3)
