"""What a session reports, as OpenTelemetry metrics: the extra `otel`.

The instruments are asynchronous: they are read when the app's exporter collects, and cost a call nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgemm import __version__
from edgemm._optional import require

if TYPE_CHECKING:
    from edgemm.runtime.fusion import FusionSession


def observe_session(session: FusionSession, meter: Any = None) -> None:
    """Makes the instruments of a session: they tell what `session.report()` does, for as long as the app collects.

    | instrument | kind | attributes |
    |---|---|---|
    | `edgemm.runs`, `edgemm.failures` | counter | `model`, `variant` |
    | `edgemm.run.time` (s, the sum over calls) | counter | `model`, `variant` |
    | `edgemm.run.duration` (s) | gauge | and `quantile`: `p50`, `p90` ..., from enough calls on |
    | `edgemm.stage.reuses`, `edgemm.stage.reusable_calls` | counter | and `stage` |
    | `edgemm.cache.size` (By) | gauge | `model`, `variant` |

    Args:
        session: Held until the meter's provider is shut down.
        meter: From the app's `MeterProvider`; None takes the global one.

    Raises:
        MissingExtraError: `opentelemetry-api` is not installed.
    """
    metrics = require("opentelemetry.metrics", extra="otel", why="observe a session")
    if meter is None:
        meter = metrics.get_meter("edgemm", __version__)
    own = {"model": session.manifest.name, "variant": session.variant.name}

    def observed(read: Callable[[dict[str, Any]], Iterator[tuple[float, dict[str, str]]]]) -> list[Any]:
        def callback(options: Any) -> list[Any]:
            return [metrics.Observation(value, {**own, **more}) for value, more in read(session.report())]

        return [callback]

    counter, gauge = meter.create_observable_counter, meter.create_observable_gauge
    counter("edgemm.runs", observed(_runs), unit="{run}", description="Calls that returned outputs.")
    counter("edgemm.failures", observed(_failures), unit="{run}", description="Calls that raised an error.")
    counter("edgemm.run.time", observed(_time), unit="s", description="Time that calls took, in all.")
    gauge("edgemm.run.duration", observed(_quantiles), unit="s", description="How long a call takes.")
    counter("edgemm.stage.reuses", observed(_reused), unit="{run}", description="Times that it was reused.")
    counter(
        "edgemm.stage.reusable_calls",
        observed(_reusable),
        unit="{run}",
        description="Calls that could have reused it.",
    )
    gauge("edgemm.cache.size", observed(_cache), unit="By", description="Bytes held for reuse.")


_Values = Iterator[tuple[float, dict[str, str]]]


def _runs(report: dict[str, Any]) -> _Values:
    yield report["latency"]["runs"], {}


def _failures(report: dict[str, Any]) -> _Values:
    yield report["latency"]["failed"], {}


def _time(report: dict[str, Any]) -> _Values:
    yield report["latency"]["total_ms"] / 1e3, {}


def _quantiles(report: dict[str, Any]) -> _Values:
    for key, value in report["latency"].items():
        if key.startswith("p") and value is not None:
            yield value / 1e3, {"quantile": key.removesuffix("_ms").replace("_", ".")}


def _reusable(report: dict[str, Any]) -> _Values:
    for stage in report["stages"]:
        yield stage["of_calls"], {"stage": stage["name"]}


def _reused(report: dict[str, Any]) -> _Values:
    for stage in report["stages"]:
        yield stage["reused"], {"stage": stage["name"]}


def _cache(report: dict[str, Any]) -> _Values:
    yield report["cache"]["bytes"], {}
