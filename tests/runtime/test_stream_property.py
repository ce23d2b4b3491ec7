"""Random arrivals under a clock that the test sets: whatever comes when, the rules of a stream hold."""

from __future__ import annotations

import functools
import itertools
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm.backends import get_backend
from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant
from edgemm.errors import StreamError
from edgemm.runtime import FusionSession
from edgemm.runtime.opening import open_variant
from edgemm.runtime.stream import Result
from edgemm.tensors import IOSpec, TensorSpec

ENGINES = {
    "image": ("image", "i", "{ i = Abs(image) }"),
    "audio": ("audio", "a", "{ a = Abs(audio) }"),
    "head": ("i, float[batch,1] a", "used", "{ used = Concat<axis=1>(i, a) }"),
}
"""A model that tells which samples went in: `used` is [image, audio]; samples are numbers above 0."""


@functools.cache
def session() -> FusionSession:
    folder = Path(tempfile.mkdtemp())
    spec = {n: TensorSpec(n, "float32", ("batch", 1)) for n in ("image", "audio", "i", "a")}
    spec["used"] = TensorSpec("used", "float32", ("batch", 2))
    stages, entries = [], []
    for name, (takes, gives, body) in ENGINES.items():
        text = f'<ir_version: 10, opset_import: ["" : 20]>\n{name} (float[batch,1] {takes}) => '
        text += f"(float[batch,{spec[gives].shape[1]}] {gives}) {body}"
        get_backend("onnxruntime").build(ir.from_onnx_text(text), "cpu", folder / f"{name}.onnx")
        inputs = ("i", "a") if name == "head" else (name,)
        stages.append(StageEntry(name, (name,), "", tuple(spec[i] for i in inputs), (spec[gives],), 1, 0))
        entries.append(EngineEntry(name, (name,), f"{name}.onnx", inputs, (gives,), {"fp32": 1}))
    variant = Variant("cpu-fp32", "cpu", "onnxruntime", "fp32", "staged", tuple(entries), {"fp32": 3}, 0)
    io = IOSpec((spec["image"], spec["audio"]), (spec["used"],), {"image": "image", "audio": "audio"})
    return open_variant(folder, Manifest("used", io, tuple(stages), (), (variant,)), variant, threads=1)


FILLS = ("fail", "last", "zeros", "constant:0.5")
VALUES = {"zeros": 0.0, "constant:0.5": 0.5}

policies = st.fixed_dictionaries(
    {
        "trigger": st.sampled_from(("image", "audio", "any", 5.0)),
        "optional": st.dictionaries(st.sampled_from(("image", "audio")), st.sampled_from(FILLS)),
        "window": st.sampled_from((None, 0.0, 0.1, {"audio": 0.1}, {"image": 0.3, "audio": math.inf})),
        "max_age": st.sampled_from((None, 0.2, {"audio": 0.4}, {"image": 0.0})),
        "offset": st.sampled_from(({}, {"audio": -0.25}, {"image": 0.5})),
        "timeout": st.sampled_from((None, 0.0, 0.15)),
        "queue": st.integers(1, 4),
        "drop": st.sampled_from(("keep-newest", "drop-oldest", "block")),
    }
)
waits = st.sampled_from((0.0, 0.0, 0.01, 0.1, 0.25, 1.0))
pushes = st.tuples(
    st.just("push"),
    st.sampled_from(("image", "audio")),
    st.sampled_from((0.0, 0.0, 0.05, 0.2, 0.5, 3.0)),
    st.sampled_from((False,) * 9 + (True,)),
)
events = st.tuples(
    waits, pushes | pushes | st.just(("poll",)) | st.sampled_from((("poll",), ("infer",), ("back",)))
)


@settings(max_examples=150, deadline=None)
@given(policy=policies, schedule=st.lists(events, min_size=5, max_size=60))
def test_the_rules_of_a_stream(policy: dict[str, Any], schedule: list[Any]) -> None:
    clock = [1000.0]
    stream = session().stream(clock=lambda: clock[0], **policy)
    at: dict[float, float] = {}
    pushed = {"image": 0, "audio": 0}
    results: list[Result] = []
    refused = 0
    numbers = itertools.count(1)
    for wait, (event, *details) in schedule:
        clock[0] += wait
        if event == "push":
            modality, lag, nan = details
            if stream._sync.full(modality):
                continue  # it would wait for ever: there is one thread
            number = float(next(numbers))
            captured = clock[0] - lag
            at[number] = captured + policy["offset"].get(modality, 0.0)
            value = np.full(1, np.nan if nan else number, np.float32)
            stream.push(modality, value, t=captured if lag else None)
            pushed[modality] += 1
        elif event == "back":
            clock[0] -= 7.0
        elif event == "poll":
            result = stream.poll()
            results += [result] if result is not None else []
        else:
            try:
                results.append(stream.infer())
            except StreamError:
                refused += 1
    stream.end()
    results += list(stream)
    check_counters(stream.counters, results, pushed)
    check_order(results)
    for result in results:
        check_set(result, policy, at)
    stream.close()
    for modality, counters in stream.counters.modalities.items():
        assert counters.pending == 0
        assert (
            counters.pushed
            == pushed[modality]
            == counters.used + counters.dropped + counters.late + (counters.rejected)
        )


def check_counters(counters: Any, results: list[Result], pushed: dict[str, int]) -> None:
    assert counters.results == len(results)
    assert counters.failed == counters.callback_errors == 0
    assert [r.number for r in results] == list(range(len(results)))
    for modality, c in counters.modalities.items():
        assert c.pushed == pushed[modality]
        assert c.pushed == c.used + c.dropped + c.late + c.rejected + c.pending
        assert c.stale == sum(modality in r.stale for r in results)
        assert c.filled == sum(modality in r.filled for r in results)
        column = ("image", "audio").index(modality)
        samples = {r.outputs["used"][0, column] for r in results if modality not in r.filled}
        assert c.used == len(samples)


def check_order(results: list[Result]) -> None:
    """Nothing goes back in time, but where a clock was set back."""
    for a, b in itertools.pairwise(results):
        assert (a.epoch, a.time) <= (b.epoch, b.time)
        for column, modality in enumerate(("image", "audio")):
            if modality not in (*a.filled, *b.filled):
                assert a.outputs["used"][0, column] <= b.outputs["used"][0, column]


def check_set(result: Result, policy: dict[str, Any], at: dict[float, float]) -> None:
    assert set(result.encoded) | set(result.cached) == set(ENGINES)
    assert not set(result.encoded) & set(result.cached)
    for column, modality in enumerate(("image", "audio")):
        fill = policy["optional"].get(modality, "fail")
        used = float(result.outputs["used"][0, column])
        window, oldest = (
            value.get(modality) if isinstance(value := policy[name], dict) else value
            for name in ("window", "max_age")
        )
        age = result.ages[modality]
        if modality in result.filled:
            assert used == VALUES[fill]
            assert age is None
            continue
        assert age == result.time - at[used]
        if modality in result.stale:
            assert fill == "last"
            assert age >= 0
            near = age <= (math.inf if window is None else window)
            assert not (near and (oldest is None or age <= oldest))
            continue
        assert age >= 0 if window is None else abs(age) <= window
        assert oldest is None or age <= oldest
