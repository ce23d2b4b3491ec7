"""Writes, reads and verifies the bundle's directory. Nothing half-made stays behind, nothing unchecked is used."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgemm.bundle.check import check_consistent, check_path
from edgemm.bundle.codec import DAMAGED, dumps, loads
from edgemm.bundle.engines import built_files
from edgemm.bundle.manifest import ADDING, CACHE, FORMAT, MANIFEST, Manifest
from edgemm.errors import BundleError, did_you_mean

MAX_MANIFEST_BYTES = 16 * 2**20
"""Largest manifest that is read."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)


def write_bundle(
    path: Path, manifest: Manifest, files: Mapping[str, bytes | Path], *, force: bool = False
) -> Manifest:
    """Writes a bundle atomically and returns the manifest with the files' digests.

    Everything is written to a temporary sibling, synced, then renamed: at `path` there is the whole bundle or
    what was there before. On any failure, Ctrl-C included, the temporary is removed.

    Args:
        path: Where the bundle will be. Its folder must exist.
        manifest: What to say; its `files` is replaced by what is written.
        files: Relative path -> content of every file but the manifest, or a file that is copied.
        force: Replace a bundle that is there. Only a bundle with no foreign file in it is ever replaced.

    Raises:
        BundleError: The path is taken, not writable or full, another convert took it meanwhile, or the manifest
            does not describe `files`.
    """
    target = _target(path)
    before = _check_free(target, force=force)
    for name in files:
        check_path(name)
    digests = {n: digest_entry(files[n]) for n in sorted(files)}
    manifest = dataclasses.replace(manifest, files=digests)
    check_consistent(manifest)
    content = {**files, MANIFEST: dumps(manifest)}
    temporary = target.parent / f".edgemm-{secrets.token_hex(8)}.tmp"
    try:
        _write_files(temporary, content)
        _publish(temporary, target, before)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise write_error(error, target, sum(entry["size"] for entry in digests.values())) from error
    finally:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def check_output(path: Path, *, force: bool = False) -> None:
    """Checks that `write_bundle` may write to `path`, so that a long conversion does not fail at its end.

    Raises:
        BundleError: As `write_bundle`: the path is taken, or its folder is missing or not writable.
    """
    target = _target(path)
    _check_free(target, force=force)
    if not os.access(target.parent, os.W_OK):
        raise write_error(PermissionError(errno.EACCES, "permission denied"), target, 0)


def read_manifest(path: Path) -> Manifest:
    """Returns the manifest of the bundle at `path` after checking its schema and structure.

    Raises:
        BundleError: No bundle is there, or its manifest is damaged, unsafe or too new.
    """
    path = Path(path)
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise BundleError(f"{path}: no such file or bundle.", hint=did_you_mean(path.name, near, "check the path"))
    if not path.is_dir():
        raise BundleError(
            f"{path}: is a file, a bundle is a folder.", hint="make one: edgemm convert MODEL -o OUT.edgemm"
        )
    file = path / MANIFEST
    try:
        status = file.lstat()
    except FileNotFoundError as error:
        raise BundleError(
            f"{path}: not a bundle (it has no {MANIFEST}).",
            hint="give the folder that `edgemm convert -o` wrote",
        ) from error
    except OSError as error:
        raise _read_error(file, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{file}: is a {kind_of(status.st_mode)}, expected a file.", hint=DAMAGED)
    if status.st_size > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{file}: {status.st_size:,} bytes, a manifest has at most {MAX_MANIFEST_BYTES:,}.", hint=DAMAGED
        )
    try:
        text = file.read_bytes()
    except OSError as error:
        raise _read_error(file, error) from error
    manifest = loads(text, str(file))
    check_consistent(manifest)
    return manifest


