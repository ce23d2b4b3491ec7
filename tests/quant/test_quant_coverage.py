from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quant_collect import TWO_IO, rows, two_stages

from edgemm.quant.collect import collect
from edgemm.quant.coverage import FEW_SAMPLES, Coverage, TensorCoverage


def seen(values, axis=-1, batch=7):
    tensor = TensorCoverage(axis, (len(values) + 1) // 2)
    for start in range(0, len(values), batch):
        tensor.observe(values[start : start + batch])
    return tensor


def report(**tensors):
    samples = max(t.seen for t in tensors.values())
    return Coverage(samples, tensors, {k: (k.partition("_")[0],) for k in tensors})


def normal(count=64, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 70), seed=st.integers(0, 99))
def test_numbers_do_not_depend_on_the_batch_size(batch, seed):
    values = normal(64, 5, 3, seed=seed)
    values[:, 2] = 0
    values[40, 1, 1] = np.nan
    assert seen(values, 0, batch).to_json() == seen(values, 0, 64).to_json()


def test_saturation_is_the_share_outside_the_range_of_the_first_half():
    values = np.tile(np.float32([-1, 1, 0, 0.5]), (40, 1))
    values[30, 0], values[31, 1], values[5, 2] = -3, 2, 0.9
    found = seen(values)
    assert (found.outside, found.later) == (2, 80)
    assert found.saturation == 2 / 80
    assert seen(values[:20]).saturation == 0


def test_a_drifting_sensor_is_named_with_its_share():
    drift = normal(64, 100) + np.linspace(0, 8, 64, dtype=np.float32)[:, None]
    warnings = report(audio_x=seen(drift), image_y=seen(normal(64, 1000))).warnings()
    (text,) = warnings
    share = seen(drift).saturation
    assert share > 0.1
    assert text == (
        "audio: the range of 1 of 1 tensors has not converged: the last half of the samples puts "
        f"{share:.2%} of 'audio_x' outside the range of the first half; give more, or more varied, samples."
    )


def test_dead_channels_and_constants():
    values = normal(64, 8, 6)
    values[:, 3:6] = 0
    constant = np.full((64, 4), 2.5, np.float32)
    found = report(image_a=seen(values, 0), image_b=seen(constant), image_c=seen(normal(64, 500)))
    assert (found.tensors["image_a"].channels, found.tensors["image_a"].dead) == (8, 3)
    assert found.warnings() == (
        "image: 1 of 3 tensors have channels that never change: 38% of 'image_a'.",
        "image: 1 of 3 tensors are constant over all samples and stay float: 'image_b'.",
    )


def test_nan_and_inf_are_counted_and_named():
    values = normal(64, 500)
    values[3, :2], values[40, 0] = np.nan, np.inf
    (text,) = report(audio_x=seen(values)).warnings()
    assert text == "audio: 1 of 1 tensors had NaN or Inf: 3 values of 'audio_x'; they are not counted."


def test_few_samples_are_said():
    few = report(audio_x=seen(np.tile(np.float32([0, 1]), (5, 1))))
    assert any(t.startswith(f"5 calibration samples, fewer than {FEW_SAMPLES}") for t in few.warnings())


def test_only_the_worst_are_named_and_the_rest_counted():
    drifts = {f"m_{i}": seen(normal(64, 50) + np.float32(i + 1) * np.arange(64)[:, None] / 64) for i in range(6)}
    (text,) = report(**drifts).warnings()
    assert text.startswith("m: the range of 6 of 6 tensors")
    assert "'m_5', " in text
    assert "'m_0'" not in text
    assert "and 3 more" in text


def test_merged_shards():
    values = normal(64, 8, 6)
    values[:, 1] = 0
    values[7, 3, 3] = np.inf
    parts = [seen(values[:32], 0), seen(values[32:], 0)]
    parts[0].merge(parts[1])
    whole = seen(values, 0)
    assert (parts[0].seen, parts[0].dead, parts[0].skipped, parts[0].later) == (64, whole.dead, 1, whole.later)
    np.testing.assert_array_equal(parts[0].lows, whole.lows)
    empty = TensorCoverage(0, 0)
    empty.merge(whole)
    assert (empty.dead, empty.channels) == (1, 8)


def test_a_number_of_channels_that_changes_is_not_followed():
    tensor = TensorCoverage(-1, 2)
    for size in (3, 4, 3):
        tensor.observe(normal(1, size))
    assert (tensor.channels, tensor.dead, tensor.constant) == (0, 0, False)


@pytest.mark.parametrize("count", [40, 400])
def test_collect_brings_it_along(count):
    graph, data = two_stages(), rows(count)
    for index in range(count):
        data[index]["x"][10:40] = 0.25
    table = collect(graph, TWO_IO, data, "minmax")
    found = table.coverage
    assert found.samples == count
    assert set(found.tensors) == set(table.ranges) == {"enc:x", "head:h"}
    assert found.modalities["head:h"] == ("head",)
    assert (found.tensors["enc:x"].channels, found.tensors["enc:x"].dead) == (64, 30)
    assert "enc: 1 of 1 tensors have channels that never change: 47% of 'enc:x'." in found.warnings()
    told = json.loads(json.dumps(table.to_json()))["coverage"]
    assert told["modalities"]["enc"]["dead_channels"] == 30 / 64
    assert told["warnings"] == list(found.warnings())
    assert found.tensors["enc:x"].lows.nbytes == 256
