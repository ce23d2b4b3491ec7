"""Adds files to a bundle where it lies. A crash at any moment leaves a bundle that verifies, with or without them.

1  cache/.adding-…/     the new files, whole and synced
2  cache/adding.json    which names are about to appear: `verify` lets these be there before they are listed
3  engines/…            each file is renamed into place
4  manifest.json        is replaced by one that lists them
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from edgemm.bundle.check import check_consistent, check_path
from edgemm.bundle.codec import dumps
from edgemm.bundle.engines import built_files
from edgemm.bundle.manifest import ADDING, CACHE, MANIFEST, Manifest
from edgemm.bundle.store import (
    being_added,
    digest_entry,
    locked,
    read_manifest,
    sync_folder,
    write_error,
)
from edgemm.errors import BundleError

_STAGED = ".adding-"


def add_files(
    path: Path, files: Mapping[str, bytes | Path], change: Callable[[Manifest], Manifest] | None = None
) -> Manifest:
    """Adds `files` to the bundle at `path` and returns its new manifest.

    A file of the same name is replaced, unless a variant opens it. Others may read the bundle meanwhile; processes
    that add at once wait for each other.

    Args:
        path: A bundle that was verified.
        files: Relative path -> content, or a file: one in the bundle's cache folder is moved, others are copied.
        change: Returns the manifest with what else is to be different in it. Called once, with the newest one.

    Raises:
        BundleError: No bundle, a path that leads out of it, no room, a folder that cannot be written, or a
            manifest that would not make sense.
    """
    path = Path(path)
    for name in files:
        check_path(name)
    staged = path / CACHE / f"{_STAGED}{secrets.token_hex(8)}"
    try:
        with locked(path):
            manifest = read_manifest(path)
            _check_places(path, [*files, ADDING])
            _clear_leftovers(path, manifest)
            entries = {name: digest_entry(content) for name, content in files.items()}
            kept = {n: e for n, e in manifest.files.items() if n not in entries or e == entries[n]}
            without = dataclasses.replace(manifest, files=kept)
            check_consistent(without)
            listed = dict(sorted({**manifest.files, **entries}.items()))
            complete = dataclasses.replace(change(manifest) if change else manifest, files=listed)
            check_consistent(complete)
            _stage(path, files, staged)
            try:
                _announce(path, files)
                if len(kept) < len(manifest.files):
                    _replace_manifest(path, without)
                _place(path, files, staged)
                _replace_manifest(path, complete)
            finally:
                _clear_leftovers(path, read_manifest(path))
    except OSError as error:
        size = sum(f.stat().st_size if isinstance(f, Path) and f.exists() else 0 for f in files.values())
        raise write_error(error, path, size) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return complete


def drop_engines(path: Path, pick: Callable[[Manifest], Mapping[str, str]]) -> dict[str, str]:
    """Takes built engines and their sidecars out of the bundle at `path`, out of its manifest first.

    Args:
        path: A bundle that was verified.
        pick: Returns engine -> reason to drop it, of the newest manifest. Nobody else writes meanwhile.

    Returns:
        What `pick` returned.

    Raises:
        BundleError: No bundle, something that is no built engine, or a folder that cannot be written.
    """
    path = Path(path)
    try:
        with locked(path):
            manifest = read_manifest(path)
            dropped = dict(pick(manifest))
            names = [name for engine in dropped for name in (engine, f"{engine}.json")]
            if strange := set(names) - built_files(manifest, names):
                raise BundleError(
                    f"{path}: '{min(strange)}' is no built engine.", hint="only what can be built again is dropped"
                )
            _check_places(path, names)
            kept = {n: e for n, e in manifest.files.items() if n not in names}
            if len(kept) < len(manifest.files):
                _replace_manifest(path, dataclasses.replace(manifest, files=kept))
            for name in names:
                (path / name).unlink(missing_ok=True)
    except OSError as error:
        raise write_error(error, path, 0) from error
    return dropped


def _check_places(path: Path, files: Iterable[str]) -> None:
    """Refuses folders that are links: what is written through one lands elsewhere."""
    for name in files:
        for folder in list(Path(name).parents)[:-1]:
            if (path / folder).is_symlink():
                raise BundleError(
                    f"{path}: the folder '{folder}' is a symbolic link; a bundle holds plain files only.",
                    hint="do not use this bundle unless you know who made it; else copy the files themselves",
                )


def _clear_leftovers(path: Path, manifest: Manifest) -> None:
    """Takes away what a process that was ended left behind: files that were announced and never listed."""
    for name in being_added(path) - manifest.files.keys():
        with contextlib.suppress(BundleError):  # what the cache says is not to be trusted
            check_path(name)
            _check_places(path, [name])
            (path / name).unlink(missing_ok=True)
    (path / ADDING).unlink(missing_ok=True)
    for folder in (path / CACHE).glob(f"{_STAGED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _stage(path: Path, files: Mapping[str, bytes | Path], staged: Path) -> None:
    staged.mkdir(parents=True)
    for number, content in enumerate(files.values()):
        file = staged / str(number)
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content.absolute().is_relative_to((path / CACHE).absolute()):
            os.replace(content, file)
        else:
            shutil.copyfile(content, file)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def _announce(path: Path, files: Mapping[str, Any]) -> None:
    _write_whole(path / ADDING, path, json.dumps({"files": sorted(files)}).encode())


def _place(path: Path, files: Mapping[str, Any], staged: Path) -> None:
    folders = set()
    for number, name in enumerate(files):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged / str(number), file)
        folders.add(file.parent)
    for folder in folders:
        sync_folder(folder)


def _replace_manifest(path: Path, manifest: Manifest) -> None:
    _write_whole(path / MANIFEST, path, dumps(manifest))


def _write_whole(file: Path, path: Path, content: bytes) -> None:
    """Writes a file by renaming; what is not renamed yet lies in the cache folder."""
    temporary = path / CACHE / f"{_STAGED}{secrets.token_hex(8)}" / file.name
    temporary.parent.mkdir(parents=True)
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        sync_folder(file.parent)
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)
