"""Collects outputs call by call on disk, so that a run needs the memory of one call only."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from edgemm.errors import DataError
from edgemm.tensors import IOSpec, TensorSpec

_CHUNK = 1 << 17


class _Column:
    """The rows of one output, appended to a file of raw values."""

    def __init__(self, file: Path, row: np.ndarray) -> None:
        self.file = file
        self.stream = file.open("wb")
        self.dtype = row.dtype
        self.shape = row.shape[1:]
        self.rows = 0


class OutputSpool:
    """Takes the outputs of each call, in order, and writes them as one `.npz`. A context manager."""

    def __init__(self, folder: Path, io: IOSpec) -> None:
        """Collects below a temporary folder inside `folder`, which is removed in the end.

        Raises:
            DataError: The folder cannot be written.
        """
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=".edgemm-run-", dir=folder))
        except OSError as error:
            raise DataError(
                f"cannot write to {folder}: {error.strerror}.", hint="choose a folder that you may write to"
            ) from error
        self._specs = {o.name: o for o in io.result_outputs}
        self._batch = io.batch
        self._columns: dict[str, _Column] = {}

    def __enter__(self) -> OutputSpool:
        """Returns the spool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was collected."""
        for column in self._columns.values():
            with contextlib.suppress(OSError):  # what a full disk could not take is dropped anyway
                column.stream.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, outputs: Mapping[str, np.ndarray], first: int, number: int) -> None:
        """Appends the outputs of one call.

        Args:
            outputs: Output name -> array.
            first: Index of the call's first sample, for messages.
            number: How many samples the call had.

        Raises:
            DataError: An output has not one row per sample, changes its shape or does not fit on the disk.
        """
        for name, value in outputs.items():
            rows = self._rows(self._specs[name], value, number)
            column = self._columns.get(name)
            if column is None:
                file = self._folder / f"{len(self._columns)}.raw"
                column = self._columns[name] = _Column(file, rows)
            if rows.shape[1:] != column.shape:
                raise DataError(
                    f"output '{name}' has shape {list(rows.shape[1:])} for sample {first}, and "
                    f"{list(column.shape)} for the samples before; one array cannot hold both.",
                    hint="run the samples of each shape from a file of their own"
                    + (", or with --batch 1" if number > 1 else ""),
                )
            try:
                column.stream.write(np.ascontiguousarray(rows).data)
            except OSError as error:
                raise DataError(
                    f"cannot write the outputs beside the output file: {error.strerror}.",
                    hint="free some space or choose another folder; nothing was written",
                ) from error
            column.rows += number

    def _rows(self, spec: TensorSpec, value: np.ndarray, number: int) -> np.ndarray:
        """Returns `value` with one row per sample of the call."""
        counts = bool(spec.shape) and (isinstance(spec.shape[0], str) or spec.shape[0] == self._batch)
        if self._batch is not None and counts and value.shape[:1] == (number,):
            return value
        if number == 1:
            return value[None]
        raise DataError(
            f"output '{spec.name}' {list(spec.shape)} has shape {list(value.shape)} for a call with {number} "
            "samples: not one row per sample.",
            hint="run with --batch 1: then every call's output is one row",
        )

    def write_npz(self, file: IO[bytes]) -> None:
        """Writes every output as an array with the samples on the first axis, without compression."""
        for column in self._columns.values():
            column.stream.flush()
        # A fixed date: equal outputs give equal bytes.
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, column in self._columns.items():
                info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                with archive.open(info, "w", force_zip64=True) as member, column.file.open("rb") as raw:
                    header = {
                        "descr": np.lib.format.dtype_to_descr(column.dtype),
                        "fortran_order": False,
                        "shape": (column.rows, *column.shape),
                    }
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(raw, member, _CHUNK)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Returns `{dtype, shape}` of every collected output."""
        return {name: {"dtype": c.dtype.name, "shape": [c.rows, *c.shape]} for name, c in self._columns.items()}
