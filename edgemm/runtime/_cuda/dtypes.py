"""Dtypes by name, also those that numpy lacks: their bytes are unsigned integers, their values float32."""

from __future__ import annotations

import functools

import numpy as np

BFLOAT16, FLOAT8 = "bfloat16", "float8_e4m3fn"

STORED = {
    "float32": "float32",
    "float16": "float16",
    BFLOAT16: "uint16",
    FLOAT8: "uint8",
    "int8": "int8",
    "uint8": "uint8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}
"""Dtype of a tensor at an engine's border -> numpy dtype with the same bytes. Packed ones are not there."""

_MANTISSA = {BFLOAT16: 7, FLOAT8: 3}


def storage(name: str) -> np.dtype:
    """Returns the numpy dtype that holds the bytes of dtype `name`, a key of `STORED`."""
    return np.dtype(STORED[name])


def host_dtype(name: str) -> str:
    """Returns the dtype in which values of `name` are on the host: float32 for what numpy lacks."""
    return "float32" if name in _MANTISSA else name


def encode(array: np.ndarray, name: str) -> np.ndarray:
    """Returns float32 `array` as the bytes of `name`, rounded to nearest even; float8 saturates at ±448."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    if name == BFLOAT16:
        rounded = (bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)
        return np.where(np.isnan(array), np.uint32(0x7FC0), rounded).astype(np.uint16)
    values = _float8()[:127]
    middles = (values[:-1] + values[1:]) / 2
    size = np.abs(array, dtype=np.float32)
    index = np.searchsorted(middles, size)
    tie = (index < len(middles)) & (middles[np.minimum(index, len(middles) - 1)] == size) & (index % 2 == 1)
    code = np.where(np.isnan(array), 127, index + tie)
    signed: np.ndarray = code | (np.signbit(array).astype(np.int64) << 7)
    return signed.astype(np.uint8)


def decode(stored: np.ndarray, name: str) -> np.ndarray:
    """Returns the bytes of `name` as float32, exactly."""
    if name == BFLOAT16:
        bits: np.ndarray = stored.astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32)
    values: np.ndarray = _float8()[stored]
    return values


@functools.cache
def _float8() -> np.ndarray:
    """Returns the 256 values of float8_e4m3fn (OCP 8-bit Floating Point Specification 1.0)."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    value[code & 127 == 127] = np.nan
    return np.where(code < 128, value, -value).astype(np.float32)
