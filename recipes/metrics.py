"""Scores that tasks of these recipes need: `metric: metrics.py:NAME` in a recipe file. Higher is better, always.

Every function takes all outputs of the model by name, first axis = sample, and the labels.
"""

from __future__ import annotations

from collections.abc import Mapping

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
