from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from edgemm.errors import DataError
from edgemm.metrics import choose_output, collect_outputs, evaluate, metric, score
from edgemm.tensors import IOSpec, StateSpec, TensorSpec

IO = IOSpec(
    inputs=(TensorSpec("x", "float32", ("batch", 5)),),
    outputs=(TensorSpec("logits", "float32", ("batch", 3)), TensorSpec("aux", "float32", ("batch", 1))),
    modalities={"x": "x"},
)
WEIGHT = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def run(feed):
    return {"logits": feed["x"] @ WEIGHT, "aux": feed["x"][:, :1]}


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(37, 5)).astype(np.float32)
    y = (x @ WEIGHT + rng.normal(size=(37, 3))).argmax(1)
    return [{"x": x[i], "label": y[i], "target": x[i, 0] + 1} for i in range(37)]


def stacked(samples, name):
    return np.stack([s[name] for s in samples])


@pytest.mark.parametrize("batch", [1, 8, 100])
def test_classification_metrics_equal_their_definitions(samples, batch):
    logits, y = stacked(samples, "x") @ WEIGHT, stacked(samples, "label")
    one_hot = np.eye(3)[y]
    expected = {
        "accuracy": (logits.argmax(1) == y).mean(),
        "f1_macro": f1_score(y, logits.argmax(1), average="macro"),
        "auroc": np.mean([roc_auc_score(one_hot[:, c], logits[:, c]) for c in range(3)]),
    }
    for name, value in expected.items():
        got = evaluate(run, IO, samples, metric(name), label="label", batch=batch)
        assert got == pytest.approx(value, abs=1e-6)


def test_regression_metrics_take_the_named_output(samples):
    for name in ("mae", "mse"):
        got = evaluate(run, IO, samples, metric(name), label="target", output="aux")
        assert got == pytest.approx(1.0, abs=1e-5)
        assert metric(name).drop(1.0, 1.5) == pytest.approx(0.5)
    assert metric("accuracy").drop(0.9, 0.7) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("value", "kind"), [([0.9, 0.2, 0.6, 0.4], "probability"), ([3.0, -0.1, 0.2, -4.0], "logit")]
)
def test_one_score_per_sample_is_binary(value, kind):
    outputs = {"p": np.array(value, np.float32)[:, None]}
    labels = np.array([1, 0, 1, 1])
    assert score(metric("accuracy"), outputs, "p", labels=labels) == 0.75
    assert score(metric("auroc"), outputs, "p", labels=np.array([1, 0, 1, 0])) == 1.0


def test_one_hot_labels_are_classes():
    outputs = {"p": np.eye(3, dtype=np.float32)}
    assert score(metric("accuracy"), outputs, "p", labels=np.eye(3)) == 1.0


def test_agreement_and_cosine_compare_with_the_float_outputs(samples):
    reference = collect_outputs(run, IO, samples, batch=4)
    assert evaluate(run, IO, samples, metric("agreement"), reference=reference) == 1.0
    assert evaluate(run, IO, samples, metric("cosine"), reference=reference) == pytest.approx(1.0)
    flipped = lambda feed: {k: -v for k, v in run(feed).items()}  # noqa: E731
    assert evaluate(flipped, IO, samples, metric("agreement"), reference=reference) == 0.0
    assert evaluate(flipped, IO, samples, metric("cosine"), reference=reference) == pytest.approx(-1.0)
    scalar = evaluate(flipped, IO, samples, metric("agreement"), reference=reference, output="aux")
    assert scalar == pytest.approx(-1.0)
    with pytest.raises(DataError, match="compares with the float model"):
        evaluate(run, IO, samples, metric("agreement"))


def test_nan_outputs_never_count_as_right():
    outputs = {"p": np.full((4, 3), np.nan, np.float32)}
    assert score(metric("accuracy"), outputs, "p", labels=np.zeros(4, int)) == 0.0
    reference = {"p": np.tile(np.array([1.0, 0, 0], np.float32), (4, 1))}
    assert score(metric("agreement"), outputs, "p", labels=None, reference=reference) == 0.0


