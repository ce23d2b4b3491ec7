from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from quant_models import Branches, Cnn, Mlp, chain_of, exported, io_of, prepared, samples_of, stage_of

from edgemm.errors import BackendError, QuantizationError
from edgemm.partition import Edge, Stage, StageGraph
from edgemm.quant import collect as module
from edgemm.quant.calibrators import CALIBRATORS
from edgemm.quant.collect import collect, group_taps, observe
from edgemm.quant.partial import load_partial, merge
from edgemm.quant.placement import tensors_to_calibrate
from edgemm.tensors import IOSpec, StateSpec, TensorSpec


def text_stage(name, text):
    proto = onnx.parser.parse_model(text)
    model = ir.from_proto(proto)
    specs = [
        tuple(
            TensorSpec(v.name, "float32", tuple(d if isinstance(d, int) else str(d) for d in v.shape))
            for v in values
        )
        for values in (model.graph.inputs, model.graph.outputs)
    ]
    return Stage(name, (name,), "encoder", *specs, model, len(model.graph), 0)


def two_stages():
    """An encoder and a head whose tensors have the same names, `h`."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(64, 128)).astype(np.float32),
        "w2": (rng.normal(size=(128, 64)) * 0.1).astype(np.float32),
    }
    header = '<ir_version: 9, opset_import: ["" : 20]>'
    first = text_stage(
        "enc",
        header + " g (float[batch,64] x, float[64,128] w1) => (float[batch,128] f) "
        "{ h = MatMul(x, w1) f = Relu(h) }",
    )
    second = text_stage(
        "head",
        header + " g (float[batch,128] f, float[128,64] w2) => (float[batch,64] out) "
        "{ h = Tanh(f) out = MatMul(h, w2) }",
    )
    stages = []
    for stage in (first, second):
        graph = stage.model.graph
        value = graph.inputs.pop(1)
        value.const_value = ir.tensor(weights[value.name], name=value.name)
        graph.register_initializer(value)
        stages.append(replace(stage, inputs=stage.inputs[:1]))
    return StageGraph(tuple(stages), (Edge("enc", "head", "f"),), ())


TWO_IO = IOSpec(
    (TensorSpec("x", "float32", ("batch", 64)),), (TensorSpec("out", "float32", ("batch", 64)),), {"x": "x"}
)


def rows(n, size=64):
    return [{"x": np.random.default_rng(i).normal(size=size).astype(np.float32)} for i in range(n)]


def test_ranges_are_those_of_the_tensors():
    stage, table, _ = prepared(Mlp)
    x = np.stack([s["x"] for s in samples_of(Mlp)])
    session = ort.InferenceSession(exported(Mlp), providers=["CPUExecutionProvider"])
    assert table.ranges["whole:x"].seen_high == x.max()
    assert table.ranges["whole:x"].seen_low == x.min()
    assert set(table.ranges) == {f"whole:{t}" for t in tensors_to_calibrate(stage)}
    assert table.samples == len(x)
    assert session is not None


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_independent_of_batch_size_and_order(calibrator, monkeypatch):
    graph, data = two_stages(), rows(13)
    tables = []
    for largest, samples in [(1, data), (5, data), (16, data[::-1])]:
        monkeypatch.setattr(module, "LARGEST_BATCH", largest)
        tables.append(collect(graph, TWO_IO, samples, calibrator))
    for other in tables[1:]:
        assert set(other.ranges) == set(tables[0].ranges)
        for key, found in other.ranges.items():
            # The kernels themselves round differently for other batch sizes.
            assert found.low == pytest.approx(tables[0].ranges[key].low, rel=1e-5)
            assert found.high == pytest.approx(tables[0].ranges[key].high, rel=1e-5)
    assert tables[0].data_digest == tables[1].data_digest != tables[2].data_digest


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_parts_calibrated_apart_add_up_exactly(calibrator, tmp_path):
    graph, data = two_stages(), rows(43)
    whole = collect(graph, TWO_IO, data, calibrator)
    parts = [observe(graph, TWO_IO, data[a:b], calibrator) for a, b in ((0, 16), (16, 32), (32, 43))]
    for number, part in enumerate(parts):
        part.save(tmp_path / f"{number}.npz")
    merged = merge(load_partial(tmp_path / f"{number}.npz") for number in (2, 0, 1)).table()
    assert merged.ranges == whole.ranges
    assert (merged.samples, merged.calibrator, merged.graph_digest) == (43, calibrator, whole.graph_digest)
    assert merge(parts).table().ranges == whole.ranges
    one = observe(graph, TWO_IO, data, calibrator)
    one.save(tmp_path / "one.npz")
    assert load_partial(tmp_path / "one.npz").table().to_json() == whole.to_json()


def test_parts_that_do_not_belong_together(tmp_path):
    graph, data = two_stages(), rows(3)
    part = observe(graph, TWO_IO, data, "minmax")
    with pytest.raises(QuantizationError, match="differ in their calibrator: got 'mse', expected 'minmax'"):
        merge([part, observe(graph, TWO_IO, data, "mse")])
    other = StageGraph(graph.stages[:1], (), ())
    io = replace(TWO_IO, outputs=(TensorSpec("f", "float32", ("batch", 128)),))
    with pytest.raises(QuantizationError, match="differ in their model"):
        merge([part, observe(other, io, data, "minmax")])
    with pytest.raises(QuantizationError, match="no parts to merge"):
        merge([])
    (tmp_path / "x.npz").write_bytes(b"no")
    with pytest.raises(QuantizationError, match=r"x\.npz: no part of a calibration"):
        load_partial(tmp_path / "x.npz")


def test_a_part_takes_a_fixed_amount_however_many_samples_it_saw(tmp_path):
    graph = two_stages()
    for count in (20, 400):
        part = observe(graph, TWO_IO, rows(count), "auto")
        part.save(tmp_path / "part.npz")
        assert {w.histogram.counts.nbytes for w in part.watchers.values()} == {65536}
        assert (tmp_path / "part.npz").stat().st_size < 2 * (2 * 65536 + 8192)  # bins in use: index and count


def test_stages_are_chained_and_names_are_qualified():
    graph, data = two_stages(), rows(6)
    table = collect(graph, TWO_IO, data, "minmax")
    assert set(table.ranges) == {"enc:x", "head:h"}
    x = np.stack([d["x"] for d in data])
    w1 = graph.stages[0].model.graph.initializers["w1"].const_value.numpy()
    expected = np.tanh(np.maximum(x @ w1, 0))
    assert table.ranges["head:h"].seen_high == pytest.approx(expected.max(), rel=1e-5)


def test_memory_is_bounded_by_watching_in_groups(monkeypatch):
    stage = stage_of(exported(Cnn))
    data = samples_of(Cnn, 6)
    whole = collect(chain_of(stage), io_of(stage), data, "percentile")
    calls = []
    monkeypatch.setattr(module, "BUDGET", 20_000)
    grouped = collect(chain_of(stage), io_of(stage), data, "percentile", lambda *a: calls.append(a))
    assert grouped.ranges.keys() == whole.ranges.keys()
    for key, found in grouped.ranges.items():
        assert found.high == pytest.approx(whole.ranges[key].high, rel=1e-3, abs=1e-4)
    assert grouped.data_digest == whole.data_digest
    passes = calls[0][1] // 6
    assert passes > 1
    assert calls[-1] == (passes * 6, passes * 6)
    assert [c[0] for c in calls] == sorted(c[0] for c in calls)


def test_groups_fit_the_budget():
    sizes = {("s", str(i)): size for i, size in enumerate([50, 60, 10, 200, 30, 30])}
    groups = group_taps(sizes, 100)
    assert [t for g in groups for t in g] == list(sizes)
    assert all(sum(sizes[t] for t in g) <= 100 or len(g) == 1 for g in groups)


def test_states_are_carried_from_sample_to_sample():
    stage = text_stage(
        "enc",
        '<ir_version: 9, opset_import: ["" : 20]> g (float[batch,64] x, float[batch,64] h) => '
        "(float[batch,64] y, float[batch,64] h_out) { h_out = Add(x, h) y = MatMul(h_out, w) }".replace(
            "float[batch,64] h)", "float[batch,64] h, float[64,256] w)"
        ).replace("(float[batch,64] y", "(float[batch,256] y"),
    )
    graph = stage.model.graph
    value = graph.inputs.pop(2)
    value.const_value = ir.tensor(np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32), name="w")
    graph.register_initializer(value)
    io = IOSpec(
        (TensorSpec("x", "float32", ("batch", 64)), TensorSpec("h", "float32", ("batch", 64))),
        (TensorSpec("y", "float32", ("batch", 256)), TensorSpec("h_out", "float32", ("batch", 64))),
        {"x": "x"},
        states=(StateSpec("h", "h_out"),),
    )
    data = [{"x": np.full(64, 1.0, np.float32)} for _ in range(7)]
    table = collect(chain_of(replace(stage, inputs=stage.inputs[:2])), io, data, "minmax")
    assert table.ranges["enc:h_out"].seen_low == 1.0
    assert table.ranges["enc:h_out"].seen_high == 7.0


def test_a_fixed_batch_is_filled_up():
    stage = stage_of(exported(Branches))
    io = io_of(stage)
    fixed = replace(io, batch=4, inputs=(TensorSpec("x", "float32", (4, 16, 40)),))
    data = samples_of(Branches, 6)
    found = collect(chain_of(stage), fixed, data, "minmax").ranges
    expected = collect(chain_of(stage), io, data, "minmax").ranges
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert value.high == pytest.approx(expected[key].high, rel=1e-5)


def test_no_samples_and_a_model_that_does_not_run():
    stage = stage_of(exported(Mlp))
    with pytest.raises(QuantizationError, match="no calibration samples"):
        collect(chain_of(stage), io_of(stage), [], "minmax")
    with pytest.raises(BackendError, match="stage 'whole': ONNX Runtime failed on a calibration sample"):
        collect(chain_of(stage), io_of(stage), rows(2, 99), "minmax")
    with pytest.raises(QuantizationError, match="no calibrator 'max'"):
        collect(chain_of(stage), io_of(stage), rows(2, 256), "max")
