"""Folders of files: one sample is one file of every input, paired by what stands for `*` in the patterns.

Without patterns a folder holds one kind of files, and subfolders are classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgemm.data.readers.decode import AUDIO, FILES, IMAGES, decode, suffix_of
from edgemm.data.readers.description import Description
from edgemm.data.readers.rules import Rule
from edgemm.data.readers.source import Coverage, ReaderSource, nothing_left
from edgemm.data.readers.table import read
from edgemm.data.samples import Sample
from edgemm.errors import DataError, did_you_mean


def open_files(description: Description) -> ReaderSource:
    """Returns the samples of a folder.

    Raises:
        DataError: A pattern matches nothing, two files stand for the same sample, or none is complete.
    """
    folder = description.source
    if folder.is_file():
        raise DataError(f"{folder}: a file, expected a folder.", hint="name its folder")
    if description.form != "files" and not any(rule.at for rule in description.inputs.values()):
        return _one_kind(description)
    files: dict[str, dict[str, Path]] = {}
    rules = {name: rule for name, rule in description.rules.items() if name in description.inputs or rule.at}
    for name, rule in rules.items():
        files[name] = _matches(description.origin, folder, name, rule)
    return FileSamples(description, files)


class FileSamples(ReaderSource):
    """Files by input and by what they have in common in their names."""

    def __init__(self, description: Description, files: Mapping[str, Mapping[str, Path]]) -> None:
        """Pairs the files.

        Args:
            description: What was said; its label without a pattern is the folder below which a file lies.
            files: Input -> key -> file.

        Raises:
            DataError: No key has a file of every input.
        """
        super().__init__(description.origin, [*files, *_folder_label(description)])
        common = set.intersection(*(set(found) for found in files.values()))
        self._keys = sorted(common)
        self._files = files
        self._rules = description.rules
        every = set().union(*files.values())
        for name, found in files.items():
            self.coverage[name] = Coverage(
                len(found), len(common), len(every - set(found)), "another input's file has no partner here"
            )
        if not common:
            raise nothing_left(self)
        for name, found in files.items():
            alone = sorted(set(found) - common)
            if alone:
                self.notes.append(
                    f"{self.origin}: {len(alone)} of {len(found)} files of '{name}' have no partner and are left "
                    f"out, for example {found[alone[0]].name}."
                )
        self._label: Rule | None = next(iter(_folder_label(description).values()), None)
        if self._label is not None and self._label.classes is None:
            classes = tuple(sorted({self._folder(key) for key in self._keys}))
            self._label = replace(self._label, classes=classes)

    def __len__(self) -> int:
        return len(self._keys)

    def _row(self, index: int) -> Sample:
        key = self._keys[index]
        sample = {}
        for name, found in self._files.items():
            path = found[key]
            sample[name] = decode(read(path, str(path)), suffix_of(path.name), self._rules[name], str(path))
        if self._label is not None:
            sample[self._label.name] = self._class(key)
        return sample

    def _folder(self, key: str) -> str:
        return next(iter(self._files.values()))[key].parent.name

    def _class(self, key: str) -> np.ndarray:
        assert self._label is not None
        assert self._label.classes is not None
        name, classes = self._folder(key), self._label.classes
        if name not in classes:
            raise DataError(
                f"{next(iter(self._files.values()))[key]}: the folder '{name}' is no class "
                f"({', '.join(classes[:8])}).",
                hint=did_you_mean(name, classes, "list it in label.classes"),
            )
        return np.asarray(classes.index(name), np.int64)

    def locate(self, index: int) -> str:
        """Returns the path of the first input's file."""
        return str(next(iter(self._files.values()))[self._keys[index]])


def _folder_label(description: Description) -> dict[str, Rule]:
    label = description.label
    return {label.name: label} if label is not None and not label.at else {}


def _one_kind(description: Description) -> FileSamples:
    """Returns samples of a folder with one kind of files; subfolders, if all files lie in some, are classes."""
    folder, known = description.source, IMAGES if description.form == "images" else AUDIO
    name, rule = next(iter(description.inputs.items()), (None, None))
    if len(description.inputs) > 1:
        raise DataError(
            f"{description.origin}: {len(description.inputs)} inputs, and nothing says which files are which.",
            hint=f"give patterns: inputs: {{{name}: {{pattern: '{name}/*.png'}}}}",
        )
    if name is None:
        name = "image" if description.form == "images" else "audio"
        rule = Rule(name)
    found = sorted(p for p in folder.rglob("*") if suffix_of(p.name) in known and p.is_file())
    if not found:
        raise DataError(
            f"{folder}: no files of form '{description.form}'.", hint=f"known: {', '.join(sorted(known))}"
        )
    nested = all(p.parent != folder for p in found)
    label = description.label or (Rule("label") if nested else None)
    if label is not None and not nested and not label.at:
        raise DataError(
            f"{found[0]}: lies in no subfolder, so it has no class.",
            hint="one subfolder per class, or a manifest: a CSV file with the columns path,label",
        )
    files = {name: {str(p.relative_to(folder)): p for p in found}}
    described = replace(description, inputs={name: rule or Rule(name)}, label=label)
    samples = FileSamples(described, files)
    if samples._label is not None and samples._label.classes is not None:
        classes = samples._label.classes
        shown = ", ".join(f"{c}={i}" for i, c in enumerate(classes[:5])) + (", ..." if len(classes) > 5 else "")
        samples.notes.append(f"{samples.origin}: subfolders are {len(classes)} classes, numbered {shown}.")
    return samples


def _matches(origin: str, folder: Path, name: str, rule: Rule) -> dict[str, Path]:
    """Returns what stands for the wildcards -> file, for every file that the rule's patterns match."""
    found: dict[str, Path] = {}
    for pattern in rule.at or (f"{name}/*",):
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise DataError(
                f"{origin}: inputs.{name}.pattern: '{pattern}' leads out of {folder}.",
                hint="patterns are below `source`; choose a `source` that holds all files",
            )
        key_of = _wildcards(pattern)
        for path in sorted(folder.glob(pattern)):
            if not path.is_file() or (suffix_of(path.name) not in FILES):
                continue
            match = key_of.fullmatch(path.relative_to(folder).as_posix())
            key = "/".join(match.groups()) if match else path.stem
            key = key if suffix_of(key) not in FILES else key.rpartition(".")[0]
            if key in found:
                raise DataError(
                    f"{origin}: '{name}' has two files for '{key}': {found[key]} and {path}.",
                    hint="narrow the pattern, for example to one suffix",
                )
            found[key] = path
    if not found:
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:5])
        patterns = ", ".join(rule.at) or f"{name}/*"
        raise DataError(
            f"{origin}: no file matches '{patterns}' for '{name}' (in {folder}: {inside}).",
            hint=f"correct inputs.{name}.pattern; it is relative to `source`",
        )
    return found


def _wildcards(pattern: str) -> re.Pattern[str]:
    """Returns a pattern whose groups are what `**`, `*` and `?` stand for."""
    parts = re.split(r"(\*\*/|\*|\?)", pattern)
    known = {"**/": "((?:.*/)?)", "*": "([^/]*)", "?": "([^/])"}
    return re.compile("".join(known.get(part) or re.escape(part) for part in parts))
