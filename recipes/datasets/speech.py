"""Synthetic speech from espeak-ng, which the PyPI package `espeakng-loader` ships as a library with its data.

The voices are formant synthesis, not recordings of people: whatever is trained on them is a model of synthetic
speech and must be called so. espeak-ng is a GPL-3.0 program; it is run here as installed, nothing of it is copied.

The library keeps state from one utterance to the next (breath noise, flutter), so `synthesize` runs it in a
process of its own: the same list of utterances gives the same samples, whatever was said before.
"""

from __future__ import annotations

import ctypes
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

SAMPLE_RATE = 22050
"""Samples per second of everything that `synthesize` returns."""

ACCENTS = ("en-us", "gmw/en", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-us-nyc")
"""English accents that espeak-ng speaks."""

_PACKAGE = "espeakng-loader"
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _PITCH = 1, 3
_LONGEST_PATH = 150
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Utterance:
    """What to say and how.

    Attributes:
        text: English words.
        voice: Name of an espeak-ng voice variant, one of `voice_families()`.
        accent: One of `ACCENTS`.
        speed: Words per minute, 80 to 450.
        pitch: 0 to 99; 50 is the voice's own.
    """

    text: str
    voice: str
    accent: str = ACCENTS[0]
    speed: int = 170
    pitch: int = 50


def version() -> str:
    """Returns name and version of the synthesizer's package, for cache keys and reports.

    Raises:
        RuntimeError: The package is not installed.
    """
    try:
        return f"{_PACKAGE} {metadata.version(_PACKAGE)}"
    except metadata.PackageNotFoundError as error:
        raise RuntimeError(
            "the spoken words need espeak-ng: pip install --no-deps -r requirements-demo.txt"
        ) from error


def voice_families() -> tuple[tuple[str, ...], ...]:
    """Returns every voice variant, related ones together (`klatt` to `klatt6`; `anika` and `anikaRobot`).

    Splitting by family keeps near-copies of a training voice out of the evaluation. The numbered standard
    voices (`f1` to `f5`, `m1` to `m8`) are different speakers and stay apart.

    Raises:
        RuntimeError: The package is not installed.
    """
    version()
    import espeakng_loader

    families: dict[str, list[str]] = {}
    for path in sorted(Path(espeakng_loader.get_data_path(), "voices", "!v").iterdir()):
        name = path.name.lower()
        key = name if re.fullmatch(r"[fm]\d", name) else re.sub(r"\d+$|robot$|f$", "", name)
        families.setdefault(key, []).append(path.name)
    return tuple(tuple(voices) for _, voices in sorted(families.items()))


def synthesize(utterances: Sequence[Utterance]) -> list[np.ndarray]:
    """Returns one mono waveform per utterance: float32, -1 to 1, `SAMPLE_RATE`, silence trimmed.

    Raises:
        RuntimeError: espeak-ng is not installed, did not start, or has no such voice.
    """
    known = {voice for family in voice_families() for voice in family}
    if strange := sorted({u.voice for u in utterances} - known):  # espeak-ng would silently use its own
        raise RuntimeError(f"espeak-ng has no voice variant '{strange[0]}'.")
    request = json.dumps([asdict(u) for u in utterances]).encode()
    done = subprocess.run([sys.executable, __file__], input=request, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"espeak-ng failed: {done.stderr.decode(errors='replace').strip()}")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as data:
        samples, ends = data["samples"], data["ends"]
    return [_trim(w.astype(np.float32) / 32768) for w in np.split(samples, ends[:-1])]


def _trim(wave: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max(initial=1e-9))
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave


class _Library:
    """espeak-ng, initialised; at most one per process."""

    def __init__(self, data: Path, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.chunks: list[np.ndarray] = []
        self.callback = _CALLBACK(self._receive)  # kept: the library holds only its address
        rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _DONT_EXIT)
        if rate != SAMPLE_RATE:
            raise RuntimeError(f"it did not start: got {rate}, expected {SAMPLE_RATE} Hz, data in {data}.")
        self.library.espeak_SetSynthCallback(self.callback)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, utterance: Utterance) -> np.ndarray:
        """Returns int16 samples."""
        self.chunks.clear()
        voice = f"{utterance.accent}+{utterance.voice}"
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise RuntimeError(f"it has no voice {voice!r}.")
        self.library.espeak_SetParameter(_RATE, utterance.speed, 0)
        self.library.espeak_SetParameter(_PITCH, utterance.pitch, 0)
        text = utterance.text.encode() + b"\0"
        self.library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, _UTF8, None, None)
        self.library.espeak_Synchronize()
        return np.concatenate(self.chunks)


def _serve() -> None:
    """Reads utterances from stdin (JSON), writes an `.npz` of their samples to stdout."""
    import espeakng_loader

    with tempfile.TemporaryDirectory() as folder:
        data = Path(espeakng_loader.get_data_path())
        if len(str(data)) > _LONGEST_PATH:  # espeak-ng cuts longer paths
            (Path(folder) / "espeak-ng-data").symlink_to(data)
            data = Path(folder) / "espeak-ng-data"
        library = _Library(data, Path(espeakng_loader.get_library_path()))
        waves = [library.say(Utterance(**u)) for u in json.load(sys.stdin)]
    buffer = io.BytesIO()
    np.savez(buffer, samples=np.concatenate(waves), ends=np.cumsum([len(w) for w in waves]))
    sys.stdout.buffer.write(buffer.getvalue())


if __name__ == "__main__":
    _serve()
