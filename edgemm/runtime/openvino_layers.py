"""Times of layers by OpenVINO's performance counters (property `PERF_COUNT`).

A counter of the CPU plugin is the mean over every run since the model was compiled, in whole microseconds. The
runs that are not to count are taken out: their total is subtracted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ORIGINAL = "originalLayersNames"
"""Key of the names that a node of the runtime model was made of, with commas (OpenVINO, exec_model_info.hpp)."""


@dataclass(slots=True)
class _Seen:
    request: Any
    runs: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


class LayerCounters:
    """Reads the counters of one engine's infer requests; used by one thread."""

    def __init__(self, skip: int) -> None:
        """Counts from run `skip` + 1 on."""
        self._skip = skip
        self._seen: dict[int, _Seen] = {}

    def ran(self, request: Any) -> None:
        """Notes that `request` has run once."""
        seen = self._seen.setdefault(id(request), _Seen(request))
        seen.runs += 1
        if seen.runs == self._skip:
            seen.skipped = {x.node_name: _microseconds(x) for x in request.get_profiling_info()}

    def write(self, file: Path) -> None:
        """Writes the layers of the request that has run most: its shapes are the usual ones."""
        seen = max(self._seen.values(), key=lambda s: s.runs, default=None)
        layers = [] if seen is None else _layers(seen, self._skip)
        file.write_text(json.dumps({"runs": 0 if seen is None else _counted(seen, self._skip), "layers": layers}))


def _layers(seen: _Seen, skip: int) -> list[dict[str, Any]]:
    runs = {op.get_friendly_name(): op for op in seen.request.get_compiled_model().get_runtime_model().get_ops()}
    layers = []
    for info in seen.request.get_profiling_info():
        if info.status.name != "EXECUTED":
            continue
        op = runs.get(info.node_name)
        after, before = _microseconds(info), seen.skipped.get(info.node_name, 0)
        total = _total(after, seen.runs) - (_total(before, skip) if seen.skipped else 0)
        layers.append(
            {
                "name": info.node_name,
                "op": info.node_type,
                "kernel": info.exec_type,
                "ms": max(total, 0.0) / max(_counted(seen, skip), 1) / 1e3,
                "nodes": _originals(op),
                "inputs": [] if op is None else [_tensor(i.get_source_output()) for i in op.inputs()],
                "outputs": [] if op is None else [_tensor(o) for o in op.outputs()],
            }
        )
    return layers


def _counted(seen: _Seen, skip: int) -> int:
    return seen.runs - skip if seen.skipped else seen.runs


def _total(mean: int, runs: int) -> float:
    """Returns the microseconds of `runs` whose mean was cut to `mean`: in the middle of what it may have been."""
    return (mean + 0.5) * runs if mean else 0.0


def _microseconds(info: Any) -> int:
    seconds: float = info.real_time.total_seconds()
    return round(seconds * 1e6)


def _originals(op: Any) -> list[str]:
    if op is None or _ORIGINAL not in op.get_rt_info():
        return []
    value = op.get_rt_info()[_ORIGINAL]
    return [name for name in str(getattr(value, "value", value)).split(",") if name]


def _tensor(output: Any) -> dict[str, Any]:
    """Returns dtype and shape of an output, the shape None where it changes from run to run."""
    shape = output.get_partial_shape()
    sizes = [d.get_length() for d in shape] if shape.is_static else None
    return {"dtype": output.get_element_type().get_type_name(), "shape": sizes}
