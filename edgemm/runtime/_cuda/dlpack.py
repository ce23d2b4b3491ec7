"""DLPack through ctypes: arrays on a GPU to and from torch, cupy and others without a copy.

The structures are those of `dlpack.h`, the capsule protocol that of the array API standard
(`array.__dlpack__`, 2022.12): a consumer renames the capsule and calls the deleter when it is done.
"""

from __future__ import annotations

import ctypes
import itertools
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p, py_object
from typing import Any, NamedTuple

CUDA = 2
"""`kDLCUDA`."""

_NAME, _USED = b"dltensor", b"used_dltensor"

_INT, _UINT, _FLOAT, _BFLOAT, _BOOL, _FLOAT8 = 0, 1, 2, 4, 6, 10

TYPES = {
    "float32": (_FLOAT, 32),
    "float16": (_FLOAT, 16),
    "bfloat16": (_BFLOAT, 16),
    "float8_e4m3fn": (_FLOAT8, 8),
    "int8": (_INT, 8),
    "uint8": (_UINT, 8),
    "int32": (_INT, 32),
    "int64": (_INT, 64),
    "float64": (_FLOAT, 64),
    "bool": (_BOOL, 8),
}
"""Dtype -> `DLDataTypeCode` and bits."""

_DTYPES = {code: name for name, code in TYPES.items()}


class _Device(ctypes.Structure):
    _fields_ = [("type", c_int32), ("id", c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device", _Device),
        ("ndim", c_int32),
        ("dtype", _Type),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", c_void_p), ("deleter", _Deleter)]

_Destructor = ctypes.CFUNCTYPE(None, c_void_p)

_new = ctypes.pythonapi.PyCapsule_New
_new.argtypes, _new.restype = (c_void_p, c_char_p, c_void_p), py_object
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.argtypes, _pointer.restype = (py_object, c_char_p), c_void_p
_valid = ctypes.pythonapi.PyCapsule_IsValid
_valid.argtypes, _valid.restype = (py_object, c_char_p), c_int
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes, _rename.restype = (py_object, c_char_p), c_int

# A capsule destructor gets a capsule that is being freed: as an object it would be counted up and freed again.
_raw_pointer = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_raw_valid = ctypes.PYFUNCTYPE(c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))

_exported: dict[int, tuple[Any, ...]] = {}
"""What an exported capsule needs until its deleter is called."""

_numbers = itertools.count(1)


class Imported(NamedTuple):
    """An array of another library. `owner` keeps it alive.

    Attributes:
        pointer: Its address on the GPU.
        shape: Its sizes.
        dtype: Name of its dtype, empty when this code has none for it.
        device: Index of the GPU.
        contiguous: Whether it is in C order without gaps.
        owner: To be kept until the GPU is done with the array.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device: int
    contiguous: bool
    owner: Any


@_Deleter  # type: ignore[untyped-decorator]
def _delete(managed: Any) -> None:
    _exported.pop(managed.contents.context or 0, None)


@_Destructor  # type: ignore[untyped-decorator]
def _destroy(capsule: int) -> None:
    if _raw_valid(capsule, _NAME):  # nobody took it
        _exported.pop(_Managed.from_address(_raw_pointer(capsule, _NAME)).context or 0, None)


def export(pointer: int, shape: tuple[int, ...], dtype: str, device: int, owner: Any) -> Any:
    """Returns a capsule over memory that `owner` keeps, in C order."""
    sizes = (c_int64 * len(shape))(*shape)
    number = next(_numbers)
    managed = _Managed()
    managed.tensor = _Tensor(
        pointer,
        _Device(CUDA, device),
        len(shape),
        _Type(*TYPES[dtype], 1),
        ctypes.cast(sizes, POINTER(c_int64)),
        None,
        0,
    )
    managed.context, managed.deleter = number, _delete
    _exported[number] = (managed, sizes, owner)
    return _new(ctypes.addressof(managed), _NAME, ctypes.cast(_destroy, c_void_p))


class _Owner:
    """Calls the deleter of a capsule that was taken."""

    def __init__(self, managed: _Managed) -> None:
        self._managed = managed

    def __del__(self) -> None:
        if self._managed.deleter:
            self._managed.deleter(ctypes.byref(self._managed))


def take(capsule: Any) -> Imported:
    """Returns what `capsule` holds, and takes it over.

    Raises:
        ValueError: It was taken before, or is no array on a CUDA GPU.
    """
    if not _valid(capsule, _NAME):
        raise ValueError("its DLPack capsule is used up, or of a version that was not asked for")
    managed = _Managed.from_address(_pointer(capsule, _NAME))
    tensor = managed.tensor
    if tensor.device.type != CUDA:
        raise ValueError(f"DLPack says that it is on device type {tensor.device.type}, not on a CUDA GPU")
    _rename(capsule, _USED)
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    dtype = _DTYPES.get((tensor.dtype.code, tensor.dtype.bits), "") if tensor.dtype.lanes == 1 else ""
    pointer = (tensor.data or 0) + tensor.byte_offset
    owner = (_Owner(managed), capsule)
    return Imported(pointer, shape, dtype, tensor.device.id, contiguous(shape, strides), owner)


def contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    """Returns whether `strides` (in elements, or in bytes of 1-byte elements) are those of C order."""
    if strides is None or 0 in shape:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
