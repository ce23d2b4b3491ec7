from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgemm.errors import QuantizationError
from edgemm.quant.arithmetic import activation_scale
from edgemm.quant.calibrators import CALIBRATORS, calibrator_class, squared_error
from edgemm.quant.histogram import HALF, Histogram

values = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def result(name, batches):
    calibrator = calibrator_class(name)()
    for batch in batches:
        calibrator.observe(batch)
    return calibrator.range()


@pytest.mark.parametrize("name", CALIBRATORS)
@settings(max_examples=40, deadline=None)
@given(array=values, seed=st.integers(0, 1000), cuts=st.lists(st.integers(1, 5), max_size=3))
def test_independent_of_order_batch_size_and_merging(name, array, seed, cuts):
    whole = result(name, [array])
    order = np.random.default_rng(seed).permutation(len(array))
    assert result(name, [array[i : i + 1] for i in order]) == whole
    parts = np.split(array[order], sorted({min(c, len(array)) for c in cuts}))
    first = calibrator_class(name)()
    for part in parts:
        other = calibrator_class(name)()
        if len(part):
            other.observe(part)
        first.merge(other)
    assert first.range() == whole


@pytest.mark.parametrize("name", CALIBRATORS)
@settings(max_examples=20, deadline=None)
@given(array=values, cut=st.integers(0, 6))
def test_saved_state_goes_on_as_if_it_had_never_stopped(name, array, cut):
    whole = result(name, [array])
    first = calibrator_class(name)()
    first.observe(array[:cut] if cut else array[:0].reshape(0, 1))
    again = calibrator_class(name)()
    again.observe(np.float32([[1e9, -1e9]]))  # what restore must forget
    again.restore({k: v.copy() for k, v in first.state().items()})
    assert all(v.dtype.kind in "iufU" for v in first.state().values())
    if len(array[cut:]):
        again.observe(array[cut:])
    assert again.range() == whole


@pytest.mark.parametrize("name", CALIBRATORS)
@settings(max_examples=40, deadline=None)
@given(array=values)
def test_range_holds_zero_and_stays_inside_what_was_seen(name, array):
    found = result(name, [array])
    assert found.low <= 0 <= found.high
    assert found.seen_low == array.min()
    assert found.seen_high == array.max()
    assert found.low >= min(found.seen_low, 0)
    assert found.high <= max(found.seen_high, 0)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_nan_inf_blank_and_constant(name):
    assert result(name, [np.full((2, 3), np.nan, np.float32)]) is None
    noisy = np.array([[1.0, np.nan, -2.0, np.inf]], np.float32)
    assert result(name, [noisy]) == result(name, [np.array([[1.0, -2.0]], np.float32)])
    blank = result(name, [np.zeros((2, 3), np.float32)])
    assert (blank.low, blank.high) == (0, 0)
    constant = result(name, [np.full((2, 3), -3.5, np.float32)])
    assert (constant.low, constant.high) == (-3.5, 0)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(values, min_size=1, max_size=4))
def test_merged_histograms_count_exactly_what_one_would(parts):
    flat = np.concatenate([p.ravel() for p in parts])
    one = Histogram()
    one.add(flat)
    merged = Histogram()
    for part in parts:
        other = Histogram()
        other.add(part)
        merged.merge(other)
    assert merged.exponent == one.exponent
    np.testing.assert_array_equal(merged.counts, one.counts)
    direct, _ = np.histogram(flat.astype(np.float64), one.edges())
    np.testing.assert_array_equal(one.counts, direct)
    assert one.counts.sum() == flat.size


def test_zeros_do_not_widen_the_range():
    zeros, small, one = Histogram(), Histogram(), Histogram()
    zeros.add(np.zeros(3, np.float32))
    small.add(np.float32([0.25]))
    one.add(np.float32([0, 0.25, 0, 0]))
    zeros.merge(small)
    assert zeros.exponent == one.exponent == -1
    np.testing.assert_array_equal(zeros.counts, one.counts)


def test_memory_is_constant():
    histogram = Histogram()
    for scale in (1e-3, 1.0, 1e6):
        histogram.add(np.random.default_rng(0).normal(size=10_000) * scale)
    assert histogram.counts.shape == (2 * HALF,)


def long_tailed():
    rng = np.random.default_rng(0)
    array = rng.normal(size=(40, 5000)).astype(np.float32)
    array[3, 7] = 300.0
    return array