def verify(path: Path, manifest: Manifest) -> None:
    """Checks every file of the bundle against the manifest, before anything in it is loaded.

    The cache folder is apart: its files are read as if anybody had written them, or not at all. A file that
    `add_files` was about to list when its process was ended is no part of the bundle yet, and may be there.
    Engines that were built from the bundle's graphs are apart as well: they can be built again, so a lost one does
    not stop the rest. Whoever loads one asks `engine_damage` first.

    Raises:
        BundleError: A changed, missing or extra file, a symlink, or a path that leads out of the bundle.
    """
    path = Path(path)
    for name in manifest.files:
        check_path(name)
    found = found_files(path)
    may_differ = being_added(path) | built_files(manifest, (*manifest.files, *found))
    strict = {name: entry for name, entry in manifest.files.items() if name not in may_differ}
    for name in strict:
        if name not in found:
            raise BundleError(f"{path}: the file '{name}' is missing.", hint=DAMAGED)
    for name in found:
        if name not in manifest.files and name not in may_differ:
            raise BundleError(
                f"{path}: the file '{name}' is not part of the bundle.",
                hint="move it elsewhere; a bundle holds only what the manifest lists",
            )
    for name, entry in strict.items():
        if found[name] != entry["size"]:
            raise BundleError(
                f"{path}: '{name}' has {found[name]:,} bytes, the manifest says {entry['size']:,}.", hint=DAMAGED
            )
        digest = file_sha256(path / name)
        if digest != entry["sha256"]:
            raise BundleError(
                f"{path}: '{name}' was changed (sha256 {digest[:12]}…, "
                f"the manifest says {str(entry['sha256'])[:12]}…).",
                hint=DAMAGED,
            )


