"""Every development fixture: convert, run, compare with its source, hold the accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from real_models import Convert, Converted, feeds, load, source
from sklearn.metrics import roc_auc_score

pytestmark = pytest.mark.slow

TRAINED = ("imu", "av_digits", "av_gru", "av_attention", "review_image")
FOREIGN = ("riann", "voice_filter", "wake_mel", "wake_embedding", "wake_word")
TINY = ("hf_clip", "hf_siglip", "hf_blip", "hf_clap", "hf_lxmert", "hf_whisper")
STATEFUL = ("riann", "voice_filter")
MODALITIES = {
    "imu": {"accel": "accel", "gyro": "gyro"},
    "av_digits": {"image": "image", "audio": "audio"},
    "av_gru": {"image": "image", "audio": "audio"},
    "av_attention": {"image": "image", "audio": "audio"},
    "review_image": {"image": "image", "input_ids": "text", "attention_mask": "text"},
    "riann": {"input": "input"},
    "voice_filter": {"stacked_logmel": "stacked_logmel", "dvec": "dvec"},
    "wake_mel": {"input": "input"},
    "wake_embedding": {"input_1": "input_1"},
    "wake_word": {"x.1": "x.1"},
    "hf_clip": {"pixel_values": "image", "input_ids": "text", "attention_mask": "text"},
    "hf_siglip": {"pixel_values": "image", "input_ids": "text"},
    "hf_blip": {"pixel_values": "image", "input_ids": "text", "attention_mask": "text"},
    "hf_clap": {"input_features": "audio", "input_ids": "text", "attention_mask": "text"},
    "hf_lxmert": {
        "visual_feats": "image",
        "visual_pos": "image",
        "input_ids": "text",
        "attention_mask": "text",
    },
    "hf_whisper": {"input_features": "audio", "decoder_input_ids": "text"},
}


@pytest.mark.parametrize("name", [*TRAINED, *FOREIGN, *TINY])
def test_float_bundle_gives_what_the_source_gives(convert: Convert, name: str) -> None:
    made = convert(name, "fp32")
    outputs = made.run(*(("--reset-every", "1") if name in STATEFUL else ()))
    run, inputs = source(made.fixture), list(MODALITIES[name])
    for row, feed in enumerate(feeds(made.fixture, inputs)):
        for key, expected in run(feed).items():
            if key in outputs:  # states stay inside
                scale = max(1.0, float(np.abs(expected).max()))
                np.testing.assert_allclose(outputs[key][row : row + 1], expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("name", [*TRAINED, *FOREIGN, *TINY])
def test_modalities_become_stages(convert: Convert, name: str) -> None:
    result = convert(name, "fp32").result
    assert {i["name"]: i["modality"] for i in result["inputs"] if i.get("modality")} == MODALITIES[name]
    modalities = set(MODALITIES[name].values())
    roles = {frozenset(s["modalities"]): s["role"] for s in result["stages"]}
    encoders = {m for s, role in roles.items() if role == "encoder" for m in s}
    assert encoders == modalities
    if len(modalities) > 1:
        assert roles[frozenset(modalities)] == "fusion head"


@pytest.mark.parametrize("name", [*TRAINED, *FOREIGN, *TINY])
def test_json_has_every_field(convert: Convert, name: str) -> None:
    result = convert(name, "auto").result
    assert {"bundle", "dynamic", "parity", "float_size_bytes", "seconds"} <= result.keys()
    assert {"max_abs", "cosine"} <= result["parity"].keys()
    for entry in result["inputs"]:
        assert {"name", "dtype", "shape"} <= entry.keys()
    for stage in result["stages"]:
        assert {"name", "modalities", "role", "nodes", "parameters"} <= stage.keys()
    for variant in result["variants"]:
        assert {"target", "precision", "decisions", "size_bytes", "accuracy", "latency", "refused"} <= set(variant)
    accuracy, latency = convert(name, "auto").shipped["accuracy"], convert(name, "auto").shipped["latency"]
    assert {"metric", "float", "variant", "drop", "budget", "samples"} <= accuracy.keys()
    assert {"float_ms", "variant_ms", "ratio"} <= latency.keys()


@pytest.mark.parametrize("name", [*TRAINED, "wake_word"])
def test_accuracy_is_what_run_gives_and_within_budget(convert: Convert, name: str) -> None:
    made = convert(name, "auto")
    accuracy, labels = made.shipped["accuracy"], load(made.fixture.eval)["label"]
    assert accuracy["samples"] == len(labels)
    assert accuracy["drop"] <= accuracy["budget"]
    assert accuracy["variant"] == pytest.approx(_score(made, labels, accuracy), abs=2e-3)


def _score(made: Converted, labels: np.ndarray, accuracy: dict[str, Any]) -> float:
    (output,) = made.run().values()
    if accuracy["metric"] == "auroc":
        return float(roc_auc_score(labels, output.reshape(-1)))
    return float((output.argmax(1) == labels).mean())


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("imu", 0.95, 1.0),
        ("av_digits", 0.95, 0.99),
        ("av_gru", 0.95, 1.0),
        ("av_attention", 0.95, 1.0),
        ("review_image", 0.8, 0.99),
        ("wake_word", 0.9, 1.0),
    ],
)
def test_float_models_are_trained(convert: Convert, name: str, low: float, high: float) -> None:
    assert low <= convert(name, "fp32").shipped["accuracy"]["float"] <= high


@pytest.mark.parametrize("name", [*TRAINED, *TINY, "wake_embedding"])
def test_batch_is_dynamic(convert: Convert, name: str) -> None:
    made = convert(name, "fp32")
    assert all(i["shape"][0] == "batch" for i in made.result["inputs"])
    single, batched = made.run(), made.run("--batch", "7")
    for key, array in single.items():
        np.testing.assert_allclose(batched[key], array, rtol=0, atol=1e-4 * max(1.0, np.abs(array).max()))


def test_variant_that_ships_is_not_slower_than_float(convert: Convert) -> None:
    for name in ("av_digits", "wake_embedding"):
        shipped = convert(name, "auto").shipped
        assert shipped["latency"]["ratio"] < 1, name
        assert shipped["precision"] in ("int8", "bf16"), name  # which is faster differs from run to run
        if shipped["precision"] == "int8":
            assert shipped["decisions"].get("int8", 0) > 0, name
            assert shipped["size_bytes"] < convert(name, "auto").result["float_size_bytes"], name


def test_file_that_is_quantized_already_is_taken_as_it_is(convert: Convert) -> None:
    notes = " ".join(convert("voice_filter", "auto").result["notes"])
    assert "quantized already" in notes
    assert "DynamicQuantizeL" in notes
