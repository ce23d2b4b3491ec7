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


def test_heads_accuracy_scores_each_head_against_its_column() -> None:
    outputs = {"image_logits": np.eye(4, 10), "weights": np.zeros((4, 5)), "sentiment_logits": np.eye(4, 2)}
    labels = np.array([[0, 0], [1, 1], [2, 1], [0, 1]])
    assert metrics.heads_accuracy(outputs, labels) == pytest.approx((3 / 4 + 2 / 4) / 2)


def test_mean_iou_leaves_out_unseen_cells_and_absent_classes() -> None:
    labels = np.array([[[0, 1], [1, -1]]])
    said = np.array([[[0, 1], [0, 1]]])
    logits = np.eye(4)[said].transpose(0, 3, 1, 2)
    assert metrics.mean_iou({"logits": logits}, labels) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert metrics.mean_iou({"logits": np.eye(4)[np.abs(labels)].transpose(0, 3, 1, 2)}, labels) == 1


def test_slots_need_kind_and_both_ends() -> None:
    true = np.array([[7, 0, 1, 2, 0, 3, -1], [7, 3, 4, 1, 0, 0, 0]])
    said = np.array([[0, 1, 2, 2, 3, 1], [3, 4, 1, 0, 0, 0]])  # the first slot too long, the rest right
    outputs = {"slot_logits": np.eye(5)[said], "intent_logits": np.eye(9)[[7, 7]]}
    assert metrics.slot_f1(outputs, true) == pytest.approx(2 * 3 / (4 + 4))
    assert metrics.intent_accuracy(outputs, true) == 1
    assert metrics.frame_accuracy(outputs, true) == pytest.approx(0.5)
    new_begin = {"slot_logits": np.eye(5)[[[1, 1, 0, 0, 0, 0]]]}
    assert metrics.slot_f1(new_begin, np.array([[0, 1, 2, 0, 0, 0, 0]])) == 0


def test_next_token_counts_answers_alone() -> None:
    logits = np.eye(4)[[0, 1, 2, 3]]
    assert metrics.next_token({"logits": logits}, np.array([-1, 1, 3, 3])) == pytest.approx(2 / 3)


def test_bleu_against_a_value_worked_out_by_hand() -> None:
    true = [[1, 2, 3, 4, 5, 6]]
    assert metrics.bleu(true, true) == pytest.approx(1)
    shares = np.array([4 / 5, 3 / 4, 2 / 3, 1 / 2])  # 1 2 3 4 9: of its n-grams
    assert metrics.bleu([[1, 2, 3, 4, 9]], true) == pytest.approx(np.prod(shares) ** 0.25 * np.exp(1 - 6 / 5))
    assert metrics.bleu([[9, 8, 7]], true) == 0


def test_accuracy_under_noise_looks_at_its_own_samples() -> None:
    outputs = {"logits": np.eye(6, 10)}
    labels = np.array([[0, 0], [9, 1], [2, 1], [9, 2], [9, 2], [5, 2]])
    assert metrics.digit_accuracy(outputs, labels) == pytest.approx(3 / 6)
    assert metrics.accuracy_clean(outputs, labels) == 1
    assert metrics.accuracy_noise_for_image(outputs, labels) == pytest.approx(1 / 2)
    assert metrics.accuracy_noise_for_audio(outputs, labels) == pytest.approx(1 / 3)


def test_each_expert_is_scored_by_its_own_decision() -> None:
    outputs = {"logits": np.eye(3), "text_logits": np.eye(3)[[0, 0, 0]], "prosody_logits": np.eye(3)[[0, 1, 0]]}
    labels = np.array([0, 1, 2])
    assert metrics.text_alone(outputs, labels) == pytest.approx(1 / 3)
    assert metrics.prosody_alone(outputs, labels) == pytest.approx(2 / 3)
