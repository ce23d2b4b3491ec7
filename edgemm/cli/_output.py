"""How results leave the command line: tables and JSON on stdout, warnings on stderr, files in one piece."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import click

from edgemm.errors import DataError


def echo_json(value: Mapping[str, Any]) -> None:
    """Prints one JSON object on stdout. Infinite and undefined numbers, which JSON has not, become null."""
    click.echo(json.dumps(_finite(value), indent=1, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def warn(text: str) -> None:
    """Prints a warning on stderr."""
    click.echo(click.style("warning: ", fg="yellow") + text, err=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> str:
    """Returns `rows` in aligned columns under a bold `header`, never folded or cut.

    Args:
        header: Column titles.
        rows: Cells, one per column; a shorter row leaves the rest empty.
        right: Titles of the columns that are aligned to the right (numbers).
    """
    from rich.cells import cell_len

    lines = [list(header), *([*row, *[""] * (len(header) - len(row))] for row in rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(header))]
    flush = [title in set(right) for title in header]

    def join(line: list[str]) -> str:
        cells = (
            " " * (width - cell_len(cell)) + cell if is_right else cell + " " * (width - cell_len(cell))
            for cell, width, is_right in zip(line, widths, flush, strict=True)
        )
        return "  ".join(cells).rstrip()

    return "\n".join([click.style(join(lines[0]), bold=True), *map(join, lines[1:])])


def count(number: int, unit: str) -> str:
    """Returns `"1 node"`, `"2 nodes"`, `"1,300 nodes"`."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def short(number: int) -> str:
    """Returns a count in at most five characters: `"812"`, `"98 k"`, `"1.3 M"`, `"2.1 G"`."""
    for factor, suffix in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if number >= factor:
            scaled = number / factor
            return f"{scaled:.1f} {suffix}" if scaled < 10 else f"{scaled:.0f} {suffix}"
    return str(number)


def megabytes(size: float) -> str:
    """Returns a size in bytes as `"0.39 MB"`; small ones as `"812 B"` or `"3.1 kB"`."""
    if size < 1_000:
        return f"{size:.0f} B"
    if size < 100_000:
        return f"{size / 1_000:.1f} kB"
    return f"{size / 1_000_000:.2f} MB" if size < 10_000_000 else f"{size / 1_000_000:,.1f} MB"


def milliseconds(value: float | None) -> str:
    """Returns milliseconds with three significant digits and at least three decimals below one."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def write_file(path: Path, write: Callable[[IO[bytes]], None], *, force: bool) -> None:
    """Writes a file in one piece: to a temporary sibling, then renamed; a failure leaves nothing behind.

    Raises:
        DataError: The file exists and `force` is not set, or its folder cannot be written.
    """
    refuse_to_overwrite(path, force=force)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        if force:
            temporary.replace(path)
        else:
            _link_new(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def refuse_to_overwrite(path: Path, *, force: bool) -> None:
    """Checks an output path before the work starts.

    Raises:
        DataError: The file exists and `force` is not set, it is a folder, or its parent is no folder.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a file name.", hint=f"name a file in it: {path}/FILE")
    if path.exists() and not force:
        raise DataError(f"{path} exists.", hint="choose another name, or repeat with --force to replace it")
    if not path.parent.is_dir():
        raise DataError(f"the folder {path.parent} does not exist.", hint=f"make it first: mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"the folder {path.parent} is read-only.", hint="choose a folder that you may write to")


def refuse_to_touch(path: Path, inputs: Iterable[Path]) -> None:
    """Checks that an output is none of the inputs and lies in none of them: a bundle is a folder.

    Raises:
        DataError: It is, or does; also where `force` is set.
    """
    real = path.resolve()
    for source in inputs:
        if real.is_relative_to(source.resolve()) or (path.exists() and source.exists() and path.samefile(source)):
            where = "is" if real == source.resolve() or not source.is_dir() else "is inside"
            raise DataError(
                f"{path}: {where} {source}, which is read; expected an output outside of it.",
                hint="choose another name",
            )


def _link_new(temporary: Path, path: Path) -> None:
    """Gives `temporary` its final name unless someone else made that file in the meantime."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise DataError(
            f"{path} was made by someone else meanwhile.", hint="choose another name, or repeat with --force"
        ) from error
    except OSError:  # a file system without hard links
        temporary.replace(path)


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write {path}: {error.strerror or error}.",
        hint="free some space or choose another folder; nothing was written",
    )