@pytest.mark.parametrize(
    ("name", "most"), [("percentile", 6), ("entropy", 30), ("mse", 299), ("moving-average", 15)]
)
def test_one_outlier_does_not_set_the_range(name, most):
    found = result(name, [long_tailed()])
    assert found.seen_high == 300.0
    assert 2.5 < found.high < most
    assert -15 < found.low < -2.5


def test_minmax_keeps_the_outlier():
    assert result("minmax", [long_tailed()]).high == 300.0


def test_mse_beats_minmax_and_a_dense_search_hardly_beats_mse():
    rng = np.random.default_rng(1)
    array = rng.laplace(size=(20, 4000)).astype(np.float32)

    def error(low, high):
        scale = (high - low) / 255
        q = np.clip(np.rint(array / scale), np.rint(low / scale), np.rint(high / scale))
        return float(((q * scale - array) ** 2).mean())

    found = result("mse", [array])
    minmax = result("minmax", [array])
    best = min(error(-t, t) for t in np.linspace(2, float(np.abs(array).max()), 200))
    assert error(found.low, found.high) < error(minmax.low, minmax.high)
    assert error(found.low, found.high) < 1.05 * best


def test_entropy_survives_a_relu():
    array = np.maximum(np.random.default_rng(0).normal(size=(20, 5000)), 0).astype(np.float32)
    found = result("entropy", [array])
    assert found.low == 0
    assert found.high > 2.5


def test_percentile_is_the_percentile():
    array = np.random.default_rng(0).uniform(-1, 3, size=(10, 100_000)).astype(np.float32)
    found = result("percentile", [array])
    assert found.high == pytest.approx(np.quantile(array, 0.99995), abs=4 / HALF * 2)
    assert found.low == pytest.approx(np.quantile(array, 0.00005), abs=4 / HALF * 2)


def quantized(array, found):
    scale = activation_scale(found)
    q = np.clip(np.rint(array / scale.scale) + scale.zero_point, 0, 255)
    return (q - scale.zero_point) * scale.scale


def error(array, found):
    return float(((quantized(array.astype(np.float64), found) - array) ** 2).mean())


@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform", "relu", "outlier"])
def test_auto_is_never_worse_than_the_calibrators_it_chooses_from(kind):
    rng = np.random.default_rng(5)
    array = {
        "normal": lambda: rng.normal(size=(20, 5000)),
        "laplace": lambda: rng.laplace(size=(20, 5000)),
        "uniform": lambda: rng.uniform(-1, 3, size=(20, 5000)),
        "relu": lambda: np.maximum(rng.normal(size=(20, 5000)), 0),
        "outlier": lambda: long_tailed(),
    }[kind]().astype(np.float32)
    chosen = result("auto", [array])
    errors = {name: error(array, result(name, [array])) for name in CALIBRATORS if name != "auto"}
    assert error(array, chosen) <= 1.01 * min(errors.values())
    assert replace(chosen, by="") == result(chosen.by, [array])


def test_auto_keeps_all_of_a_uniform_tensor_and_not_all_of_a_long_tail():
    array = np.random.default_rng(0).uniform(-1, 3, size=(10, 10_000)).astype(np.float32)
    assert result("auto", [array]).by in ("minmax", "mse", "percentile")
    assert result("auto", [array]).high > 2.99
    tailed = np.random.default_rng(1).standard_t(3, size=(40, 5000)).astype(np.float32)
    assert result("auto", [tailed]).high < 0.8 * tailed.max()
    assert error(tailed, result("auto", [tailed])) < 0.8 * error(tailed, result("minmax", [tailed]))


@pytest.mark.parametrize("kind", ["normal", "relu", "outlier"])
def test_error_from_the_histogram_is_the_error(kind):
    rng = np.random.default_rng(2)
    array = long_tailed() if kind == "outlier" else rng.normal(size=(20, 5000)).astype(np.float32)
    array = np.maximum(array, 0) if kind == "relu" else array
    histogram = Histogram()
    histogram.add(array)
    for name in ("minmax", "percentile", "entropy"):
        found = result(name, [array])
        assert squared_error(histogram, found) == pytest.approx(error(array, found), rel=0.15)


def test_unknown_calibrator():
    with pytest.raises(QuantizationError, match="no calibrator 'entrpy'") as caught:
        calibrator_class("entrpy")
    assert caught.value.hint == "did you mean 'entropy'?"
