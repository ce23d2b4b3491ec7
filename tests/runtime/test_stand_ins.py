"""What stands for a modality without a sample: in the bundle, in a stream, behind an encoder that does not run."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.bundle import StandIn, read_manifest, write_bundle
from edgemm.errors import BundleError, DataError
from edgemm.runtime import FusionSession, open_session

MakeBundle = Callable[..., Path]
MEAN = np.array([0.25, -0.5], np.float32)
ENERGY = np.array(3.0, np.float32)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=array.dtype == object)
    return out.getvalue()


def extended(bundle: Path, *stand_ins: StandIn, arrays: Mapping[str, Any] | None = None, **more: Any) -> Path:
    """Writes the bundle again with stand-ins and their files beside it."""
    manifest = read_manifest(bundle)
    files = {name: (bundle / name).read_bytes() for name in manifest.files}
    files |= {n: a if isinstance(a, bytes) else npy(a) for n, a in (arrays or {}).items()}
    path = bundle.with_name("extended.edgemm")
    write_bundle(path, replace(manifest, stand_ins=stand_ins, **more), files, force=path.exists())
    return path


@pytest.fixture
def session(fusion_bundle: Path) -> FusionSession:
    """Of a bundle with a mean and a trained value behind the audio encoder, and blanks."""
    behind = {"audio_features": "missing/features.npy", "audio_energy": "missing/energy.npy"}
    path = extended(
        fusion_bundle,
        StandIn("audio", "mean", behind, "cpu-fp32"),
        StandIn("audio", "learned", {"audio_features": "missing/other.npy", "audio_energy": 1.5}, "cpu-fp32"),
        StandIn("audio", "blank", {"audio": "missing/blank.npy"}),
        StandIn("image", "blank", {"image": -2.0}),
        arrays={
            "missing/features.npy": MEAN,
            "missing/energy.npy": ENERGY,
            "missing/other.npy": -MEAN,
            "missing/blank.npy": np.arange(4, dtype=np.float32).reshape(2, 2),
        },
        stream={"trigger": "image", "optional": {"audio": "mean"}, "max_age": {"audio": 0.5}},
    )
    return open_session(path)


def image(value: float = 0.5) -> np.ndarray:
    return np.full(4, value, np.float32)


def audio(value: float = 0.5) -> np.ndarray:
    return np.full((2, 2), value, np.float32)


def full(session: FusionSession, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return session.run({"image": x[None], "audio": y[None]})["logits"]


def head(session: FusionSession, x: np.ndarray, features: np.ndarray) -> np.ndarray:
    """What the head gives for an image and the features that stand for the audio."""
    names = [entry.name for entry in session.variant.engines]
    seen, engine = (session._engines[names.index(name)] for name in ("image", "fusion"))
    (image_features,) = seen.run({"image": x[None]})
    (logits,) = engine.run({"image_features": image_features, "audio_features": features[None]})
    return np.asarray(logits)


def test_the_mean_goes_in_behind_the_encoder_which_does_not_run(session: FusionSession) -> None:
    clock = Clock()
    stream = session.stream(clock=clock)
    expected = [head(session, image(x), MEAN) for x in (1, 2)]
    session._engines[1].close()  # the audio encoder: a run of it would raise
    results = []
    for x in (1, 2):
        stream.push("image", image(x))
        results.append(stream.poll())
    for result, logits in zip(results, expected, strict=True):
        assert result is not None
        assert dict(result.filled) == {"audio": "mean"}
        assert result.outputs["logits"].tobytes() == logits.tobytes()
        assert result.outputs["audio_energy"].tolist() == [3.0]
        assert (result.encoded, result.cached) == (("image", "fusion"), ())
        assert result.ages["audio"] is None
    assert stream.counters.modalities["audio"].filled == 2


def test_the_policy_of_the_recipe_is_the_default_and_a_call_overrides_it(session: FusionSession) -> None:
    clock = Clock()
    assert session.stream(clock=clock).policy.max_age == {"audio": 0.5}
    stream = session.stream(clock=clock, optional={"audio": "learned"}, max_age=None)
    assert (stream.policy.trigger, stream.policy.max_age) == ("image", None)
    stream.push("image", image())
    result = stream.poll()
    assert result is not None
    assert dict(result.filled) == {"audio": "learned"}
    assert result.outputs["logits"].tobytes() == head(session, image(), -MEAN).tobytes()
    assert result.outputs["audio_energy"].tolist() == [1.5]


def test_samples_that_come_and_stay_away_leave_nothing_behind(session: FusionSession) -> None:
    """Each result is that of a session which has seen nothing before, bit for bit."""
    clock = Clock()
    stream = session.stream(clock=clock)
    random = np.random.default_rng(0)
    for number in range(60):
        clock.now += 0.3
        there = bool(random.integers(0, 2))
        sound = audio(float(random.integers(0, 3)))
        if there:
            stream.push("audio", sound)
        x = image(float(random.integers(0, 3)))
        stream.push("image", x)
        result = stream.poll()
        assert result is not None
        if result.filled:
            assert result.outputs["logits"].tobytes() == head(session, x, MEAN).tobytes(), number
        elif there:
            assert result.outputs["logits"].tobytes() == full(session, x, sound).tobytes(), number
    counters = stream.counters.modalities["audio"]
    assert counters.filled > 5
    assert counters.used > 5


def test_a_blank_sample_goes_through_the_encoder(session: FusionSession) -> None:
    stream = session.stream(optional={"audio": "blank", "image": "blank"}, trigger=1.0, max_age=0.5, clock=Clock())
    result = stream.infer()
    assert dict(result.filled) == {"image": "blank", "audio": "blank"}
    silence = np.arange(4, dtype=np.float32).reshape(2, 2)
    assert result.outputs["logits"].tobytes() == full(session, image(-2), silence).tobytes()
    assert set(result.encoded) == {"image", "audio", "fusion"}


def test_other_fills_are_named_too(session: FusionSession) -> None:
    stream = session.stream(optional={"audio": audio(1)}, clock=Clock())
    stream.push("image", image())
    result = stream.poll()
    assert result is not None
    assert dict(result.filled) == {"audio": "array"}


STEADY = """sound (float[batch,2] sound, float[batch,2] h) => (float[batch,2] f, float[batch,2] h_out)
{ h_out = Add(h, sound)  f = Neg(h_out) }"""
SUM = "head (float[batch,2] f, float[batch,2] image) => (float[batch,2] y) { y = Add(f, image) }"


def test_a_state_stays_as_it_was_while_its_sensor_is_silent(make_bundle: MakeBundle) -> None:
    bundle = make_bundle({"sound": STEADY, "head": SUM}, states={"h": "h_out"})
    path = extended(bundle, StandIn("sound", "mean", {"f": "missing/f.npy"}), arrays={"missing/f.npy": MEAN})
    clock = Clock()
    stream = open_session(path).stream(
        trigger="image", optional={"sound": "mean"}, max_age={"sound": 0.1}, clock=clock
    )
    given = []
    one = np.ones(2, np.float32)
    for there in (True, False, False, True):
        clock.now += 1
        if there:
            stream.push("sound", one)
        stream.push("image", 10 * one)
        result = stream.poll()
        assert result is not None
        given.append(result.outputs["y"][0].tolist())
    assert given == [[9, 9], (10 + MEAN).tolist(), (10 + MEAN).tolist(), [8, 8]]


def test_an_input_of_the_head_itself_takes_its_mean(make_bundle: MakeBundle) -> None:
    bundle = make_bundle({"sound": "sound (float[batch,2] sound) => (float[batch,2] f) { f = Neg(sound) }",
                          "head": SUM})  # fmt: skip
    path = extended(bundle, StandIn("image", "mean", {"image": "missing/i.npy"}), arrays={"missing/i.npy": MEAN})
    stream = open_session(path).stream(trigger="sound", optional={"image": "mean"}, clock=Clock())
    stream.push("sound", np.ones(2, np.float32))
    result = stream.poll()
    assert result is not None
    np.testing.assert_array_equal(result.outputs["y"][0], MEAN - 1)


def test_one_engine_for_all_has_no_place_behind_an_encoder(make_bundle: MakeBundle) -> None:
    bundle = make_bundle({"head": SUM})
    manifest = read_manifest(bundle)
    (variant,) = manifest.shipped
    whole = replace(variant, layout="whole")
    path = extended(bundle, variants=(whole,))
    with pytest.raises(BundleError, match="the bundle holds no 'mean' for 'image'") as caught:
        open_session(path).stream(optional={"image": "mean"})
    assert "--layout staged" in caught.value.hint


@pytest.mark.parametrize(
    ("fill", "hint"),
    [
        ("mean", "--calib"),
        ("learned", "--learn-missing image"),
        ("head:audio_only", "--head audio_only=MODEL"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(session: FusionSession, fill: str, hint: str) -> None:
    with pytest.raises(BundleError, match=f"the bundle holds no '{fill}' for 'image'") as caught:
        session.stream(optional={"image": fill})
    assert hint in caught.value.hint
    assert "constant:VALUE, blank" in caught.value.hint


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (np.zeros(3, np.float32), r"is float32 \[3\], 'audio_features' takes float32 \[2\]"),
        (np.zeros(2), r"is float64 \[2\], 'audio_features' takes float32"),
        (np.array([{"a": 1}, None], object), "is no array that can be read: Object arrays cannot be loaded"),
        (b"no array", "is no array that can be read"),
        (b"", "is no array that can be read"),
    ],
)
def test_files_that_do_not_fit_are_refused(fusion_bundle: Path, arrays: Any, message: str) -> None:
    entry = StandIn("audio", "mean", {"audio_features": "missing/a.npy", "audio_energy": 0.0})
    path = extended(fusion_bundle, entry, arrays={"missing/a.npy": arrays})
    with pytest.raises(BundleError, match=message):
        open_session(path)


def test_numbers_that_do_not_fit_are_refused(make_bundle: MakeBundle) -> None:
    text = "a (int64[batch,2] x) => (int64[batch,2] y) { y = Neg(x) }"
    path = extended(make_bundle({"a": text}), StandIn("x", "blank", {"x": 10**30}))
    with pytest.raises(BundleError, match="is no int64"):
        open_session(path)


def test_a_changed_file_is_refused(session: FusionSession, fusion_bundle: Path) -> None:
    path = fusion_bundle.with_name("extended.edgemm")
    (path / "missing" / "features.npy").write_bytes(npy(MEAN + 1))
    with pytest.raises(BundleError, match=r"'missing/features.npy' was changed"):
        open_session(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (StandIn("sound", "mean", {}), "stand-in 'mean' of 'sound': there is no such modality"),
        (StandIn("audio", "mean", {"x": 1.0}), "there is no tensor 'x'"),
        (StandIn("audio", "mean", {}, "cpu-int4"), "there is no variant 'cpu-int4'"),
        (StandIn("audio", "blank", {"audio": "missing/x.npy"}), "its file 'missing/x.npy' is not in the bundle"),
    ],
)
def test_entries_that_refer_to_nothing_are_refused(fusion_bundle: Path, entry: StandIn, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        extended(fusion_bundle, entry)


def test_a_blank_number_for_an_open_size_needs_somebody_who_gives_it(make_bundle: MakeBundle) -> None:
    text = "text (float[batch,tokens] ids) => (float[batch,1] f) "
    text += "<int64[1] axis = {1}> { f = ReduceSum(ids, axis) }"
    tail = "head (float[batch,1] f, float[batch,1] image) => (float[batch,1] y) { y = Add(f, image) }"
    path = extended(make_bundle({"text": text, "head": tail}), StandIn("ids", "blank", {"ids": 0.0}))
    with pytest.raises(DataError, match="'blank' for 'ids' has no size for 'tokens'"):
        open_session(path).stream(optional={"ids": "blank"})


def test_a_policy_of_a_newer_edgemm_is_refused(fusion_bundle: Path) -> None:
    path = extended(fusion_bundle, stream={"trigger": "image", "patience": 3})
    session = open_session(path)
    with pytest.raises(BundleError, match="stream: there is no field 'patience'"):
        session.stream()
    path = extended(fusion_bundle, stream={"optional": ["audio"]})
    with pytest.raises(DataError, match="optional: got"):
        open_session(path).stream()
