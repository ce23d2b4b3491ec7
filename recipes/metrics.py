"""Scores that tasks of these recipes need: `metric: metrics.py:NAME` in a recipe file. Higher is better, always.

Every function takes all outputs of the model by name, first axis = sample, and the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Outputs = Mapping[str, np.ndarray]


def f1_of_logit(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns F1 of class 1, said where `logit` `[N,1]` is above 0; 0 where nothing is found."""
    said, true = outputs["logit"][:, 0] > 0, labels.astype(bool)
    both = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / both if both else 0.0


def calibration(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns 1 - expected calibration error of `logit` `[N,1]` in ten bins (Naeini et al. 2015); 1 is honest."""
    probability = 1 / (1 + np.exp(-outputs["logit"][:, 0].astype(np.float64)))
    bins, error = np.minimum((probability * 10).astype(int), 9), 0.0
    for rows in (bins == b for b in range(10)):
        if rows.any():
            error += float(rows.mean() * abs(probability[rows].mean() - labels[rows].mean()))
    return 1 - error


def character_accuracy(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns 1 - character error rate of `logits` `[T,C]` per sample, decoded greedily as CTC has it.

    The rate is the edits of all texts by the characters of all texts (Graves et al. 2006), so it may pass 1.

    Args:
        outputs: `logits`, rows of one length `[N,T,C]` or of several (objects); class 0 is the blank.
        labels: `[N,L]` classes, padded with -1.
    """
    edits = characters = 0
    for logits, label in zip(outputs["logits"], labels, strict=True):
        true = label[label >= 0]
        edits += edit_distance(ctc_greedy(logits), true.tolist())
        characters += len(true)
    return 1 - edits / max(characters, 1)


def ctc_greedy(logits: np.ndarray) -> list[int]:
    """Returns the classes that `logits` `[T,C]` say: the best of each step, repeats joined, no blanks (0)."""
    best = logits.argmax(1)
    return [int(c) for c in best[np.diff(best, prepend=-1) != 0] if c]


def edit_distance(said: Sequence[int], true: Sequence[int]) -> int:
    """Returns how many insertions, deletions and changes lead from one to the other (Levenshtein)."""
    row = list(range(len(true) + 1))
    for i, one in enumerate(said, 1):
        last, row[0] = row[0], i
        for j, other in enumerate(true, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (one != other))
    return row[-1]


SUMMARY = 0.25
"""Share of a film's frames that its summary keeps."""


def summary_f1(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns the mean F1 between summaries of `importance` `[N,T]` and of `labels`, a quarter of the frames each.

    A summary is the frames with the highest scores; as both have one length F1 is the share that both have.
    """
    kept = max(1, round(SUMMARY * labels.shape[1]))
    said, true = (
        np.argsort(-scores, axis=1, kind="stable")[:, :kept] for scores in (outputs["importance"], labels)
    )
    return float(np.mean([len(np.intersect1d(a, b)) / kept for a, b in zip(said, true, strict=True)]))


def recall_at_1(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns `recall_at` 1."""
    return recall_at(1, outputs, labels)


def recall_at_5(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns `recall_at` 5."""
    return recall_at(5, outputs, labels)


def recall_at(count: int, outputs: Outputs, labels: np.ndarray) -> float:
    """Returns how often the `count` nearest have one of the same label, from image to text and from text to image.

    Args:
        count: How many are looked at.
        outputs: `image_vector` and `text_vector` `[N,D]` of unit length: every row of one is asked for in all of
            the other.
        labels: `[N]`; a row with the label of what was asked is right.
    """
    similar = outputs["image_vector"] @ outputs["text_vector"].T
    best = (np.argsort(-s, axis=1, kind="stable")[:, :count] for s in (similar, similar.T))
    return float(np.mean([(labels[b] == labels[:, None]).any(1).mean() for b in best]))
