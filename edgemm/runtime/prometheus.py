"""What sessions report, as Prometheus reads it: text exposition format 0.0.4.

An app serves the text under `/metrics` with the content type `CONTENT_TYPE`:

    body = prometheus_text(session.report())

https://github.com/prometheus/docs/blob/main/docs/instrumenting/exposition_formats.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from edgemm.errors import DataError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS = tuple(10.0 ** (k / 5) for k in range(-25, 6))
"""Upper bounds in seconds: five per decade from 10 µs to 10 s, the same in every scrape. They are edges of the
histogram's buckets."""

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_OWN = ("model", "variant", "stage", "le")


class _Family(NamedTuple):
    name: str
    kind: str
    help: str


_RUN = _Family("edgemm_run_duration_seconds", "histogram", "Time from the call of a session to its outputs.")
_FAILED = _Family("edgemm_run_failures_total", "counter", "Calls of a session that raised an error.")
_REUSED = _Family("edgemm_stage_reuses_total", "counter", "Times that the outputs of an engine were reused.")
_REUSABLE = _Family(
    "edgemm_stage_reusable_calls_total", "counter", "Calls that could have reused the outputs of an engine."
)
_CACHE = _Family("edgemm_cache_bytes", "gauge", "Bytes held for reuse: outputs of engines and copies of inputs.")


def prometheus_text(*reports: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> str:
    """Returns the text for any number of sessions, told apart by the labels `model` and `variant`.

    Args:
        *reports: What `session.report()` returned. Two sessions with the same model and variant need different
            `labels`, so give each a call of its own.
        labels: Further labels of every sample, `{"device": "gate-3"}` for example.

    Raises:
        DataError: A label's name is not allowed, or two reports have the same labels.
    """
    more = dict(labels or {})
    for name in more:
        if not _LABEL.fullmatch(name) or name.startswith("__") or name in _OWN:
            raise DataError(
                f"label {name!r}: expected letters, digits and _, none of {', '.join(_OWN)}.",
                hint="https://prometheus.io/docs/concepts/data_model says what a label may be called",
            )
    own = [{"model": str(r["model"]), "variant": str(r["variant"]), **more} for r in reports]
    for at, one in enumerate(own):
        if one in own[:at]:
            raise DataError(
                f"two sessions are both model '{one['model']}', variant '{one['variant']}'.",
                hint="call prometheus_text once for each, with labels= that tell them apart",
            )
    pairs = list(zip(reports, own, strict=True))
    lines: list[str] = []
    for family, samples in (
        (_RUN, [s for report, known in pairs for s in _histogram(report["latency"], known)]),
        (_FAILED, [("", known, report["latency"]["failed"]) for report, known in pairs]),
        (_REUSED, list(_stages(pairs, "reused"))),
        (_REUSABLE, list(_stages(pairs, "of_calls"))),
        (_CACHE, [("", known, report["cache"]["bytes"]) for report, known in pairs]),
    ):
        if samples:
            lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
            lines += [f"{family.name}{suffix}{_labels(named)} {value!r}" for suffix, named, value in samples]
    return "".join(f"{line}\n" for line in lines)


_Sample = tuple[str, dict[str, str], float]


def _histogram(latency: Mapping[str, Any], known: Mapping[str, str]) -> Iterator[_Sample]:
    """Yields cumulative buckets, `+Inf` among them, sum and count."""
    edges, counts = latency["histogram"]["edges_ms"], latency["histogram"]["counts"]
    for bound in _BOUNDS:
        slack = bound * 1e3 * (1 + 1e-5)  # edges are rounded to six digits
        behind = sum(count for edge, count in zip(edges[1:], counts, strict=True) if edge <= slack)
        yield "_bucket", {**known, "le": f"{bound:.12g}"}, behind
    yield "_bucket", {**known, "le": "+Inf"}, latency["runs"]
    yield "_sum", dict(known), latency["total_ms"] / 1e3
    yield "_count", dict(known), latency["runs"]


def _stages(pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, str]]], key: str) -> Iterator[_Sample]:
    for report, known in pairs:
        for stage in report["stages"]:
            yield "", {**known, "stage": str(stage["name"])}, stage[key]


def _labels(named: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in named.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
