"""Samples from `.npz` files, one or a folder of shards, read row by row; `open_samples` opens the other forms too.

Uncompressed members are memory-mapped in place; compressed ones are unpacked once, on first use, to a temporary
file that is mapped. Memory use does not grow with the file. Nothing is unpickled.
"""

from __future__ import annotations

import math
import mmap
import shutil
import struct
import tempfile
import weakref
import zipfile
import zlib
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgemm.data.reader import ReaderSamples, is_reference
from edgemm.data.samples import Sample, Source, digest_of
from edgemm.errors import DataError, did_you_mean

_RESIDENT = 16 * 2**20
"""Bytes of a mapped array that may stay resident."""

_WRITE = "write it with numpy.savez(path, image=..., label=...): one array per input, first axis = sample"


def open_samples(path: str) -> Source:
    """Returns the samples at `path`, opened but not yet read.

    Args:
        path: A `.npz` file (one array per input, first axis = sample; other arrays are labels), a folder of
            such shards (read in the order of their names; array names must agree, lengths of time need not),
            `FILE.py:CLASS` (a calibration reader; this runs the file), a description file (`.yaml`), or data in
            one of the forms of `edgemm.data.readers`: images, audio, tables, archives, recordings.

    Raises:
        DataError: Nothing is there, or it is none of these; the message says what was found.
        MissingExtraError: The package that reads it is not installed.
    """
    from edgemm.data.readers import Description, guess_form, open_described, read_description

    if is_reference(path):
        return ReaderSamples(path)
    file = Path(path)
    if file.suffix == ".py":
        raise DataError(
            f"{path}: a reader needs the name of its class.", hint=f"write {path}:CLASS, for example {path}:Reader"
        )
    if not file.exists():
        near = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise DataError(
            f"{path}: no such file.",
            hint=did_you_mean(
                file.name,
                near,
                "give a .npz file, a folder of .npz shards, FILE.py:CLASS, a manifest (.csv), a recording "
                "or a description file (.yaml)",
            ),
        )
    if file.suffix in (".yaml", ".yml"):
        return open_described(read_description(file))
    if file.is_file() and not _has_other_form(file):
        return NpzSamples(file)
    form = guess_form(file)
    return open_npz(file) if form == "npz" else open_described(Description(path, file, form))


def open_npz(path: Path) -> Source:
    """Returns the samples of an `.npz` file or of a folder of such shards.

    Raises:
        DataError: It is damaged, or no such file.
    """
    if not path.is_dir():
        return NpzSamples(path)
    shards = tuple(NpzSamples(s) for s in sorted(path.glob("*.npz")))
    if not shards:
        raise DataError(f"{path}: no .npz shards in it.", hint=_WRITE)
    return ShardedSamples(path, shards)


def _has_other_form(file: Path) -> bool:
    """True for files of the forms in `edgemm.data.readers`; what has another name is read as `.npz`."""
    from edgemm.data.readers import OTHER_FILES

    return file.suffix.lower() in OTHER_FILES


@dataclass(slots=True)
class _Member:
    """One array inside an `.npz`: its header, and its rows once they are asked for."""

    name: str
    file: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: str
    offset: int | None  # where the values start in the file; None when compressed
    values: np.ndarray | None = None
    read: int = 0  # bytes since mapped pages were last let go


