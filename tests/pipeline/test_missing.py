"""What a conversion adds for missing modalities: the policy, blanks, means, trained values, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from missing_models import GATE, POSITIVE, SUM, gate_samples, sum_samples, write

from edgemm.bundle import Manifest, read_manifest, verify
from edgemm.errors import RecipeError
from edgemm.pipeline import ConvertResult, convert
from edgemm.pipeline.learn import choose_loss
from edgemm.pipeline.modalities import find_cases
from edgemm.pipeline.splits import divide, open_splits
from edgemm.pipeline.wishes import check_policy
from edgemm.recipe import build_recipe
from edgemm.recipe.schema import DataSection
from edgemm.runtime import open_session
from edgemm.runtime.stand_ins import StandIns
from edgemm.tensors import IOSpec, StateSpec, TensorSpec


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    """GATE with everything that there is for missing modalities."""
    folder = tmp_path_factory.mktemp("gate")
    recipe = write(folder, GATE, gate_samples) | {
        "stream": {"trigger": "image", "optional": {"audio": "mean"}, "max_age": {"audio": 0.5}, "queue": 4},
        "missing": {"learn": ["audio"], "report": True},
        "inputs": {"image": {"blank": "constant:-2"}},
    }
    return convert(recipe, folder / "gate.edgemm")


def engine(result: ConvertResult, stage: str) -> Any:
    (entry,) = [e for e in result.shipped.engines if e.stages == (stage,)]
    return onnxruntime.InferenceSession(str(result.path / entry.file), providers=["CPUExecutionProvider"])


def row(result: ConvertResult, modality: str, fill: str) -> np.ndarray:
    """The only array of a stand-in."""
    (entry,) = [s for s in result.manifest.stand_ins if (s.modality, s.fill) == (modality, fill)]
    ((_, file),) = entry.arrays.items()
    return np.load(result.path / str(file), allow_pickle=False)


def loss(value: float, arrays: dict[str, np.ndarray]) -> float:
    """Cross-entropy of GATE with `value` for what the audio encoder gives."""
    p = 4 * arrays["image"][:, 0] * value
    margin = np.where(arrays["label"] == 1, 2 * p, -2 * p)
    return float(np.logaddexp(0, -margin).mean())


def test_the_bundle_lists_and_verifies_what_was_added(gate: ConvertResult) -> None:
    manifest = read_manifest(gate.path)
    verify(gate.path, manifest)
    assert manifest.stream == {
        "trigger": "image",
        "optional": {"audio": "mean"},
        "max_age": {"audio": 0.5},
        "queue": 4,
    }
    found = {(s.modality, s.fill, s.variant) for s in manifest.stand_ins}
    assert found == {
        ("image", "blank", ""),
        ("audio", "blank", ""),
        ("image", "mean", "cpu-fp32"),
        ("audio", "mean", "cpu-fp32"),
        ("audio", "learned", "cpu-fp32"),
    }
    numbers = {s.modality: dict(s.arrays) for s in manifest.stand_ins if s.fill == "blank"}
    assert numbers == {"image": {"image": -2.0}, "audio": {"audio": 0.0}}
    assert {"report/modalities.json", "report/modalities.svg"} <= set(manifest.files)


def test_the_mean_is_that_of_the_encoder_over_the_calibration_samples(gate: ConvertResult) -> None:
    folder = gate.path.parent
    section = DataSection(calib=str(folder / "calib.npz"), eval=str(folder / "eval.npz"), label="label")
    parts = divide(open_splits(section), section, gate.manifest.io, print)
    assert parts.calibration is not None
    samples = np.stack([parts.calibration[i]["audio"] for i in range(len(parts.calibration))])
    (given,) = engine(gate, "audio").run(None, {"audio": samples})
    np.testing.assert_allclose(row(gate, "audio", "mean"), given.mean(axis=0), rtol=1e-5)


def test_a_stream_follows_the_recipe_and_puts_the_mean_behind_the_encoder(gate: ConvertResult) -> None:
    with open_session(gate.path) as session, session.stream(clock=lambda: 100.0) as stream:
        assert (stream.policy.queue, stream.policy.max_age) == (4, {"audio": 0.5})
        one = np.ones(1, np.float32)
        stream.push("image", one)
        result = stream.poll()
        assert result is not None
        assert dict(result.filled) == {"audio": "mean"}
        assert "audio" not in (*result.encoded, *result.cached)
        p = 4 * row(gate, "audio", "mean")
        np.testing.assert_allclose(result.outputs["logits"], [[-p[0], p[0]]], rtol=1e-5)


def test_what_is_learned_is_better_on_samples_that_nobody_has_seen(gate: ConvertResult) -> None:
    arrays = gate_samples(4000, 9)
    mean, learned = row(gate, "audio", "mean"), row(gate, "audio", "learned")
    best = np.log(POSITIVE / (1 - POSITIVE)) / 8
    assert mean == pytest.approx(np.tanh(3) * (2 * POSITIVE - 1), abs=0.1)
    assert learned == pytest.approx(best, abs=0.06)
    assert loss(float(learned[0]), arrays) < loss(float(mean[0]), arrays) - 0.2


def test_the_report_is_what_the_evaluation_samples_say(gate: ConvertResult) -> None:
    report = json.loads((gate.path / "report" / "modalities.json").read_text())
    assert report == gate.modalities == gate.to_json()["modalities"]
    arrays = gate_samples(120, 1)
    assert (report["samples"], report["split"], report["metric"]) == (120, "evaluation", "accuracy")
    assert report["sessions"] == ["float", "cpu-fp32"]
    scores = {(tuple(r["missing"]), r["fill"]): r["scores"] for r in report["rows"]}
    right, zero = arrays["label"], float((arrays["label"] == 0).mean())
    by_image = float(((arrays["image"][:, 0] > 0) == right).mean())
    by_audio = float(((arrays["audio"][:, 0] < 0) == right).mean())
    mean_of_image = row(gate, "image", "mean")
    guessed = (arrays["audio"][:, 0] * mean_of_image > 0).astype(int)
    expected = {
        ((), None): 1.0,
        (("image",), "zeros"): zero,
        (("image",), "blank"): by_audio,
        (("image",), "mean"): float((guessed == right).mean()),
        (("audio",), "zeros"): zero,
        (("audio",), "mean"): by_image,
        (("audio",), "learned"): by_image,
        (("image", "audio"), "zeros"): zero,
        (("image", "audio"), "blank"): zero,
        (("image", "audio"), "mean"): zero if mean_of_image < 0 else 1 - zero,
    }
    assert scores.keys() == expected.keys()
    for case, value in expected.items():
        assert scores[case] == {"float": pytest.approx(value), "cpu-fp32": pytest.approx(value)}, case
    assert scores[(), None]["cpu-fp32"] == gate.shipped.accuracy["variant"]  # type: ignore[index]


def test_the_heat_map_has_a_number_per_case(gate: ConvertResult) -> None:
    picture = (gate.path / "report" / "modalities.svg").read_text()
    for text in ("without audio", "complete", "learned", "100.00%", "accuracy on 120 samples"):
        assert text in picture


@pytest.fixture(scope="module")
def total(tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    folder = tmp_path_factory.mktemp("sum")
    recipe = write(folder, SUM, sum_samples) | {"missing": {"learn": ["audio"], "report": True}}
    return convert(recipe, folder / "sum.edgemm")


def test_what_is_not_better_than_the_mean_is_not_kept_and_said(total: ConvertResult) -> None:
    assert {(s.modality, s.fill) for s in total.manifest.stand_ins} == {
        (m, fill) for m in ("image", "audio") for fill in ("blank", "mean")
    }
    (note,) = [n for n in total.manifest.info["notes"] if "learned" in n]
    assert "'learned' is not kept for 'audio' (cpu-fp32): not better than the mean" in note
    assert "by more than two standard errors" in note
    assert "90 held-out samples, against labels" in note


def test_a_stream_that_asks_for_what_is_not_kept_has_the_mean(tmp_path: Path) -> None:
    wanted = {"missing": {"learn": ["audio"]}, "stream": {"optional": {"audio": "learned"}, "queue": 4}}
    result = convert(write(tmp_path, SUM, sum_samples) | wanted, tmp_path / "sum.edgemm")
    assert result.manifest.stream == {"optional": {"audio": "mean"}, "queue": 4}
    note = "streams fill 'audio' with 'mean', not with 'learned': cpu-fp32 has no trained value"
    assert note in result.manifest.info["notes"]
    with open_session(result.path) as session, session.stream(trigger="image") as stream:
        assert stream.policy.optional == {"audio": "mean"}


def test_states_that_the_model_itself_tells_of_allow_no_training() -> None:
    spec = TensorSpec("audio", "float32", ("batch", 1))
    memory = TensorSpec("memory", "float32", ("batch", 1))
    after = TensorSpec("after", "float32", ("batch", 1))
    io = IOSpec((spec, memory), (after,), {"audio": "audio"}, (StateSpec("memory", "after"),), "batch")
    with pytest.raises(RecipeError, match="no value can be trained for 'audio': the model keeps states") as caught:
        check_policy(
            build_recipe(
                {"model": {"path": "m"}, "data": {"calib": "c"}, "missing": {"learn": ["audio"]}}, where="recipe"
            ),
            io,
        )
    assert "mean" in (caught.value.hint or "")


def test_a_stream_that_asks_for_what_is_kept_has_it(tmp_path: Path) -> None:
    wanted = {"missing": {"learn": ["audio"]}, "stream": {"optional": {"audio": "learned"}}}
    result = convert(write(tmp_path, GATE, gate_samples) | wanted, tmp_path / "gate.edgemm")
    assert result.manifest.stream == {"optional": {"audio": "learned"}}


def test_the_report_of_a_regression(total: ConvertResult) -> None:
    report = total.modalities
    assert report is not None
    assert (report["metric"], report["higher_is_better"], report["percent"]) == ("mae", False, False)
    scores = {(tuple(r["missing"]), r["fill"]): r["scores"]["cpu-fp32"] for r in report["rows"]}
    arrays = sum_samples(120, 1)
    sound = arrays["audio"].sum(1)
    assert scores[(), None] == pytest.approx(0, abs=1e-6)
    assert scores[("audio",), "zeros"] == pytest.approx(np.abs(sound).mean(), rel=1e-5)
    mean = float(row(total, "audio", "mean")[0])
    assert scores[("audio",), "mean"] == pytest.approx(np.abs(sound - mean).mean(), rel=1e-5)
    assert scores[("audio",), "mean"] < scores[("audio",), "zeros"] / 2


def test_without_labels_results_are_compared_with_the_complete_model(tmp_path: Path) -> None:
    recipe = write(tmp_path, GATE, gate_samples, labels=False)
    result = convert(recipe | {"missing": {"learn": ["audio"], "report": True}}, tmp_path / "out.edgemm")
    report = result.modalities
    assert report is not None
    assert (report["metric"], report["compared_with"]) == ("agreement", "the complete float model")
    scores = {(tuple(r["missing"]), r["fill"]): r["scores"]["float"] for r in report["rows"]}
    assert scores[(), None] == 1
    assert scores[("audio",), "mean"] == pytest.approx(float((gate_samples(120, 1)["audio"] > 0).mean()))
    best = np.log(POSITIVE / (1 - POSITIVE)) / 8  # the full model is nearly sure: as good as labels
    assert row(result, "audio", "learned") == pytest.approx(best, abs=0.08)


def test_one_engine_for_all_has_blanks_only(tmp_path: Path) -> None:
    result = convert(write(tmp_path, GATE, gate_samples) | {"layout": "whole"}, tmp_path / "out.edgemm")
    assert {s.fill for s in result.manifest.stand_ins} == {"blank"}
    assert not [name for name in result.manifest.files if name.startswith("missing/")]


def test_a_wish_for_the_mean_keeps_the_cut(tmp_path: Path) -> None:
    """Small as it is, the model would be one engine otherwise."""
    recipe = write(tmp_path, GATE, gate_samples) | {"layout": "auto", "stream": {"optional": {"audio": "mean"}}}
    result = convert(recipe, tmp_path / "out.edgemm")
    assert result.shipped.layout == "staged"
    with open_session(result.path) as session:
        session.stream().close()


def test_equal_conversions_give_equal_bytes(tmp_path: Path) -> None:
    recipe = write(tmp_path, GATE, gate_samples) | {"missing": {"learn": ["audio"], "report": True}}
    one, two = (convert(recipe, tmp_path / f"{name}.edgemm") for name in ("one", "two"))
    assert one.manifest.files == two.manifest.files
    assert one.manifest.stand_ins == two.manifest.stand_ins


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"stream": {"trigger": "imge"}}, "stream: trigger: there is no modality 'imge'"),
        ({"stream": {"optional": {"sound": "last"}}}, "stream: optional: there is no modality 'sound'"),
        ({"stream": {"window": {"sound": 0.1}}}, "stream: window: there is no modality 'sound'"),
        ({"missing": {"learn": ["sound"]}}, "missing.learn: there is no modality 'sound'"),
        ({"stream": {"optional": {"audio": "learned"}}}, "'learned', and missing.learn does not have it"),
        ({"stream": {"optional": {"audio": "lerned"}}}, "did you mean 'learned'?"),
        ({"missing": {"learn": ["audio"]}, "states": {"a": "b"}}, "no value can be trained for 'audio'"),
        ({"missing": {"learn": ["audio"]}, "layout": "whole"}, "the layout 'whole' has one engine"),
        ({"stream": {"optional": {"audio": "mean"}}, "data": {}}, "computed from calibration samples"),
        ({"missing": {"report": True}, "data": {}}, "the modality report needs samples"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        convert(write(tmp_path, GATE, gate_samples) | sections, tmp_path / "out.edgemm")
    assert caught.value.hint
    assert not (tmp_path / "out.edgemm").exists()


@pytest.mark.parametrize(("count", "cases"), [(2, 4), (4, 16), (5, 16), (6, 22)])
def test_every_subset_of_few_modalities_and_singles_and_pairs_of_many(count: int, cases: int) -> None:
    names = "abcdef"[:count]
    specs = tuple(TensorSpec(n, "float32", ("batch", 1)) for n in names)
    io = IOSpec(specs, specs, {n: n for n in names})
    manifest = Manifest("many", io, (), (), ())
    variant: Any = SimpleNamespace(layout="staged", engines=())
    session: Any = SimpleNamespace(io=io, stand_ins=StandIns(manifest, variant, {}))
    found = find_cases(session)
    assert len(found) == len(set(found)) == cases
    assert max(len(c.missing) for c in found) == (count if count <= 4 else 2)


def test_losses() -> None:
    """Each is least where it should be, and is the same for logits and for the probabilities of them."""
    logits = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([0, 2])
    by_logits, target, what = choose_loss(logits, labels)
    by_shares, _, _ = choose_loss(shares, labels)
    assert what == "labels"
    expected = -np.log(shares[[0, 1], labels])
    np.testing.assert_allclose(by_logits(logits, target), expected, rtol=1e-5)
    np.testing.assert_allclose(by_shares(shares, target), expected, rtol=1e-5)
    soft, target, what = choose_loss(logits, None)
    assert what == "the full model"
    assert (soft(logits, target) < soft(logits[::-1], target)).all()
    yes, target, _ = choose_loss(np.array([[3.0], [-2.0]]), np.array([1, 0]))
    np.testing.assert_allclose(yes(np.array([[3.0], [-2.0]]), target), np.log1p(np.exp([-3.0, -2.0])))
    square, target, what = choose_loss(np.array([[3.0], [-2.0]]), np.array([[1.0], [0.0]]))
    assert what == "labels"
    np.testing.assert_allclose(square(np.array([[3.0], [-2.0]]), target), [4, 4])
    other, target, what = choose_loss(np.zeros((2, 5, 7), np.float32), np.array([1, 0]))
    assert what == "the full model"
    np.testing.assert_array_equal(other(np.ones((2, 5, 7)), target), [1, 1])


def test_beside_one_engine_for_all_the_stages_run_while_something_is_missing(tmp_path: Path) -> None:
    recipe = write(tmp_path, GATE, gate_samples) | {"layout": "both", "missing": {"report": True}}
    result = convert(recipe, tmp_path / "out.edgemm")
    assert result.shipped.layout == "whole"
    assert result.modalities is not None
    assert result.modalities["sessions"] == ["float", f"{result.shipped.name}-staged"]
    with open_session(result.path) as session:
        stream = session.stream(trigger="image", optional={"audio": "mean"}, clock=lambda: 100.0)
        stream.push("image", np.ones(1, np.float32))
        found = stream.poll()
        assert found is not None
        assert dict(found.filled) == {"audio": "mean"}
        p = 4 * row(result, "audio", "mean")
        np.testing.assert_allclose(found.outputs["logits"], [[-p[0], p[0]]], rtol=1e-5)
