"""Files of one sample as arrays: images, audio, arrays, JSON and raw values, from their bytes.

numpy and the standard library read `.npy`, `.json`, `.bin`, `.txt` and PCM `.wav`; Pillow reads images, soundfile
the other audio formats. Nothing is unpickled.
"""

from __future__ import annotations

import io
import json
import wave
from typing import Any

import numpy as np

from edgemm._optional import require
from edgemm.data.readers.rules import Rule, finish
from edgemm.errors import DataError

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
AUDIO = frozenset({".wav", ".flac", ".ogg", ".mp3"})
VALUES = frozenset({".npy", ".json", ".bin", ".txt"})
FILES = IMAGES | AUDIO | VALUES

_MAGIC = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"fLaC", ".flac"),
    (b"OggS", ".ogg"),
    (b"ID3", ".mp3"),
    (b"\x93NUMPY", ".npy"),
)


def suffix_of(name: str) -> str:
    """Returns the lower-case suffix of a file name, `".jpg"`, or nothing."""
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem and "/" not in suffix and "\\" not in suffix else ""


def sniff(data: bytes) -> str:
    """Returns the suffix that the first bytes of a file tell, or nothing."""
    if data[:4] == b"RIFF":
        return {b"WAVE": ".wav", b"WEBP": ".webp"}.get(data[8:12], "")
    return next((suffix for magic, suffix in _MAGIC if data.startswith(magic)), "")


def decode(data: bytes, suffix: str, rule: Rule, where: str) -> np.ndarray:
    """Returns the array that the bytes of one file hold, made as `rule` says.

    Args:
        data: The whole file.
        suffix: Of its name; empty: told by its first bytes.
        rule: What was said of the array.
        where: Where the file is, for messages.

    Raises:
        DataError: It is damaged, of no known kind, or cannot be what the rule says.
        MissingExtraError: The package that reads it is not installed.
    """
    suffix = suffix or sniff(data)
    if suffix in IMAGES:
        return finish(rule, image(data, rule, where), where)
    if suffix in AUDIO:
        return finish(rule, audio(data, suffix, rule, where), where)
    if suffix == ".npy":
        return finish(rule, _npy(data, where), where)
    if suffix == ".json":
        return finish(rule, _json(data, rule, where), where)
    if suffix == ".bin":
        return finish(rule, _raw(data, rule, where), where)
    if suffix in (".txt", ".cls"):
        return finish(rule, number(data.decode("utf-8", "replace"), where), where)
    raise DataError(
        f"{where}: a file of kind '{suffix or data[:8]!r}' cannot be read as an array.",
        hint=f"known are {', '.join(sorted(FILES))}; convert it, or write a reader class: reader.py:Reader",
    )


def number(text: str, where: str) -> np.ndarray:
    """Returns the whole number (int64) or number (float32) that `text` is, or several that blanks separate.

    Raises:
        DataError: It is none.
    """
    parts = text.replace(",", " ").split()
    for kind, dtype in ((int, np.int64), (float, np.float32)):
        try:
            values = np.asarray([kind(p) for p in parts], dtype)
        except (ValueError, OverflowError):
            continue
        if parts:
            return values[0] if len(parts) == 1 else values
    raise DataError(
        f"{where}: got '{text[:40]}', expected a number.", hint="name the classes of a label: classes: [...]"
    )


def image(data: bytes, rule: Rule, where: str) -> np.ndarray:
    """Returns an image as [H,W,C], uint8 (uint16, int32 or float32 where the file is deeper), RGB order.

    Palettes become RGB, alpha is dropped; `rule.channels` chooses gray (ITU-R 601 luma, as Pillow does) or BGR,
    and `rule.size` resizes bilinearly with antialiasing.

    Raises:
        DataError: Pillow cannot read it.
        MissingExtraError: Pillow is not installed.
    """
    pillow = require("PIL.Image", extra="images", why="read images")
    try:
        picture = pillow.open(io.BytesIO(data))
        picture.load()
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        unknown = isinstance(error, pillow.UnidentifiedImageError)
        what = "it is of no kind that Pillow knows" if unknown else error
        raise DataError(
            f"{where}: the image cannot be read: {what}.", hint="replace or remove the file"
        ) from error
    deep = picture.mode in ("I", "F") or picture.mode.startswith("I;16")
    if rule.channels == "gray" and not deep:
        picture = picture.convert("L")
    elif rule.channels in ("rgb", "bgr") or (picture.mode not in ("L", "RGB") and not deep):
        picture = picture.convert("L" if picture.mode in ("1", "LA") and rule.channels is None else "RGB")
    if rule.size is not None:
        picture = picture.resize((rule.size[1], rule.size[0]), pillow.Resampling.BILINEAR)
    pixels = np.array(picture)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return pixels[:, :, ::-1] if rule.channels == "bgr" else pixels