def being_added(path: Path) -> frozenset[str]:
    """Returns the names that `add_files` announced in the bundle at `path` and did not get to list."""
    try:
        file = path / ADDING
        if file.is_symlink() or file.stat().st_size > MAX_MANIFEST_BYTES:
            return frozenset()
        return frozenset(str(name) for name in json.loads(file.read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return frozenset()


def found_files(path: Path) -> dict[str, int]:
    """Returns relative path -> size of every file of a bundle but its manifest and its cache.

    Raises:
        BundleError: Something is neither a plain file nor a folder.
    """
    return {name: size for name, size in _walk(path, "") if name != MANIFEST and not _in_cache(name)}


def _in_cache(name: str) -> bool:
    return name.startswith(f"{CACHE}/")


def _walk(root: Path, prefix: str) -> Iterator[tuple[str, int]]:
    """Yields (relative path, size) of each regular file; anything that is no file or folder is refused."""
    try:
        entries = sorted(os.scandir(root / prefix), key=lambda e: e.name)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and _in_cache(prefix):
            return  # another process has cleared it meanwhile
        raise _read_error(root / prefix, error) from error
    for entry in entries:
        name = f"{prefix}/{entry.name}" if prefix else entry.name
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(root, name)
        elif stat.S_ISREG(status.st_mode):
            yield name, status.st_size
        else:
            raise BundleError(
                f"{root}: '{name}' is a {kind_of(status.st_mode)}; a bundle holds plain files only.",
                hint="do not use this bundle unless you know who made it; "
                "if it was copied with links, copy the files themselves",
            )


def digest_entry(content: bytes | Path) -> dict[str, Any]:
    """Returns digest and size of a file to be written."""
    if isinstance(content, Path):
        return {"sha256": file_sha256(content), "size": content.stat().st_size}
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def file_sha256(file: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    except OSError as error:
        raise _read_error(file, error) from error
    return digest.hexdigest()


def _target(path: Path) -> Path:
    target = Path(path)
    if target.name in ("", ".."):
        raise BundleError(f"{path}: cannot be a bundle.", hint="give a new name, for example -o model.edgemm")
    if not target.parent.is_dir():
        raise BundleError(f"{path}: the folder '{target.parent}' does not exist.", hint="make it first: mkdir -p")
    return target


def _check_free(target: Path, *, force: bool) -> tuple[int, int, int] | None:
    """Returns what is at `target` (None: nothing), if it may be written."""
    identity = _identity(target)
    if identity is None:
        return None
    status = target.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise BundleError(
            f"{target}: is a {kind_of(status.st_mode)}; it is never replaced by a bundle.",
            hint="choose another output path, or remove it yourself",
        )
    foreign = _foreign(target)
    if foreign is not None:
        raise BundleError(
            f"{target}: exists and {foreign}.",
            hint="choose another output path; a folder is replaced (with --force) only when it is a bundle",
        )
    if not force:
        raise BundleError(f"{target}: there is a bundle already.", hint="replace it with --force")
    return identity


def _foreign(target: Path) -> str | None:
    """Returns why the folder must not be replaced, or None when it is a bundle and nothing else.

    Damaged bundles and those of a newer edgemm count as bundles, so they are read loosely.
    """
    file = target / MANIFEST
    try:
        data = json.loads(file.read_bytes()) if file.lstat().st_size <= MAX_MANIFEST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return "is not a bundle"
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("files"), dict):
        return "is not a bundle"
    known = {MANIFEST, *data["files"], *being_added(target)}
    for folder, _, names in os.walk(target):
        for name in names:
            relative = (Path(folder) / name).relative_to(target).as_posix()
            if relative not in known and not _in_cache(relative):
                return f"holds the file '{relative}', which is not part of the bundle"
    return None


def _identity(target: Path) -> tuple[int, int, int] | None:
    try:
        status = target.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise write_error(error, target, 0) from error
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _write_files(root: Path, content: Mapping[str, bytes | Path]) -> None:
    root.mkdir()
    folders = {root}
    for name, data in content.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        folders.update(p for p in file.parents if p.is_relative_to(root))
        with file.open("xb") as stream:
            if isinstance(data, Path):
                with data.open("rb") as source:
                    shutil.copyfileobj(source, stream)
            else:
                stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    for folder in folders:
        sync_folder(folder)


def _publish(temporary: Path, target: Path, before: tuple[int, int, int] | None) -> None:
    """Renames `temporary` to `target` if what is there is still `before`; the old bundle goes last."""
    old = temporary.with_suffix(".old")
    with locked(target.parent):
        if _identity(target) != before:
            raise _taken(target)
        try:
            if before is not None:
                os.rename(target, old)
            os.rename(temporary, target)
            sync_folder(target.parent)
        except OSError as error:
            raise (_taken(target) if error.errno in _TAKEN else error) from error
        finally:
            if old.exists():
                if os.path.lexists(target):
                    shutil.rmtree(old, ignore_errors=True)
                else:
                    os.rename(old, target)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a lock on `folder` against other edgemm processes; file systems without locks go without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` last through a power cut."""
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _taken(target: Path) -> BundleError:
    return BundleError(
        f"{target}: something else was written there meanwhile.",
        hint="are two converts writing to the same output? give each its own, or run again with --force",
    )


def write_error(error: OSError, target: Path, size: int) -> BundleError:
    """Returns what to say of a bundle that cannot be written."""
    if error.errno in _FULL:
        free = shutil.disk_usage(target.parent).free
        return BundleError(
            f"{target}: no room on the disk: the bundle needs {size:,} bytes, {free:,} are free.",
            hint="free some space, or choose an output path on another disk",
        )
    return BundleError(
        f"{target}: cannot be written: {error.strerror or error}.",
        hint=f"check that '{target.parent}' is writable, or choose another output path",
    )


def _read_error(file: Path, error: OSError) -> BundleError:
    return BundleError(f"{file}: cannot be read: {error.strerror or error}.", hint="check its permissions")


def kind_of(mode: int) -> str:
    """Returns what a file is, by its `st_mode`: "file", "folder", "symbolic link", ..."""
    kinds = {stat.S_IFLNK: "symbolic link", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe"}
    return kinds.get(stat.S_IFMT(mode), "device or socket")
