"""Engines that run at the same time: what they give, how they fail, who decides that they do."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cache_property import calls, open_staged, play
from test_partition_property import graphs

from edgemm.bundle import CACHE, EngineEntry, Schedule, read_manifest, write_bundle
from edgemm.errors import BackendError, BundleError, DataError
from edgemm.runtime import FusionSession, SessionOptions, open_session, tune
from edgemm.runtime.chain import Step
from edgemm.runtime.latency import Latencies
from edgemm.runtime.schedule import KEPT, Chain, Lanes, divide, find_levels, open_lanes
from edgemm.runtime.turns import Timing

Bundle = Callable[..., Path]
PARALLEL = Schedule("parallel")


def engine(name: str, reads: str, gives: str) -> EngineEntry:
    return EngineEntry(name, (name,), name, tuple(reads.split()), tuple(gives.split()), {})


THREE = (
    engine("a", "x", "fa"),
    engine("ab", "fa y", "fab"),
    engine("c", "z", "fc"),
    engine("abc", "fab fc fa", "out"),
)


def feed_of(batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(batch, 4)).astype(np.float32),
        "audio": rng.normal(size=(batch, 2, 2)).astype(np.float32),
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() and a[n].shape == b[n].shape for n in a)


def beside(session: FusionSession, wrap: Callable[[Any], Any] = lambda step: step.run) -> FusionSession:
    """Returns a session on the engines of another one, those of a level at the same time."""
    steps = [step._replace(run=wrap(step)) for step in session._steps]
    return FusionSession(session.manifest, session.variant, session._engines, Chain(steps, Lanes(2, {})))


# -- levels and threads -----------------------------------------------------------------------------------------


def test_levels_read_only_from_levels_before() -> None:
    assert find_levels(THREE) == ((0, 2), (1,), (3,))
    assert find_levels(()) == ()


@pytest.mark.parametrize(
    ("shares", "cores", "expected"),
    [
        ({}, 4, {"a": 2, "c": 2}),
        ({"a": 3.0, "c": 1.0}, 6, {"a": 4, "c": 2}),
        ({"a": 0.99, "c": 0.01}, 8, {"a": 7, "c": 1}),
        ({"a": 0.99, "c": 0.01}, 2, {"a": 1, "c": 1}),
        ({}, 1, {"a": 1, "c": 1}),
    ],
)
def test_cores_are_divided_by_what_engines_take(
    shares: dict[str, float], cores: int, expected: dict[str, int]
) -> None:
    found = divide(Schedule("parallel", shares=shares), THREE, cores)
    assert found == {**expected, "ab": cores, "abc": cores}  # alone in their level
    assert divide(Schedule(shares=shares), THREE, cores) == dict.fromkeys(("a", "ab", "c", "abc"), cores)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=9), st.integers(1, 64))
def test_every_core_is_given_away_and_every_engine_has_one(shares: list[float], cores: int) -> None:
    engines = [engine(str(at), f"x{at}", f"y{at}") for at in range(len(shares))]
    given_shares = {str(at): share for at, share in enumerate(shares)}
    threads = list(divide(Schedule("parallel", shares=given_shares), engines, cores).values())
    assert sum(threads) == max(cores, len(shares))
    assert min(threads) >= 1
    lanes = open_lanes(PARALLEL, engines, cores)
    assert (lanes is None) == (cores == 1)


def test_one_thread_stays_one_thread() -> None:
    assert open_lanes(PARALLEL, THREE, threads=1) is None
    assert open_lanes(Schedule(), THREE, threads=8) is None
    assert open_lanes(PARALLEL, THREE[:2], threads=8) is None


# -- results ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(graph=graphs(), steps=calls())
def test_parallel_results_are_the_sequential_ones(graph: Any, steps: Any) -> None:
    """Bit for bit: every engine has the threads that it has in the sequential session, full run or not."""
    with tempfile.TemporaryDirectory() as folder:
        full = open_staged(graph, Path(folder), "off")[0]
        plain, content, marks = (beside(full) for _ in range(3))
        content.use_cache("content", steps[0][4])
        marks.use_cache("marks")
        for number, changed, buffers in play(graph, steps, (full, plain, content, marks)):
            expected = full.run(buffers)
            assert same(plain.run(buffers), expected)
            assert same(content.run(buffers), expected)
            assert same(marks.run(buffers, changed if number else None), expected)
        timed, seconds = plain.run_timed(buffers)
        assert timed.keys() == expected.keys()
        assert list(seconds) == [e.name for e in full.variant.engines]
        for session in (full, plain, content, marks):
            session.close()


def test_intermediate_tensors_are_dropped(fusion_bundle: Path) -> None:
    session = beside(open_session(fusion_bundle, cache="off"))
    values: dict[str, Any] = feed_of()
    session._chain.run(values, None)
    assert set(values) == {"image", "audio", "logits", "audio_energy"}


def test_tensor_lives_until_the_last_level_that_reads_it() -> None:
    """In turn 'c' is the last to read 'fa'; by level it runs before 'ab', which reads it as well."""
    engines = {
        "b": ("y", "fb", ""),
        "a": ("x", "fa", ""),
        "b2": ("fb", "fb2", "fb"),
        "ab": ("fa fb2", "fab", "fb2"),
        "c": ("fa", "fc", "fa"),
        "head": ("fab fc", "out", "fab fc"),
    }

    def add(feed: dict[str, int]) -> list[int]:
        return [1 + sum(feed.values())]

    steps = [
        Step(name, add, tuple(reads.split()), (gives,), tuple(done.split()), None, None, False)  # type: ignore[arg-type]
        for name, (reads, gives, done) in engines.items()
    ]
    for chain in (Chain(steps), Chain(steps, Lanes(2, {"c": 9.0}))):
        values: dict[str, Any] = {"x": 10, "y": 100}
        chain.run(values, None)
        chain.close()
        assert values == {"x": 10, "y": 100, "out": 127}


def test_encoders_run_at_the_same_time_and_the_head_after_them(fusion_bundle: Path) -> None:
    both, order = threading.Barrier(2, timeout=20), []

    def wrap(step: Any) -> Any:
        def run(feed: Any) -> Any:
            if step.name != "fusion":
                both.wait()  # for the other one
            order.append(step.name)
            return step.run(feed)

        return run

    full = open_session(fusion_bundle, cache="off")
    session = beside(full, wrap)
    for cache in ("off", "content", "marks"):
        session.use_cache(cache)
        order.clear()
        feed = feed_of(seed=3)
        assert same(session.run(feed), full.run(feed))
        assert set(order[:2]) == {"image", "audio"}
        assert order[2:] == ["fusion"]


def test_many_threads_call_one_session(fusion_bundle: Path) -> None:
    full = open_session(fusion_bundle, cache="off")
    session = beside(full)
    feeds = [feed_of(1 + seed % 3, seed) for seed in range(24)]
    expected = [full.run(feed) for feed in feeds]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert all(map(same, pool.map(session.run, feeds), expected))
    session.close()


# -- failures ---------------------------------------------------------------------------------------------------

PICK = "{0} (float[batch,2] x{0}, int64[k] i{0}) => (float[k,2] f{0}) {{ f{0} = Gather<axis=0>(x{0}, i{0}) }}"
JOIN = "head (float[k,2] fa, float[k,2] fb) => (float[k,2] y) { y = Add(fa, fb) }"


@pytest.mark.parametrize(("bad", "named"), [("a", "a"), ("b", "b"), ("ab", "a")])
def test_failing_engine_surfaces_once_and_the_session_goes_on(make_bundle: Bundle, bad: str, named: str) -> None:
    full = open_session(make_bundle({"a": PICK.format("a"), "b": PICK.format("b"), "head": JOIN}), cache="off")
    ended = []

    def wrap(step: Any) -> Any:
        def run(feed: Any) -> Any:
            try:
                return step.run(feed)
            finally:
                ended.append(step.name)

        return run

    session = beside(full, wrap)
    x = np.arange(4, dtype=np.float32).reshape(2, 2)
    good = {"xa": x, "xb": x, "ia": np.array([0]), "ib": np.array([1])}
    for cache in ("off", "marks"):
        session.use_cache(cache)
        ended.clear()
        with pytest.raises(BackendError, match=rf"engine '{named}\.onnx' failed"):
            session.run({**good, **{f"i{name}": np.array([9]) for name in bad}})
        assert sorted(ended) == ["a", "b"]  # nothing is still running, and the head never ran
        assert same(session.run(good), full.run(good))
    session.close()


def test_closed_session_says_so_and_leaves_no_thread(fusion_bundle: Path) -> None:
    session = open_session(fusion_bundle, cache="off", threads=2, options=SessionOptions(schedule=PARALLEL))
    before = {t for t in threading.enumerate() if t.name.startswith("edgemm")}
    session.run(feed_of())
    mine = {t for t in threading.enumerate() if t.name.startswith("edgemm")} - before
    assert len(mine) == 1  # beside the calling one
    session.close()
    session.close()
    with pytest.raises(BundleError, match="closed"):
        session.run(feed_of())
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()


def test_closing_while_calls_are_under_way_hangs_nobody(fusion_bundle: Path) -> None:
    session = open_session(fusion_bundle, cache="off", threads=2, options=SessionOptions(schedule=PARALLEL))
    failures: list[BaseException] = []

    def call() -> None:
        try:
            while True:
                session.run(feed_of())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    session.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert all(isinstance(error, BundleError) for error in failures)
    assert len(failures) == 4


def test_interrupt_in_the_calling_thread_is_not_swallowed() -> None:
    lanes, done = Lanes(1, {}), []

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lanes.run([interrupted, lambda: done.append(1)])
    assert done == [1]
    lanes.close()
    assert lanes.run([lambda: 1, lambda: 2]) == [1, 2]  # in the calling thread


# -- who decides ------------------------------------------------------------------------------------------------


def with_schedule(bundle: Path, schedule: Schedule) -> Path:
    manifest = read_manifest(bundle)
    shipped, *others = manifest.variants
    path = bundle.with_name("scheduled.edgemm")
    files = {name: (bundle / name).read_bytes() for name in manifest.files}
    write_bundle(path, replace(manifest, variants=(replace(shipped, schedule=schedule), *others), files={}), files)
    return path


def is_parallel(session: FusionSession) -> bool:
    return session.schedule.order == "parallel"


def test_bundle_decides_and_the_caller_overrides(fusion_bundle: Path) -> None:
    path = with_schedule(fusion_bundle, PARALLEL)
    assert read_manifest(path).shipped[0].schedule == PARALLEL
    assert not is_parallel(open_session(fusion_bundle, threads=2))
    assert is_parallel(open_session(path, threads=2))
    assert not is_parallel(open_session(path, threads=1))
    assert not is_parallel(open_session(path, threads=2, options=SessionOptions(schedule=Schedule())))
    assert is_parallel(open_session(fusion_bundle, threads=2, options=SessionOptions(schedule=PARALLEL)))


def test_results_of_two_schedules_are_close(fusion_bundle: Path) -> None:
    """An engine with fewer threads may add up in another order."""
    one = open_session(fusion_bundle, threads=2, cache="off")
    two = open_session(fusion_bundle, threads=2, cache="off", options=SessionOptions(schedule=PARALLEL))
    feed = feed_of(64)
    for name, value in one.run(feed).items():
        np.testing.assert_allclose(two.run(feed)[name], value, rtol=1e-5, atol=1e-6)


def pretend(monkeypatch: pytest.MonkeyPatch, ratios: dict[str, float]) -> list[str]:
    """Lets schedules take as long as `ratios` says; returns what is compared, as it goes on."""
    compared: list[str] = []

    def timed(sessions: dict[str, FusionSession], feeds: Any, *, seconds: float) -> dict[str, Timing]:
        compared.append(str(sessions["other"].schedule))
        times = {"one": 1e-3, "other": 1e-3 * ratios[compared[-1]]}
        rng = np.random.default_rng(0)
        return {
            name: Timing(Latencies(t * rng.normal(1, 0.005, 200)), {}, Latencies(np.full(9, t)))
            for name, t in times.items()
        }

    monkeypatch.setattr("edgemm.runtime.tuning.time_sessions", timed)
    return compared


@pytest.mark.parametrize(
    ("parallel", "spinning", "expected"),
    [
        (0.99, 0.99, "sequential"),  # noise
        (0.80, 0.79, "parallel"),
        (0.80, 0.70, "parallel, spinning"),
        (1.20, 0.90, "sequential, spinning"),
        (1.20, 2.80, "sequential"),
    ],
)
def test_plainer_schedule_stays_unless_another_is_surely_faster(
    fusion_bundle: Path, monkeypatch: pytest.MonkeyPatch, parallel: float, spinning: float, expected: str
) -> None:
    ratios = {"parallel": parallel, "parallel, spinning": spinning, "sequential, spinning": spinning}
    compared = pretend(monkeypatch, ratios)
    found = tune(fusion_bundle, feed_of(), threads=2)
    assert str(found.schedule) == expected
    assert found.kept
    assert found.ratios["parallel"] == pytest.approx(parallel, rel=0.01)
    assert len(compared) == 2
    session = open_session(fusion_bundle, threads=2)
    assert is_parallel(session) == expected.startswith("parallel")
    assert (session.schedule.idle == "spin") == expected.endswith("spinning")
    if found.schedule.order == "parallel":
        assert set(found.schedule.shares) == {"image", "audio", "fusion"}


def test_what_was_kept_is_for_one_machine_and_may_be_damaged(fusion_bundle: Path) -> None:
    file = fusion_bundle / CACHE / KEPT
    good = json.dumps({"machine": _here(), "schedules": {"cpu-fp32": PARALLEL.to_json()}})
    file.parent.mkdir(exist_ok=True)
    for text, expected in (
        (good, True),
        (good.replace(_here()[:8], "Other"), False),
        (good.replace('"parallel"', '"backwards"'), False),
        (good.replace("cpu-fp32", "cpu-int8"), False),
        (good[:-9], False),
        ("[]", False),
        ('{"schedules": 3}', False),
        ("", False),
    ):
        file.write_text(text)
        assert is_parallel(open_session(fusion_bundle, threads=2)) == expected


def _here() -> str:
    from edgemm.runtime.machine import describe_machine

    return describe_machine().summary()


def test_tuning_measures_and_what_it_finds_can_be_given(
    fusion_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_MAX_ROUNDS": 2, "_MIN_ROUNDS": 2, "_LONGEST": 0.001}.items():
        monkeypatch.setattr(f"edgemm.runtime.turns.{name}", value)
    found = tune(fusion_bundle, feed_of(), threads=2, seconds=0.01)
    assert found.ratios["sequential"] == 1.0
    assert set(found.ratios) >= {"sequential", "parallel"}
    assert all(value > 0 for value in found.ratios.values())
    options = SessionOptions(schedule=found.schedule)
    assert open_session(fusion_bundle, options=options).run(feed_of())


@pytest.mark.parametrize("schedule", ["parallel", Schedule("parallel", shares={"imge": 2.0})])
def test_a_schedule_for_other_engines_is_refused(fusion_bundle: Path, schedule: Any) -> None:
    with pytest.raises(DataError, match=r"options\.schedule") as caught:
        open_session(fusion_bundle, options=SessionOptions(schedule=schedule))
    assert ("Schedule('parallel')" in caught.value.hint) or ("did you mean 'image'" in caught.value.hint)


def test_tuning_takes_time(fusion_bundle: Path) -> None:
    with pytest.raises(DataError, match="got 0 seconds"):
        tune(fusion_bundle, feed_of(), seconds=0)


def test_one_engine_or_one_thread_has_nothing_to_choose(fusion_bundle: Path, make_bundle: Bundle) -> None:
    alone = make_bundle({"view": "view (float[batch,2] x) => (float[batch,2] y) { y = Exp(x) }"})
    x = np.zeros((1, 2), np.float32)
    for path, feed, threads in ((alone, {"x": x}, 2), (fusion_bundle, feed_of(), 1)):
        found = tune(path, feed, threads=threads)
        assert (found.schedule, dict(found.ratios), found.kept) == (Schedule(), {}, False)
        assert not (path / CACHE / KEPT).exists()


# -- the manifest -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Schedule(), Schedule("parallel", "spin", {"image": 0.25, "audio": 3.0})])
def test_schedules_are_json(schedule: Schedule) -> None:
    assert Schedule.from_json(json.loads(json.dumps(schedule.to_json())), "x") == schedule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "backwards"}, "'x.order' is 'backwards', expected one of sequential, parallel"),
        ({"idle": None}, "'x.idle' is None"),
        ({"shares": {"image": 0}}, "'x.shares' is .*expected positive numbers"),
        ({"shares": {"image": True}}, "'x.shares'"),
        ({"shares": {"image": float("nan")}}, "'x.shares'"),
        ({"shares": 3}, "'x.shares' is 3"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    field = next(iter(change))
    with pytest.raises(DataError, match=f"Schedule.{field}: got"):
        Schedule(**change)
    with pytest.raises(BundleError, match=message):
        Schedule.from_json({**PARALLEL.to_json(), **change}, "x")
    with pytest.raises(BundleError, match="order"):
        Schedule.from_json("parallel", "x")
