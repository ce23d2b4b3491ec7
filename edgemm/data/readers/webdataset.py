"""WebDataset: tar archives in which files of one sample have one name and different extensions.

An archive is indexed once by its headers; a sample's files are then read where they lie. Compressed archives
cannot be read so and are refused. The convention is that of webdataset: `dir/000.left.png` is sample `dir/000`,
extension `left.png`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from edgemm.data.readers.decode import AUDIO, FILES, IMAGES, decode, suffix_of
from edgemm.data.readers.description import Description
from edgemm.data.readers.rules import Rule, class_index
from edgemm.data.readers.source import Coverage, ReaderSource, nothing_left
from edgemm.data.samples import Sample
from edgemm.errors import DataError, did_you_mean


def open_archives(description: Description) -> ReaderSource:
    """Returns the samples of a `.tar` file or a folder of them, in the order of names and archives.

    Raises:
        DataError: An archive is damaged or compressed, or has no such extension.
    """
    source = description.source
    archives = sorted(source.glob("*.tar")) if source.is_dir() else [source]
    if not archives:
        raise DataError(f"{source}: no .tar archives in it.", hint="unpack compressed ones: gunzip *.tar.gz")
    members: list[_Member] = []
    for path in archives:
        members += _scan(path)
    return ArchiveSamples(description, members)


@dataclass(frozen=True, slots=True)
class _Member:
    """The files of one sample: extension -> where its bytes are."""

    archive: Path
    key: str
    files: Mapping[str, tuple[int, int]]


def _scan(path: Path) -> list[_Member]:
    with path.open("rb") as raw:
        start = raw.read(4)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")):
        raise DataError(
            f"{path}: a compressed archive cannot be read at random.", hint=f"unpack it: gunzip {path.name}"
        )
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                name = PurePosixPath(info.name)
                stem, dot, extension = name.name.partition(".")
                if not info.isreg() or not dot or not stem or "__" in (stem[:2], extension[:2]):
                    continue
                key = str(name.parent / stem)
                files = samples.setdefault(key, {})
                if extension.lower() in files:
                    raise DataError(
                        f"{path}: two files '{info.name}'.", hint="every sample needs a name of its own"
                    )
                files[extension.lower()] = (info.offset_data, info.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: no tar archive, or a damaged one: {error}.", hint="make it again") from error
    return [_Member(path, key, files) for key, files in samples.items()]


class ArchiveSamples(ReaderSource):
    """Files by sample and extension."""

    def __init__(self, description: Description, members: list[_Member]) -> None:
        """Leaves out samples that lack a file.

        Raises:
            DataError: No sample has an extension that is wanted, or no sample has all.
        """
        counts: dict[str, int] = {}
        for item in members:
            for extension in item.files:
                counts[extension] = counts.get(extension, 0) + 1
        rules = description.rules
        if not description.inputs:
            taken = {rule.place for rule in rules.values()}
            known = [e for e in _usual(counts, len(members)) if _readable(e) and e not in taken]
            rules = {_named(e, known): Rule(_named(e, known), (e,)) for e in known} | rules
        if not rules:
            found = ", ".join(sorted(counts)) or "nothing"
            raise DataError(
                f"{description.origin}: no extension that is known (found: {found}).",
                hint="say which files are which input: inputs: {image: {extension: jpg}}",
            )
        super().__init__(description.origin, rules)
        self._rules = {name: replace(rule, at=(rule.place.lstrip(".").lower(),)) for name, rule in rules.items()}
        for name, rule in self._rules.items():
            if rule.place not in counts:
                raise DataError(
                    f"{self.origin}: no files with the extension '{rule.place}' for '{name}' "
                    f"(extensions: {', '.join(sorted(counts)) or 'none'}).",
                    hint=did_you_mean(rule.place, counts, f"say it: inputs: {{{name}: {{extension: ...}}}}"),
                )
        wanted = {name: rule.place for name, rule in self._rules.items()}
        self._members = [m for m in members if all(place in m.files for place in wanted.values())]
        for name, place in wanted.items():
            self.coverage[name] = Coverage(
                counts[place], len(self._members), len(members) - counts[place], f"a file .{place}"
            )
        if not self._members:
            raise nothing_left(self)
        if len(self._members) < len(members):
            lost = len(members) - len(self._members)
            who = "1 sample lacks a file and is" if lost == 1 else f"{lost} samples lack a file and are"
            self.notes.append(f"{self.origin}: {who} left out; {len(self._members)} of {len(members)} are used.")
        self._rules = {name: self._with_classes(rule) for name, rule in self._rules.items()}

    def __len__(self) -> int:
        return len(self._members)

    def _row(self, index: int) -> Sample:
        return {name: self._array(self._members[index], rule) for name, rule in self._rules.items()}

    def _array(self, item: _Member, rule: Rule) -> np.ndarray:
        data, where = self._bytes(item, rule.place), f"{item.archive}: {item.key}.{rule.place}"
        if rule.classes is not None:
            return class_index(rule, data.decode("utf-8", "replace").strip(), where)
        return decode(data, "." + rule.place.rpartition(".")[2], rule, where)

    def _bytes(self, item: _Member, extension: str) -> bytes:
        offset, size = item.files[extension]
        with item.archive.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise DataError(f"{item.archive}: {item.key}.{extension} is truncated.", hint="copy the archive again")
        return data

    def _with_classes(self, rule: Rule) -> Rule:
        """Returns the rule of a text with the different texts as its classes, unless they are numbers."""
        if rule.classes is not None or rule.place.rpartition(".")[2] not in ("cls", "txt"):
            return rule
        found = set()
        for item in self._members:
            text = self._bytes(item, rule.place).decode("utf-8", "replace").strip()
            try:
                float(text.split()[0] if text else "x")
            except ValueError:
                found.add(text)
        if not found:
            return rule
        self.notes.append(
            f"{self.origin}: '{rule.name}' has {len(found)} classes, numbered in alphabetical order."
        )
        return replace(rule, classes=tuple(sorted(found)))

    def locate(self, index: int) -> str:
        """Returns the archive and the name of the sample."""
        return f"{self._members[index].archive}: {self._members[index].key}"


def _usual(counts: Mapping[str, int], total: int) -> list[str]:
    """Returns the extensions that most of the samples have; those of the most samples where none has so many."""
    enough = min(total // 2 + 1, max(counts.values(), default=0))
    return [extension for extension, count in counts.items() if count >= enough]


def _readable(extension: str) -> bool:
    last = "." + extension.rpartition(".")[2]
    return last in FILES - {".bin", ".json", ".txt"} or last == ".cls"


def _named(extension: str, known: list[str]) -> str:
    """Returns the array's name: `left.png` is `left`; `png` is `image`, `wav` is `audio`, `cls` is `label`."""
    first, dot, last = extension.rpartition(".")
    if dot:
        return first
    kinds = {**dict.fromkeys(IMAGES, "image"), **dict.fromkeys(AUDIO, "audio"), ".cls": "label"}
    name = kinds.get(suffix_of(f"x.{last}"), last)
    alike = [e for e in known if kinds.get(suffix_of(f"x.{e}"), e) == name]
    return name if len(alike) == 1 else last