def test_states_run_in_order_one_by_one_after_a_reset():
    io = IOSpec(
        (TensorSpec("x", "float32", ("batch", 1)), TensorSpec("h", "float32", ("batch", 1))),
        (TensorSpec("y", "float32", ("batch", 1)), TensorSpec("h_out", "float32", ("batch", 1))),
        {"x": "x"},
        states=(StateSpec("h", "h_out"),),
    )
    state = {"h": 99.0}

    def accumulate(feed):
        state["h"] += float(feed["x"][0, 0])
        return {"y": np.full((1, 1), state["h"], np.float32), "h_out": np.zeros((1, 1), np.float32)}

    rows = [{"x": np.ones(1, np.float32)} for _ in range(5)]
    got = collect_outputs(accumulate, io, rows, batch=4, reset=lambda: state.update(h=0.0))
    assert list(got) == ["y"]
    np.testing.assert_array_equal(got["y"][:, 0], [1, 2, 3, 4, 5])


def test_a_users_function(tmp_path, samples):
    path = tmp_path / "mine.py"
    path.write_text(
        "def worst(outputs, labels):\n    return -abs(outputs['aux'][:, 0] - labels).max()\n"
        "def broken(outputs, labels):\n    return outputs['nothing']\n"
    )
    assert evaluate(run, IO, samples, metric(f"{path}:worst"), label="target") == pytest.approx(-1, abs=1e-5)
    with pytest.raises(DataError, match=r"mine\.py:broken failed: KeyError"):
        evaluate(run, IO, samples, metric(f"{path}:broken"))


def test_errors_name_what_does_not_fit(samples):
    with pytest.raises(DataError, match="no metric 'acuracy'") as caught:
        metric("acuracy")
    assert caught.value.hint == "did you mean 'accuracy'?"
    with pytest.raises(DataError, match="metric 'accuracy' needs labels"):
        evaluate(run, IO, samples, metric("accuracy"))
    with pytest.raises(DataError, match="no output 'logit'"):
        choose_output(IO, "logit")
    outputs = {"p": np.zeros((4, 3), np.float32)}
    for labels, text in [
        (np.zeros((4, 2), int), r"labels have shape \(4, 2\), output 'p' \(4, 3\) gives classes of shape \(4,\)"),
        (np.array([0, 1, 2, 3]), "labels go from 0 to 3, output 'p' has 3 classes"),
        (np.array(["a"] * 4), "expected class indices"),
        (np.zeros(5, int), "output 'p' has 4 rows, the labels have 5"),
    ]:
        with pytest.raises(DataError, match=text):
            score(metric("accuracy"), outputs, "p", labels=labels)
    with pytest.raises(DataError, match="all 4 labels are class 0") as caught:
        score(metric("auroc"), outputs, "p", labels=np.zeros(4, int))
    assert "two classes" in caught.value.hint
    with pytest.raises(DataError, match=r"labels have shape \(4, 2\), output 'p' has \(4, 3\)"):
        score(metric("mae"), outputs, "p", labels=np.zeros((4, 2)))


def test_outputs_of_different_lengths_are_scored_step_by_step():
    def per_frame(feed):
        x = feed["x"]
        return {"y": np.stack([x, -x], axis=-1)}

    io = IOSpec(
        (TensorSpec("x", "float32", ("batch", "time")),),
        (TensorSpec("y", "float32", ("batch", "time", 2)),),
        {"x": "x"},
    )
    rows = [
        {"x": np.array(x, np.float32), "label": np.array(label)}
        for x, label in (([1, -1], [0, 1]), ([1, 1, 1], [0, 0, 1]))
    ]
    reference = collect_outputs(per_frame, io, rows)
    assert evaluate(per_frame, io, rows, metric("agreement"), reference=reference) == 1.0
    assert evaluate(per_frame, io, rows, metric("cosine"), reference=reference) == pytest.approx(1.0)
    assert evaluate(per_frame, io, rows, metric("accuracy"), label="label") == pytest.approx(4 / 5)
    short = [{**rows[0], "label": np.array([0])}, rows[1]]
    with pytest.raises(DataError, match=r"sample 0 has shape \(2, 2\), its target \(1,\)"):
        evaluate(per_frame, io, short, metric("accuracy"), label="label")
