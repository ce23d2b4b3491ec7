"""The user's own code as a data source: `FILE.py:CLASS`, a calibration reader.

The class is called with no argument and is one of:

- *indexed*: `__len__` and `__getitem__(i) -> dict of arrays`;
- *generator-style*: `__len__` and `__iter__`, which yields one dict of arrays per sample. Every `iter(reader)`
  must start again from the first sample: reading backwards restarts it, and conversion reads several times.

An error in the user's code becomes a DataError that names the line.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.data.samples import digest_of
from edgemm.errors import DataError, did_you_mean

_REFERENCE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")
_SHAPE = "give it __len__ and __getitem__(i) -> dict of arrays (or __iter__ that yields such dicts)"


def is_reference(text: str) -> bool:
    """True when `text` has the form `FILE.py:NAME`."""
    return _REFERENCE.fullmatch(text) is not None


def load_attribute(reference: str) -> Any:
    """Returns `NAME` from the Python file in `FILE.py:NAME`. This runs the file.

    The file's folder is importable while it loads, as it is for `python FILE.py`.

    Raises:
        DataError: The reference has another form, the file is not there, fails, or has no such name.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise DataError(
            f"'{reference}' names no Python object.", hint="write FILE.py:NAME, for example reader.py:Reader"
        )
    path, name = Path(match["file"]), match["name"]
    if not path.is_file():
        raise DataError(f"{path}: no such file.", hint=f"'{reference}' must name a Python file that exists")
    module_name = "edgemm_user_" + re.sub(r"\W", "_", str(path.resolve()))
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: Python cannot load it.", hint="it must be a plain .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    run_file = spec.loader.exec_module
    try:
        _guarded(path, "loading the file", lambda: run_file(module))
    except DataError:
        del sys.modules[module_name]
        raise
    finally:
        sys.path.remove(folder)
    if not hasattr(module, name):
        known = [k for k in vars(module) if not k.startswith("_")]
        raise DataError(
            f"{path}: no '{name}' in it.",
            hint=did_you_mean(name, known, f"it defines {', '.join(known) or 'nothing'}"),
        )
    return getattr(module, name)


def _guarded(path: Path, doing: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except DataError:
        raise
    except Exception as error:
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == path.resolve()
        ]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
        where = f"{path}:{line}" if line is not None else str(path)
        raise DataError(
            f"{where}: {doing} failed: {type(error).__name__}: {error}",
            hint="the error comes from this file, not from edgemm; run it on its own to find the cause",
        ) from error


class ReaderSamples:
    """Samples from the user's class, each call guarded and each sample checked for its form."""

    def __init__(self, reference: str) -> None:
        """Makes the reader.

        Raises:
            DataError: It cannot be loaded or made, or is neither indexed nor generator-style.
        """
        cls = load_attribute(reference)
        self.origin = reference
        self._path = Path(reference.rpartition(":")[0])
        if not callable(cls):
            raise DataError(f"{reference} is a {type(cls).__name__}, expected a class.", hint=_SHAPE)
        self._reader = _guarded(self._path, f"{cls.__name__}()", cls)
        kind = type(self._reader)
        if not hasattr(kind, "__len__") or not (hasattr(kind, "__getitem__") or hasattr(kind, "__iter__")):
            missing = "__len__" if not hasattr(kind, "__len__") else "__getitem__"
            raise DataError(f"{reference}: {kind.__name__} has no {missing}.", hint=_SHAPE)
        self._indexed = hasattr(kind, "__getitem__")
        self._length = int(_guarded(self._path, "__len__", lambda: len(self._reader)))
        self._iterator: Iterator[Any] | None = None
        self._position = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        if not 0 <= index < self._length:
            raise IndexError(index)
        if self._indexed:
            raw = _guarded(self._path, f"__getitem__({index})", lambda: self._reader[index])
        else:
            raw = self._next(index)
        if not isinstance(raw, Mapping):
            raise DataError(
                f"{self.locate(index)}: got {type(raw).__name__}, expected a dict of arrays.",
                hint="return {'input name': array, ..., 'label': value} for one sample",
            )
        convert = partial(_guarded, self._path)
        return {str(k): convert(f"array '{k}' of row {index}", partial(np.asarray, v)) for k, v in raw.items()}

    def _next(self, index: int) -> Any:
        if self._iterator is None or index < self._position:
            self._iterator = _guarded(self._path, "__iter__", lambda: iter(self._reader))
            self._position = 0
        missing = object()
        value: Any = missing
        step = partial(next, self._iterator, missing)
        while self._position <= index:
            value = _guarded(self._path, f"sample {self._position}", step)
            if value is missing:
                position, self._iterator = self._position, None
                raise DataError(
                    f"{self.origin}: __iter__ gave {position} samples, __len__ says {self._length}.",
                    hint="return a new generator from every __iter__ (a used-up one cannot be rewound), "
                    "or correct __len__",
                )
            self._position += 1
        return value

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names in the first sample."""
        return tuple(self[0]) if self._length else ()

    @cached_property
    def digest(self) -> str:
        """The sha256 over every sample in order."""
        return digest_of(self)

    def locate(self, index: int) -> str:
        """Returns `"reader.py:Reader row 3"`."""
        return f"{self.origin} row {index}"