def from_pixels(pixels: np.ndarray, rule: Rule, where: str) -> np.ndarray:
    """Returns raw pixels [H,W] or [H,W,C] in RGB order with the channels and the size that the rule says.

    Raises:
        DataError: Pixels of this depth cannot be resized or change their channels.
    """
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if rule.size is None and (rule.channels is None or (rule.channels == "gray") == (pixels.shape[2] == 1)):
        return pixels[:, :, ::-1] if rule.channels == "bgr" else pixels
    if pixels.dtype != np.uint8:
        if rule.channels not in (None, "gray") or pixels.shape[2] != 1:
            raise DataError(
                f"{where}: an image of {pixels.dtype} keeps its channels.", hint="leave `channels` out, or `gray`"
            )
        pillow = require("PIL.Image", extra="images", why="resize images")
        assert rule.size is not None
        plane = pillow.fromarray(pixels[:, :, 0].astype(np.float32))
        resized = np.array(plane.resize((rule.size[1], rule.size[0]), pillow.Resampling.NEAREST))
        return resized.astype(pixels.dtype)[:, :, None]
    pillow = require("PIL.Image", extra="images", why="resize images")
    buffer = io.BytesIO()
    pillow.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[:, :, :3])).save(
        buffer, "BMP"
    )
    return image(buffer.getvalue(), rule, where)


def audio(data: bytes, suffix: str, rule: Rule, where: str) -> np.ndarray:
    """Returns audio as [T] for one channel, else [T,C]: float32 in -1 to 1, or int16 where the rule wants that.

    Raises:
        DataError: It cannot be read, or is no audio.
        MissingExtraError: soundfile is needed and not installed; it is for floats, FLAC, Ogg and MP3.
    """
    whole = rule.dtype == "int16"
    samples, rate = _wave(data, whole, where) if suffix == ".wav" else (None, 0)
    if samples is None:
        soundfile = require("soundfile", extra="audio", why=f"read {suffix[1:]} files that are not PCM")
        try:
            samples, rate = soundfile.read(io.BytesIO(data), dtype="int16" if whole else "float32", always_2d=True)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{where}: the audio cannot be read: {error}", hint="replace or remove it") from error
    return sound(samples, rate, rule, where)


def sound(samples: np.ndarray, rate: int, rule: Rule, where: str) -> np.ndarray:
    """Returns samples [T,C] with the channels and the rate that the rule says, as [T] for one channel.

    Raises:
        DataError: The channels are those of an image, or the rate is not known and one is wanted.
    """
    if rule.channels not in (None, "mono"):
        raise DataError(f"{where}: audio has no channels '{rule.channels}'.", hint="`mono` mixes all to one")
    if rule.channels == "mono" and samples.shape[1] > 1:
        mixed = samples.mean(axis=1, keepdims=True, dtype=np.float64)
        samples = _as(mixed, samples.dtype)
    if rule.rate is not None and rule.rate != rate:
        if rate <= 0:
            raise DataError(f"{where}: the rate of this audio is not known.", hint="leave `rate` out")
        signal = require("scipy.signal", extra="convert", why=f"resample audio from {rate} to {rule.rate} Hz")
        divisor = int(np.gcd(rate, rule.rate))
        raw = signal.resample_poly(samples.astype(np.float64), rule.rate // divisor, rate // divisor, axis=0)
        samples = _as(raw, samples.dtype)
    return samples[:, 0] if samples.shape[1] == 1 else samples


def _as(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    return np.rint(values).clip(-32768, 32767).astype(dtype) if dtype.kind == "i" else values.astype(dtype)


def _wave(data: bytes, whole: bool, where: str) -> tuple[np.ndarray | None, int]:
    """Returns PCM samples [T,C] and their rate, or None for a coding that the standard library does not read."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except EOFError as error:
        raise DataError(f"{where}: the audio is truncated.", hint="replace or remove the file") from error
    except wave.Error as error:
        if "unknown format" in str(error):
            return None, 0
        raise DataError(f"{where}: no wav file: {error}.", hint="replace or remove the file") from error
    frames = frames[: len(frames) - len(frames) % (channels * width)]
    if width == 1:
        values = (np.frombuffer(frames, np.uint8).astype(np.int32) - 128) << 24
    elif width == 3:
        padded = np.zeros((len(frames) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        values = padded.view("<i4")[:, 0].astype(np.int32)
    else:
        values = np.frombuffer(frames, f"<i{width}").astype(np.int32) << (32 - 8 * width)
    values = values.reshape(-1, channels)
    return ((values >> 16).astype(np.int16) if whole else (values / 2.0**31).astype(np.float32)), rate


def _npy(data: bytes, where: str) -> np.ndarray:
    try:
        array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{where}: no .npy array: {error}", hint="write it again with numpy.save") from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _json(data: bytes, rule: Rule, where: str) -> np.ndarray:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise DataError(f"{where}: no JSON: {error}.", hint="replace or remove the file") from error
    parts = [_member(value, path, where) for path in rule.field or ("",)]
    return parts[0] if len(parts) == 1 else np.concatenate([np.atleast_1d(p) for p in parts])


def _member(value: Any, path: str, where: str) -> np.ndarray:
    for key in filter(None, path.split(".")):
        if not isinstance(value, dict) or key not in value:
            known = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise DataError(f"{where}: no member '{path}' (there are: {known}).", hint="correct `field`")
        value = value[key]
    array = np.asarray(value) if not isinstance(value, dict) else np.asarray(None)
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{where}: '{path or 'the file'}' holds no numbers.", hint="name a member with numbers: `field: a.b`"
        )
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _raw(data: bytes, rule: Rule, where: str) -> np.ndarray:
    if rule.dtype is None:
        raise DataError(
            f"{where}: a .bin file does not say what it holds.",
            hint="say it in a description file, for lidar points for example dtype: float32, shape: [-1, 4]",
        )
    dtype = np.dtype(rule.dtype)
    if len(data) % dtype.itemsize:
        raise DataError(f"{where}: {len(data)} bytes are no whole number of {dtype}.", hint="correct `dtype`")
    return np.frombuffer(data, dtype).copy()