class NpzSamples:
    """One `.npz` file. Keeps headers in memory and maps the values."""

    def __init__(self, path: Path) -> None:
        """Reads the headers.

        Raises:
            DataError: Not an `.npz`, truncated, holds objects, or its arrays differ in length.
        """
        self.origin = str(path)
        self._path = path
        self._folder: Path | None = None
        self._members = _read_members(path)
        lengths = {m.name: m.shape[0] for m in self._members}
        check_lengths(self.origin, lengths)
        self._length = next(iter(lengths.values()), 0)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the file."""
        return tuple(m.name for m in self._members)

    @cached_property
    def digest(self) -> str:
        """The sha256 over every row in order."""
        return digest_of(self)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(index)
        # A copy: mapped members start at any byte, and a kernel wants aligned rows in native byte order.
        sample = {
            m.name: np.array(self._rows(m)[index], dtype=m.dtype.newbyteorder("="), order="C")
            for m in self._members
        }
        for member in self._members:
            _let_go(member, sample[member.name].nbytes)
        return sample

    def locate(self, index: int) -> str:
        """Returns `"calib.npz row 3"`."""
        return f"{self.origin} row {index}"

    def _rows(self, member: _Member) -> np.ndarray:
        if member.values is None:
            if math.prod(member.shape) == 0 or member.dtype.itemsize == 0:
                member.values = np.empty(member.shape, member.dtype)
            elif member.offset is not None:
                order: Any = member.order
                member.values = np.memmap(self._path, member.dtype, "r", member.offset, member.shape, order)
            else:
                member.values = np.load(self._unpack(member), mmap_mode="r", allow_pickle=False)
        return member.values

    def _unpack(self, member: _Member) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="edgemm-data-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        target = self._folder / f"{self._members.index(member)}.npy"
        try:
            with (
                zipfile.ZipFile(self._path) as archive,
                archive.open(member.file) as source,
                target.open("wb") as out,
            ):
                shutil.copyfileobj(source, out, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise _damaged(self.origin, str(error)) from error
        except OSError as error:
            raise DataError(
                f"{self.origin}: cannot unpack array '{member.name}' to {self._folder}: {error.strerror}.",
                hint="free some space, point TMPDIR elsewhere, or save with numpy.savez (not savez_compressed), "
                "which is read in place",
            ) from error
        return target


class ShardedSamples:
    """Several `.npz` files with the same array names, one after the other."""

    def __init__(self, folder: Path, shards: tuple[NpzSamples, ...]) -> None:
        """Compares the names.

        Raises:
            DataError: The shards differ in their array names.
        """
        self.origin = str(folder)
        self.names = shards[0].names
        for shard in shards[1:]:
            if set(shard.names) != set(self.names):
                raise DataError(
                    f"{shard.origin}: has arrays {', '.join(sorted(shard.names))}, "
                    f"but {shards[0].origin} has {', '.join(sorted(self.names))}.",
                    hint="every shard of a folder needs the same arrays",
                )
        self._shards = shards
        self._starts = [0]
        for shard in shards:
            self._starts.append(self._starts[-1] + len(shard))

    @cached_property
    def digest(self) -> str:
        """The sha256 over every row in order."""
        return digest_of(self)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        shard, row = self._find(index)
        return shard[row]

    def locate(self, index: int) -> str:
        """Returns `"shards/b.npz row 3"`."""
        shard, row = self._find(index)
        return shard.locate(row)

    def _find(self, index: int) -> tuple[NpzSamples, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self._starts, index) - 1
        return self._shards[which], index - self._starts[which]


def _let_go(member: _Member, size: int) -> None:
    """Unmaps pages that were read, now and then: they stay cached and are no longer memory of this process."""
    member.read += size
    pages = getattr(member.values, "_mmap", None)
    if member.read >= _RESIDENT and pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)
        member.read = 0


def check_lengths(origin: str, lengths: dict[str, int]) -> None:
    """Compares the number of samples of each array.

    Raises:
        DataError: They differ; the message names the odd one and a usual one.
    """
    if len(set(lengths.values())) <= 1:
        return
    counted = Counter(lengths.values())
    usual = max(counted, key=lambda n: (counted[n], n))
    odd = next(name for name, n in lengths.items() if n != usual)
    other = next(name for name, n in lengths.items() if n == usual)
    raise DataError(
        f"{origin}: array '{odd}' has {lengths[odd]} samples, '{other}' has {usual}.",
        hint="every input needs one row per sample; pair them before saving, or pass a reader: "
        "--calib my_reader.py:Reader",
    )


def _damaged(origin: str, what: str) -> DataError:
    return DataError(f"{origin}: the file is truncated or damaged ({what}).", hint="copy or write it again")


def _read_members(path: Path) -> list[_Member]:
    origin = str(path)
    try:
        with path.open("rb") as raw:
            start = raw.read(8)
            if not start.startswith(b"PK"):
                raise DataError(f"{origin}: {_found(start)}, expected an .npz file.", hint=_WRITE)
            with zipfile.ZipFile(raw) as archive:
                infos = [i for i in archive.infolist() if not i.is_dir()]
                members = [_read_member(origin, raw, archive, info) for info in infos]
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError, NotImplementedError) as error:
        raise _damaged(origin, str(error) or type(error).__name__) from error
    except OSError as error:
        raise DataError(
            f"{origin}: cannot be read: {error.strerror}.", hint="check the path and its rights"
        ) from error
    if not members:
        raise DataError(f"{origin}: an .npz file with no arrays in it.", hint=_WRITE)
    return members


def _found(start: bytes) -> str:
    kinds = [
        (b"\x93NUMPY", "found a single .npy array without a name"),
        (b"\x80", "found a pickle, which is not opened because loading one runs code"),
        (b"\x89HDF", "found an HDF5 file"),
        (b"\x1f\x8b", "found a gzip archive"),
        (b"PAR1", "found a Parquet file"),
    ]
    if not start:
        return "the file is empty"
    return next((text for magic, text in kinds if start.startswith(magic)), f"found bytes {start!r}")


def _read_member(origin: str, raw: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    if not info.filename.endswith(".npy"):
        raise DataError(f"{origin}: a zip with '{info.filename}' in it, which is no array.", hint=_WRITE)
    name = info.filename.removesuffix(".npy")
    stored = info.compress_type == zipfile.ZIP_STORED
    if stored:
        raw.seek(info.header_offset)
        local = raw.read(30)
        name_length, extra_length = struct.unpack("<HH", local[26:30])
        raw.seek(info.header_offset + 30 + name_length + extra_length)
        shape, fortran, dtype = _read_header(origin, name, raw)
        offset = raw.tell()
        if offset + math.prod(shape) * dtype.itemsize > Path(origin).stat().st_size:
            raise _damaged(origin, f"array '{name}' ends after the file")
    else:
        with archive.open(info) as stream:
            shape, fortran, dtype = _read_header(origin, name, stream)
    if not shape:
        raise DataError(
            f"{origin}: array '{name}' is a single value and has no sample axis.",
            hint="keep only arrays with one row per sample in this file",
        )
    return _Member(name, info.filename, dtype, shape, "F" if fortran else "C", offset if stored else None)


def _read_header(origin: str, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran, dtype = read[version](stream)
    except (ValueError, KeyError) as error:
        raise _damaged(origin, f"array '{name}': {error}") from error
    if dtype.hasobject:
        raise DataError(
            f"{origin}: array '{name}' holds Python objects, which are pickled and are not loaded.",
            hint=f"rows of unequal length? pad them: numpy.stack(rows).astype('float32'), or write one shard per "
            f"length; then numpy.savez(..., {name}=...)",
        )
    if dtype.fields is not None:
        raise DataError(
            f"{origin}: array '{name}' has fields {', '.join(dtype.fields)}.",
            hint="save every field as an array of its own",
        )
    return shape, fortran, dtype
