"""Compiles `cuda_fake.c` and puts it in the place of libcudart and libcuda."""

from __future__ import annotations

import ctypes
import functools
import gc
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgemm.runtime._cuda import library

SOURCE = Path(__file__).with_name("cuda_fake.c")
COMPILER = shutil.which("cc") or shutil.which("gcc")
KINDS = ("device", "pinned", "stream", "event", "graph", "exec")
Work = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64)


@functools.cache
def compiled(*flags: str) -> Path:
    """Returns the library, compiled once per process and set of flags."""
    folder = Path(tempfile.mkdtemp(prefix="cuda_fake"))
    file = folder / "libcudart_fake.so"
    assert COMPILER is not None
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-Wall", *flags, str(SOURCE), "-o", str(file), "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return file


class FakeCuda:
    """The machine that the fake plays, and what was seen on it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.library = ctypes.CDLL(str(file))
        for name in ("fake_log", "fake_violations"):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.library.fake_machine.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t)
        self.library.fake_work.argtypes = (ctypes.c_void_p, Work, ctypes.c_int64)
        self.library.fake_allocated.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self.library.fake_pending.argtypes = (ctypes.c_void_p,)
        self._works: list[Any] = []

    def machine(self, *, devices: int = 1, integrated: bool = False, memory: int = 2**30) -> None:
        self.library.fake_machine(devices, integrated, memory)

    def fail(self, name: str, call: int, code: int = 1) -> None:
        """The `call`-th call of `name` from the last reset on fails with `code`."""
        self.library.fake_fail(name.encode(), call, code)

    def lose(self, code: int) -> None:
        """Every call fails from now on, as after an illegal address."""
        self.library.fake_lose(code)

    def launch(self, stream: int, work: Any) -> int:
        """Puts a kernel on `stream`: `work()` is called when the stream gets there, and may give an error."""
        kernel = Work(lambda _: work() or 0)
        self._works.append(kernel)
        return int(self.library.fake_work(stream, kernel, 0))

    def pending(self, stream: int) -> int:
        return int(self.library.fake_pending(stream))

    def allocated(self, address: int, size: int) -> bool:
        return bool(self.library.fake_allocated(address, size))

    @property
    def calls(self) -> list[str]:
        """`"name number"` of every call since the last reset."""
        return self.library.fake_log().decode().splitlines()

    @property
    def counts(self) -> Counter[str]:
        return Counter(call.split()[0] for call in self.calls)

    @property
    def violations(self) -> list[str]:
        return self.library.fake_violations().decode().splitlines()

    @property
    def live(self) -> dict[str, int]:
        """Objects that were made and not freed; empty when there are none."""
        found = self.counted()
        if found:
            gc.collect()
            found = self.counted()
        return found

    def counted(self) -> dict[str, int]:
        """As `live`, with what waits for the garbage collector."""
        found = (ctypes.c_int * len(KINDS))()
        self.library.fake_live(found)
        return {kind: count for kind, count in zip(KINDS, found, strict=True) if count}

    def reset(self) -> None:
        self.library.fake_reset()

    def purge(self) -> None:
        """Forgets what is live."""
        self.library.fake_purge()


@contextmanager
def installed(*flags: str) -> Iterator[FakeCuda]:
    """The fake instead of CUDA; afterwards nothing is left on it, and nothing was done that must not be."""
    fake = FakeCuda(compiled(*flags))
    fake.reset()
    fake.purge()
    fake.machine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "RUNTIME_NAMES", (str(fake.file),))
        patch.setattr(library, "DRIVER_NAMES", (str(fake.file),))
        library.load_runtime.cache_clear()
        library.load_driver.cache_clear()
        try:
            yield fake
        finally:
            library.load_runtime.cache_clear()
            library.load_driver.cache_clear()
    assert fake.violations == []
    assert fake.live == {}
