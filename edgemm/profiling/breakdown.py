"""Where the time goes: per modality, along the critical path, and in the inference that is the median."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgemm.bundle import EngineEntry, StageEntry
from edgemm.profiling.record import Runs


def modality_shares(
    entries: Sequence[EngineEntry], stages: Sequence[StageEntry], seconds: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Returns `edgemm.profiling.report.ModalityShare` for each set of modalities that engines see, in their order.

    Args:
        entries: The engines.
        stages: The stages that they cover.
        seconds: Engine -> float64[runs].
    """
    seen = {stage.name: stage.modalities for stage in stages}
    order = list(dict.fromkeys(m for stage in stages for m in stage.modalities))
    groups: dict[tuple[str, ...], list[str]] = {}
    for entry in entries:
        mine = {m for stage in entry.stages for m in seen.get(stage, ())}
        groups.setdefault(tuple(m for m in order if m in mine), []).append(entry.name)
    whole = sum(float(values.mean()) for values in seconds.values())
    on_path, _ = critical_path(entries, seconds)
    return [
        {
            "name": " + ".join(modalities) or "no modality",
            "modalities": list(modalities),
            "engines": engines,
            "share": sum(float(seconds[name].mean()) for name in engines) / whole if whole else 0.0,
            "p50_ms": round(float(np.median(np.sum([seconds[name] for name in engines], axis=0))) * 1e3, 6),
            "on_critical_path": any(name in on_path for name in engines),
        }
        for modalities, engines in groups.items()
    ]


def critical_path(entries: Sequence[EngineEntry], seconds: Mapping[str, np.ndarray]) -> tuple[list[str], float]:
    """Returns the engines on the longest path through their graph, by median times, and its length in seconds.

    Args:
        entries: The engines, in an order in which they can run.
        seconds: Engine -> float64[runs].
    """
    paths: dict[str, tuple[float, list[str]]] = {}
    givers: dict[str, str] = {}
    for entry in entries:
        before = [paths[givers[name]] for name in entry.inputs if name in givers]
        length, path = max(before, key=lambda found: found[0], default=(0.0, []))
        paths[entry.name] = (length + float(np.median(seconds[entry.name])), [*path, entry.name])
        givers.update(dict.fromkeys(entry.outputs, entry.name))
    length, path = max(paths.values(), key=lambda found: found[0])
    return path, length


def timeline(runs: Runs) -> list[dict[str, Any]]:
    """Returns `edgemm.profiling.report.Span` for each engine call of the inference whose time is the median's."""
    middle = int(np.argsort(runs.seconds, kind="stable")[(runs.count - 1) // 2])
    return [
        {"engine": name, "start_ms": round(start * 1e3, 6), "duration_ms": round(seconds * 1e3, 6)}
        for name, start, seconds in runs.spans_of(middle)
    ]
