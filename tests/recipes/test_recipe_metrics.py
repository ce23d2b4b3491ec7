"""Scores of the recipes against values that are known."""

from __future__ import annotations

import numpy as np
import pytest

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


def test_characters_are_decoded_as_ctc_has_it_and_edits_counted() -> None:
    def says(*classes: int) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[list(classes)]

    assert metrics.ctc_greedy(says(0, 1, 1, 0, 1, 2, 2, 0)) == [1, 1, 2]
    assert metrics.ctc_greedy(says(0, 0)) == []
    assert metrics.edit_distance([1, 2, 3], [2, 3, 3]) == 2
    assert metrics.edit_distance([], [1, 2]) == 2
    rows = np.empty(2, object)
    rows[:] = [says(1, 0, 1), says(2, 3, 3, 0, 1)]
    labels = np.array([[1, 1, -1], [2, 1, -1]])
    assert metrics.character_accuracy({"logits": rows}, labels) == pytest.approx(1 - 1 / 4)


def test_summary_f1_is_the_share_of_frames_that_both_keep() -> None:
    true = np.array([[0.9, 0.8, 0.1, 0.0, 0.2, 0.0, 0.0, 0.3]] * 2)
    said = np.array([[5.0, 4, 3, 2, 1, 0, 0, 0], [0, 1, 2, 3, 9, 9, 9, 9]])
    assert metrics.summary_f1({"importance": true}, true) == 1
    assert metrics.summary_f1({"importance": said}, true) == pytest.approx(0.5)


def test_recall_counts_any_of_the_right_meaning_both_ways() -> None:
    vectors, labels = np.eye(4), np.array([0, 0, 1, 2])
    same = {"image_vector": vectors, "text_vector": vectors}
    assert metrics.recall_at_1(same, labels) == 1
    turned = same | {"text_vector": vectors[[1, 0, 3, 2]]}
    assert metrics.recall_at_1(turned, labels) == pytest.approx(0.5)
    assert metrics.recall_at(4, turned, labels) == 1
