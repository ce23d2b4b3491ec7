"""OpenTelemetry: what the real SDK collects from a session."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from edgemm.errors import MissingExtraError
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime.otel import observe_session


def collected(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: list(metric.data.data_points) for metric in scope.metrics}


def run(session: FusionSession, calls: int) -> None:
    feed = {"image": np.ones((1, 4), np.float32), "audio": np.ones((1, 2, 2), np.float32)}
    for _ in range(calls):
        session.run(feed, changed={"image"})


def test_the_sdk_collects_what_the_session_reports(fusion_bundle: Path) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    with open_session(fusion_bundle, cache="marks") as session:
        observe_session(session, provider.get_meter("test"))
        run(session, 70)
        found = collected(reader)
        (runs,) = found["edgemm.runs"]
        assert runs.value == 70
        assert dict(runs.attributes) == {"model": "tiny", "variant": "cpu-fp32"}
        quantiles = {p.attributes["quantile"]: p.value for p in found["edgemm.run.duration"]}
        assert set(quantiles) == {"p50", "p90"}
        assert 0 < quantiles["p50"] <= quantiles["p90"] < 10
        reused = {p.attributes["stage"]: p.value for p in found["edgemm.stage.reuses"]}
        assert reused == {"image": 0, "audio": 69, "fusion": 0}
        assert {p.value for p in found["edgemm.stage.reusable_calls"]} == {70}
        assert found["edgemm.cache.size"][0].value > 0
        assert found["edgemm.failures"][0].value == 0
        before = found["edgemm.run.time"][0].value
        run(session, 5)
        again = collected(reader)
        assert again["edgemm.runs"][0].value == 75
        assert again["edgemm.run.time"][0].value > before > 0
    provider.shutdown()


def test_without_the_package(fusion_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    with open_session(fusion_bundle) as session, pytest.raises(MissingExtraError) as caught:
        observe_session(session)
    assert caught.value.hint == "pip install 'edgemm[otel]'"
