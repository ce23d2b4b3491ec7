"""Hugging Face datasets as `Dataset.save_to_disk` writes them: Arrow files that are mapped, not loaded.

Columns of images and audio hold the bytes of files; class labels are numbers whose names the dataset knows.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemm._optional import require
from edgemm.data.readers.description import Description
from edgemm.data.readers.manifest import python_value
from edgemm.data.readers.source import ReaderSource
from edgemm.data.readers.table import TableSamples, default_rules
from edgemm.errors import DataError, did_you_mean


def open_dataset(description: Description) -> ReaderSource:
    """Returns the samples of a saved dataset, or of one split of a saved DatasetDict.

    Raises:
        DataError: No dataset, a damaged one, or several splits and none is named.
        MissingExtraError: pyarrow is not installed.
    """
    folder = description.source
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        if description.split is None and len(splits) == 1:
            folder = folder / splits[0]
        elif description.split not in splits:
            asked = f"no split '{description.split}'" if description.split else "several splits"
            raise DataError(
                f"{description.origin}: {asked} (splits: {', '.join(splits)}).",
                hint=did_you_mean(
                    description.split or "",
                    splits,
                    f"give one, {folder / splits[0]}, or say `split:` in a description",
                ),
            )
        else:
            folder = folder / str(description.split)
    table = ArrowTable(folder)
    rules = description.rules
    if not description.inputs:
        taken = {place for rule in rules.values() for place in rule.at or (rule.name,)}
        rules = {n: r for n, r in default_rules(table).items() if n not in taken} | rules
    return TableSamples(description.origin, table, rules)


class ArrowTable:
    """The Arrow files of a saved dataset."""

    def __init__(self, folder: Path) -> None:
        """Maps the files.

        Raises:
            DataError: No dataset, or a damaged one.
            MissingExtraError: pyarrow is not installed.
        """
        arrow = require("pyarrow", extra="arrow", why="read Hugging Face datasets")
        self._extension = arrow.ExtensionScalar
        self.base: Path | None = folder
        self._folder = folder
        state = _json(folder / "state.json")
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise DataError(
                f"{folder}: the dataset has a separate list of indices.",
                hint="write it again: dataset.flatten_indices().save_to_disk(...)",
            )
        self._features = _json(folder / "dataset_info.json").get("features") or {}
        self._batches: list[Any] = []
        self._starts = [0]
        for entry in state.get("_data_files", []):
            file = folder / entry["filename"]
            try:
                stream = arrow.ipc.open_stream(arrow.memory_map(str(file)))
                for batch in stream:
                    self._batches.append(batch)
                    self._starts.append(self._starts[-1] + batch.num_rows)
            except (arrow.ArrowException, OSError) as error:
                raise DataError(f"{file}: no Arrow file: {error}.", hint="save the dataset again") from error
        if not self._batches:
            raise DataError(f"{folder}: the dataset has no rows.", hint="save one with rows")
        self.columns = tuple(self._batches[0].schema.names)

    def __len__(self) -> int:
        return self._starts[-1]

    def cells(self, index: int) -> Mapping[str, Any]:
        """Returns the values of row `index`."""
        which = bisect_right(self._starts, index) - 1
        row, batch = index - self._starts[which], self._batches[which]
        values = {}
        for name in self.columns:
            value = batch.column(name)[row]
            value = value.value if isinstance(value, self._extension) else value
            values[name] = python_value(value) if value is not None else None
        return values

    def classes(self, column: str) -> tuple[str, ...] | None:
        """Class labels are numbers already: the dataset's names need no numbering."""
        return None

    def dtype(self, column: str) -> str | None:
        """Cells have types of their own."""
        return None

    def locate(self, index: int) -> str:
        """Returns `"folder row 3"`."""
        return f"{self._folder} row {index}"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}.", hint="give the folder that Dataset.save_to_disk wrote"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: got a {type(content).__name__}, expected an object.", hint="save it again")
    return content
