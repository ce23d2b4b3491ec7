"""BasicMotions: a smart watch's accelerometer and gyroscope, four activities, from the wheel of aeon (BSD-3).

Four students performed each activity five times; both files have all four. 10 seconds at 10 Hz.
"""

from __future__ import annotations

from importlib import metadata

import numpy as np

from recipes.datasets.cache import Arrays

ACTIVITIES = ("Standing", "Running", "Walking", "Badminton")
RATE = 10
"""Samples per second."""


def load(part: str) -> Arrays:
    """Returns `accel` and `gyro` `[40,3,100]` float32 as recorded, and `label` `[40]` int64.

    Args:
        part: `TRAIN` or `TEST`, 40 recordings each.

    Raises:
        RuntimeError: aeon is not installed, or its wheel no longer has the file.
    """
    file = f"aeon/datasets/data/BasicMotions/BasicMotions_{part}.ts"
    try:
        with open(str(metadata.distribution("aeon").locate_file(file)), encoding="utf-8") as stream:
            lines = [line.strip() for line in stream if line.strip() and line[0] not in "#@"]
    except (metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise RuntimeError(
            "the motions need aeon: pip install --no-deps -r requirements-fixtures-nodeps.txt"
        ) from error
    signals, labels = [], []
    for line in lines:
        *dimensions, activity = line.split(":")
        signals.append([np.array(d.split(","), np.float32) for d in dimensions])
        labels.append(ACTIVITIES.index(activity))
    both = np.array(signals, np.float32)
    return {
        "accel": np.ascontiguousarray(both[:, :3]),
        "gyro": np.ascontiguousarray(both[:, 3:]),
        "label": np.array(labels, np.int64),
    }
