"""Scores that tasks of these recipes need: `metric: metrics.py:NAME` in a recipe file. Higher is better, always.

Every function takes all outputs of the model by name, first axis = sample, and the labels.
"""

from __future__ import annotations

from collections import Counter
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


def heads_accuracy(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns the mean accuracy of the outputs called `..._logits` `[N,classes]`; label column i is the i-th's."""
    heads = [output for name, output in outputs.items() if name.endswith("_logits")]
    return float(np.mean([(head.argmax(1) == labels[:, i]).mean() for i, head in enumerate(heads)]))


def mean_iou(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns the mean over classes of intersection / union of cells that `logits` `[N,C,H,W]` find.

    Cells labelled -1 do not count; classes that are neither said nor true are left out.
    """
    counted, said = labels >= 0, outputs["logits"].argmax(1)
    shares = []
    for c in range(outputs["logits"].shape[1]):
        there, found = (labels == c) & counted, (said == c) & counted
        if union := int((there | found).sum()):
            shares.append(int((there & found).sum()) / union)
    return float(np.mean(shares))


def intent_accuracy(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns how often `intent_logits` `[N,I]` say the intent, column 0 of the labels."""
    return float((outputs["intent_logits"].argmax(1) == labels[:, 0]).mean())


def slot_f1(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns the F1 of slots of `slot_logits` `[N,T,S]`; in a right one kind and both ends are (CoNLL 2000).

    Label columns from 1 on are tags: 0 outside, 1 + 2 k begins a slot of kind k, 2 + 2 k goes on with it, -1 is
    padding.
    """
    said, true = outputs["slot_logits"].argmax(2), labels[:, 1:]
    pairs = [(_slots(s[t >= 0]), _slots(t[t >= 0])) for s, t in zip(said, true, strict=True)]
    both, found = sum(len(s & t) for s, t in pairs), sum(len(s) + len(t) for s, t in pairs)
    return 2 * both / found if found else 1.0


def _slots(tags: np.ndarray) -> set[tuple[int, int, int]]:
    """Returns kind, first and last word of every slot; one that goes on with nothing begins."""
    slots, begin, previous = set(), 0, 0
    for at, tag in enumerate([*tags.tolist(), 0]):
        goes_on = tag > 0 and tag % 2 == 0 and (previous + 1) // 2 == tag // 2
        if previous and not goes_on:
            slots.add(((previous - 1) // 2, begin, at - 1))
        begin, previous = begin if goes_on else at, tag
    return slots


def frame_accuracy(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns how often the intent and all tags are right; outputs and labels as of `slot_f1`."""
    intents = outputs["intent_logits"].argmax(1) == labels[:, 0]
    tags = (outputs["slot_logits"].argmax(2) == labels[:, 1:]) | (labels[:, 1:] < 0)
    return float((intents & tags.all(1)).mean())


def next_token(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns how often `logits` `[N,V]` say the next token; rows labelled -1 do not count."""
    counted = labels >= 0
    return float((outputs["logits"].argmax(1) == labels)[counted].mean())


def bleu(said: Sequence[Sequence[int]], true: Sequence[Sequence[int]]) -> float:
    """Returns corpus BLEU, 0 to 1, of up to 4 tokens (Papineni et al. 2002); of whole texts."""
    right, all_said = np.zeros(4), np.zeros(4)
    for hypothesis, reference in zip(said, true, strict=True):
        for n in range(1, 5):
            grams, allowed = (
                Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (hypothesis, reference)
            )
            right[n - 1] += sum((grams & allowed).values())
            all_said[n - 1] += sum(grams.values())
    if not right.all():
        return 0.0
    shorter = sum(map(len, true)) / max(1, sum(map(len, said)))
    return float(np.exp(np.log(right / all_said).mean() + min(0.0, 1 - shorter)))


def digit_accuracy(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns the accuracy of `logits` `[N,10]`; label columns: digit, condition (see `accuracy_clean`)."""
    return float((outputs["logits"].argmax(1) == labels[:, 0]).mean())


def accuracy_clean(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns `digit_accuracy` where no modality is noise: label column 1 is 0."""
    return _under(0, outputs, labels)


def accuracy_noise_for_image(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns `digit_accuracy` where the image is noise: label column 1 is 1."""
    return _under(1, outputs, labels)


def accuracy_noise_for_audio(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns `digit_accuracy` where the audio is noise: label column 1 is 2."""
    return _under(2, outputs, labels)


def _under(condition: int, outputs: Outputs, labels: np.ndarray) -> float:
    rows = labels[:, 1] == condition
    return digit_accuracy({"logits": outputs["logits"][rows]}, labels[rows])


def text_alone(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns the accuracy of the text's own decision, `text_logits` `[N,classes]`."""
    return float((outputs["text_logits"].argmax(1) == labels).mean())


def prosody_alone(outputs: Outputs, labels: np.ndarray) -> float:
    """Returns the accuracy of the voice's own decision, `prosody_logits` `[N,classes]`."""
    return float((outputs["prosody_logits"].argmax(1) == labels).mean())
