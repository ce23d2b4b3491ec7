"""Whether the time depends on the input: found where it does, and not where the machine is restless."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser

from edgemm.profiling.spread import measure_spread, spread_json
from edgemm.runtime import open_session

LENGTHS = """<ir_version: 10, opset_import: ["": 20]>
lengths (float[batch,time] x) => (float[batch,time] y) { y = Erf(x) }"""


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return 1e-3 * np.random.default_rng(seed).normal(1, 0.02, (30, samples))


def test_noise_is_no_dependence() -> None:
    wrong = sum(spread_json(noise(8, seed), range(8))["input_dependent"] for seed in range(40))
    assert wrong <= 2


def test_a_slow_sample_is_found() -> None:
    times = noise(8)
    times[:, 5] += 0.2e-3
    found = spread_json(times, [0, 10, 20, 30, 40, 50, 60, 70])
    assert found["input_dependent"]
    assert found["slowest_sample"] == 50
    assert 0.05 < found["between_samples_ms"] < 0.09
    assert 0.01 < found["within_sample_ms"] < 0.03
    assert (found["samples"], found["repeats"]) == (8, 30)


def test_a_machine_that_becomes_slower_is_no_dependence() -> None:
    drifting = noise(8) * np.linspace(1, 3, 30)[:, None]
    assert not spread_json(drifting, range(8))["input_dependent"]


def test_equal_times() -> None:
    found = spread_json(np.full((5, 3), 2e-3), range(3))
    assert (found["between_samples_ms"], found["within_sample_ms"]) == (0, 0)
    assert not found["input_dependent"]


def test_a_model_whose_time_grows_with_its_input(tmp_path: Path) -> None:
    file = tmp_path / "lengths.onnx"
    file.write_bytes(onnx.parser.parse_model(LENGTHS).SerializeToString())
    feeds = [{"x": np.ones((1, size), np.float32)} for size in (8, 8, 1_000_000)]
    with open_session(file, threads=1) as session:
        found = measure_spread(lambda at: session.run(feeds[at]), len(feeds))
    assert found is not None
    assert found["input_dependent"]
    assert found["slowest_sample"] == 2
    assert found["slowest_ms"] > 2 * found["fastest_ms"]
    assert found["between_samples_ms"] > found["within_sample_ms"]


def test_one_sample_has_no_spread() -> None:
    assert measure_spread(lambda at: None, 1) is None


def test_samples_are_chosen_evenly() -> None:
    ran: list[int] = []
    found = measure_spread(ran.append, 100)
    assert found is not None
    assert set(ran) == {0, 14, 28, 42, 57, 71, 85, 99}
    assert ran[8:16] == ran[:8]
