"""Readers of the forms in which people keep multimodal data; `open_samples` finds the one that fits.

Every reader is a `Source`: random access to aligned samples, read when they are asked for, so that memory does not
grow with their number. A reader that leaves something out says so in `coverage` and `notes`. Packages beyond numpy
are imported when a file needs them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.data.readers.decode import AUDIO, IMAGES, suffix_of
from edgemm.data.readers.description import Description, read_description
from edgemm.data.readers.source import Coverage, ReaderSource
from edgemm.errors import DataError

if TYPE_CHECKING:
    from edgemm.data.samples import Source

FORMS = {
    "npz": "edgemm.data.readers.arrays:open_arrays",
    "images": "edgemm.data.readers.files:open_files",
    "wav": "edgemm.data.readers.files:open_files",
    "files": "edgemm.data.readers.files:open_files",
    "manifest": "edgemm.data.readers.manifest:open_manifest",
    "hf": "edgemm.data.readers.hf:open_dataset",
    "webdataset": "edgemm.data.readers.webdataset:open_archives",
    "mcap": "edgemm.data.readers.recording:open_mcap",
    "rosbag2": "edgemm.data.readers.recording:open_rosbag2",
}
"""Form -> the function that opens it: `(Description) -> Source`."""

__all__ = [
    "FORMS",
    "OTHER_FILES",
    "Coverage",
    "Description",
    "ReaderSource",
    "guess_form",
    "open_described",
    "read_description",
]

_BY_SUFFIX = {
    ".npz": "npz",
    ".csv": "manifest",
    ".tsv": "manifest",
    ".parquet": "manifest",
    ".tar": "webdataset",
    ".mcap": "mcap",
}

OTHER_FILES = frozenset({*_BY_SUFFIX, ".db3", ".gz", ".tgz", ".zst", ".zip"}) - {".npz"}
"""Suffixes of files that are no `.npz`, or an archive that is refused with a reason."""

_LOOKED_AT = 2000
"""Most files of a folder that are looked at to tell what it holds."""


def open_described(description: Description) -> Source:
    """Returns the samples of a described source, opened but not yet read.

    Raises:
        DataError: The source is not what was said.
        MissingExtraError: The package that reads it is not installed.
    """
    timed = description.form in ("mcap", "rosbag2") or description.align is not None
    for rule in description.rules.values():
        if rule.window is not None and not timed:
            raise DataError(
                f"{description.origin}: inputs.{rule.name}.window: rows of this source have no times.",
                hint="`length` cuts or fills a row; `window` needs `align` and times",
            )
    module, _, name = FORMS[description.form].partition(":")
    source: Source = getattr(importlib.import_module(module), name)(description)
    return source


def guess_form(path: Path, *, has_rules: bool = False) -> str:
    """Returns the form of a file or folder, told by names alone.

    Args:
        path: It exists.
        has_rules: Somebody says which files are which input, so that several kinds in a folder are no riddle.

    Raises:
        DataError: It is of no form that is known; the message says what was found.
    """
    if path.is_dir():
        return _guess_folder(path, has_rules=has_rules)
    form = _BY_SUFFIX.get(path.suffix.lower())
    if form is not None:
        return form
    if path.suffix == ".db3":
        raise DataError(f"{path}: a part of a rosbag2 folder.", hint=f"give the folder: {path.parent}")
    if "".join(path.suffixes[-2:]).lower() in (".tar.gz", ".tar.zst") or path.suffix in (".tgz", ".gz", ".zip"):
        raise DataError(
            f"{path}: a compressed archive cannot be read at random.", hint="unpack it, or make it a .tar"
        )
    raise DataError(
        f"{path}: no form of data that is known.",
        hint=f"known are {', '.join(_BY_SUFFIX)}, folders of files, Hugging Face datasets, rosbag2 folders, "
        "a description file (.yaml) and FILE.py:CLASS",
    )


def _guess_folder(folder: Path, *, has_rules: bool) -> str:
    names = {p.name for p in folder.iterdir()}
    if names & {"dataset_info.json", "dataset_dict.json"}:
        return "hf"
    if "metadata.yaml" in names and any(n.endswith((".db3", ".mcap")) for n in names):
        return "rosbag2"
    for suffix in (".npz", ".tar", ".parquet"):
        form = _BY_SUFFIX[suffix]
        if any(n.lower().endswith(suffix) for n in names):
            return form
    if has_rules:
        return "files"
    kinds: dict[str, str] = {}
    for number, file in enumerate(folder.rglob("*")):
        kind = {**dict.fromkeys(IMAGES, "images"), **dict.fromkeys(AUDIO, "wav")}.get(suffix_of(file.name))
        if kind and file.is_file():
            kinds.setdefault(kind, str(file.relative_to(folder)))
        if number >= _LOOKED_AT:
            break
    if len(kinds) == 1:
        return next(iter(kinds))
    found = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
    if kinds:
        both = " and ".join(f"{kind} ({example})" for kind, example in kinds.items())
        raise DataError(
            f"{folder}: holds {both}; nothing says which make a pair.",
            hint="write a description file (patterns pair by what stands for *):\n"
            f"source: {folder.name}\n"
            "inputs:\n  image: {pattern: image/*.png}\n  audio: {pattern: audio/*.wav}",
        )
    raise DataError(
        f"{folder}: no data in it that is known (found: {found or 'nothing'}).",
        hint="a folder of .npz shards, images, audio, .tar or .parquet files, a Hugging Face dataset or a "
        "rosbag2; write shards with numpy.savez(path, image=..., label=...)",
    )
