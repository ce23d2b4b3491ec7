"""Keeps built data on disk: made once, written whole or not at all, found again by what made it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def cache_root() -> Path:
    """Returns the cache folder, `.cache/edgemm` under the current directory."""
    return Path.cwd() / ".cache" / "edgemm"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary sibling of `path` to write, and moves it to `path` when the block ends well.

    Raises:
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_arrays(path: Path, arrays: Arrays) -> Path:
    """Returns `path` after writing the arrays there as `.npz`, atomically."""
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
    return path


def load_arrays(path: Path) -> Arrays:
    """Returns every array of an `.npz` file; object arrays are refused.

    Raises:
        ValueError: The file holds pickled objects or is no `.npz`.
    """
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def cached_arrays(name: str, key: str, make: Callable[[], Arrays]) -> Arrays:
    """Returns `make()`, from the cache when the same `name` and `key` were built before.

    Args:
        name: Start of the file name.
        key: Everything the arrays depend on (seeds, sizes, versions); a changed key is a new file.
        make: Builds the arrays.
    """
    path = cache_root() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"
    if not path.exists():
        save_arrays(path, make())
    return load_arrays(path)
