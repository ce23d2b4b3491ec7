"""Writing, reading and verifying a bundle's directory: whole or not at all, checked before use."""

from __future__ import annotations

import builtins
import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgemm.bundle import Manifest, read_manifest, verify, write_bundle
from edgemm.bundle import store as store_module
from edgemm.errors import BundleError

Files = dict[str, bytes]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def bundle(tmp_path: Path, tiny_manifest: Manifest, tiny_files: Files) -> Path:
    path = tmp_path / "tiny.edgemm"
    write_bundle(path, tiny_manifest, tiny_files)
    return path


def test_written_bundle_reads_back_and_verifies(bundle: Path, tiny_manifest: Manifest, tiny_files: Files) -> None:
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    assert replace(manifest, files=tiny_manifest.files) == tiny_manifest
    assert {n: f["size"] for n, f in manifest.files.items()} == {n: len(d) for n, d in tiny_files.items()}
    assert tree(bundle).keys() == {*tiny_files, "manifest.json"}
    assert os.listdir(bundle.parent) == ["tiny.edgemm"]


def test_same_input_gives_same_bytes(tmp_path: Path, tiny_manifest: Manifest, tiny_files: Files) -> None:
    for name in ("a", "b"):
        shuffled = dict(sorted(tiny_files.items(), reverse=name == "b"))
        write_bundle(tmp_path / name, tiny_manifest, shuffled)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_permissions_follow_the_umask(bundle: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert bundle.stat().st_mode & 0o777 == 0o777 & ~mask


def test_existing_bundle_is_kept_without_force(bundle: Path, tiny_manifest: Manifest, tiny_files: Files) -> None:
    before = tree(bundle)
    with pytest.raises(BundleError, match="there is a bundle already") as caught:
        write_bundle(bundle, tiny_manifest, {**tiny_files, "recipe.json": b"new"})
    assert "--force" in caught.value.hint
    assert tree(bundle) == before


def test_force_replaces_a_bundle(bundle: Path, tiny_manifest: Manifest, tiny_files: Files) -> None:
    write_bundle(bundle, tiny_manifest, {**tiny_files, "recipe.json": b"new"}, force=True)
    verify(bundle, read_manifest(bundle))
    assert (bundle / "recipe.json").read_bytes() == b"new"
    assert os.listdir(bundle.parent) == ["tiny.edgemm"]


def test_force_replaces_damaged_and_newer_bundles(
    bundle: Path, tiny_manifest: Manifest, tiny_files: Files
) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(data | {"schema": 99, "stages": 1}))
    (bundle / "recipe.json").unlink()
    write_bundle(bundle, tiny_manifest, tiny_files, force=True)
    verify(bundle, read_manifest(bundle))
    assert read_manifest(bundle).schema == tiny_manifest.schema
    assert (bundle / "recipe.json").read_bytes() == tiny_files["recipe.json"]


def test_force_never_replaces_what_is_no_bundle(
    tmp_path: Path, tiny_manifest: Manifest, tiny_files: Files
) -> None:
    photos, empty, other = tmp_path / "photos", tmp_path / "empty", tmp_path / "other"
    for folder in (photos, empty, other):
        folder.mkdir()
    (photos / "me.jpg").write_bytes(b"dear")
    (other / "manifest.json").write_text('{"name": "a web app"}')
    for folder in (photos, empty, other):
        before = tree(folder)
        for force in (False, True):
            with pytest.raises(BundleError, match="exists and is not a bundle") as caught:
                write_bundle(folder, tiny_manifest, tiny_files, force=force)
            assert "another output path" in caught.value.hint
        assert tree(folder) == before


def test_force_keeps_a_bundle_that_holds_other_files(
    bundle: Path, tiny_manifest: Manifest, tiny_files: Files
) -> None:
    (bundle / "engines" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds the file 'engines/notes.txt', which is not part"):
        write_bundle(bundle, tiny_manifest, tiny_files, force=True)
    assert (bundle / "engines" / "notes.txt").read_text() == "mine"


def test_files_and_links_are_never_replaced(bundle: Path, tiny_manifest: Manifest, tiny_files: Files) -> None:
    file, link = bundle.parent / "model.onnx", bundle.parent / "latest.edgemm"
    file.write_bytes(b"weights")
    link.symlink_to(bundle)
    for path, kind in ((file, "file"), (link, "symbolic link")):
        with pytest.raises(BundleError, match=f"is a {kind}; it is never replaced"):
            write_bundle(path, tiny_manifest, tiny_files, force=True)
    assert file.read_bytes() == b"weights"
    assert link.is_symlink()


def test_missing_parent_is_named(tmp_path: Path, tiny_manifest: Manifest, tiny_files: Files) -> None:
    with pytest.raises(BundleError, match=r"the folder '.*/no/where' does not exist") as caught:
        write_bundle(tmp_path / "no" / "where" / "x.edgemm", tiny_manifest, tiny_files)
    assert "mkdir -p" in caught.value.hint


@pytest.mark.parametrize("path", ["/", ".", "..", "a/.."])
def test_paths_without_a_name_are_refused(path: str, tiny_manifest: Manifest, tiny_files: Files) -> None:
    with pytest.raises(BundleError, match="cannot be a bundle"):
        write_bundle(Path(path), tiny_manifest, tiny_files)


@pytest.mark.parametrize("name", ["/abs", "../out", "manifest.json", "a/../b"])
def test_unsafe_file_names_are_not_written(
    tmp_path: Path, tiny_manifest: Manifest, tiny_files: Files, name: str
) -> None:
    with pytest.raises(BundleError, match="the file name"):
        write_bundle(tmp_path / "x", tiny_manifest, {**tiny_files, name: b""})
    assert list(tmp_path.iterdir()) == []


def test_engine_without_file_is_not_written(tmp_path: Path, tiny_manifest: Manifest, tiny_files: Files) -> None:
    del tiny_files["engines/cpu-fp32/image.onnx"]
    with pytest.raises(BundleError, match=r"its file 'engines/cpu-fp32/image.onnx' is not in the bundle"):
        write_bundle(tmp_path / "x", tiny_manifest, tiny_files)
    assert list(tmp_path.iterdir()) == []


def fail_at_file(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Makes the sync of the n-th file raise `error`."""
    calls = iter(range(1, 100))
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if next(calls) == number:
            raise error
        real(descriptor)

    monkeypatch.setattr(store_module.os, "fsync", fsync)


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("force", [False, True])
def test_interrupt_leaves_nothing_behind(
    tmp_path: Path,
    tiny_manifest: Manifest,
    tiny_files: Files,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    force: bool,
) -> None:
    path = tmp_path / "tiny.edgemm"
    if force:
        write_bundle(path, tiny_manifest, tiny_files)
    before = tree(tmp_path)
    fail_at_file(monkeypatch, number, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_bundle(path, tiny_manifest, {**tiny_files, "recipe.json": b"new"}, force=force)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("step", [1, 2])
def test_interrupt_while_swapping_leaves_one_whole_bundle(
    bundle: Path, tiny_manifest: Manifest, tiny_files: Files, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    real, calls = os.rename, iter(range(1, 10))

    def rename(source: Path, target: Path) -> None:
        real(source, target)
        if next(calls) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(store_module.os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(bundle, tiny_manifest, {**tiny_files, "recipe.json": b"new"}, force=True)
    assert os.listdir(bundle.parent) == ["tiny.edgemm"]
    verify(bundle, read_manifest(bundle))
    assert (bundle / "recipe.json").read_bytes() == (b"{}\n" if step == 1 else b"new")


def test_full_disk_is_told_with_sizes(
    tmp_path: Path, tiny_manifest: Manifest, tiny_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at_file(monkeypatch, 3, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(BundleError, match=r"no room on the disk: the bundle needs [\d,]+ bytes, [\d,]+ are free"):
        write_bundle(tmp_path / "x", tiny_manifest, tiny_files)
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import sys, json
from pathlib import Path
from edgemm.bundle import Manifest, write_bundle
from edgemm.errors import EdgemmError
folder, size = Path(sys.argv[1]), int(sys.argv[2])
manifest = Manifest.from_json(json.loads(sys.argv[3]))
files = {name: b"x" * size for name in manifest.files}
try:
    write_bundle(folder / "x.edgemm", manifest, files)
except EdgemmError as error:
    print(error)
print(sorted(p.name for p in folder.iterdir()))
"""


def run_script(prefix: list[str], folder: Path, size: int, manifest: Manifest) -> str:
    command = [*prefix, sys.executable, "-c", SCRIPT, str(folder), str(size), json.dumps(manifest.to_json())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_really_full_disk(tmp_path: Path, tiny_manifest: Manifest) -> None:
    mount = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=64k none {tmp_path} && exec "$@"', "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no permission to mount a small file system")
    out = run_script(mount, tmp_path, 100_000, tiny_manifest)
    assert "no room on the disk: the bundle needs 30" in out
    assert out.splitlines()[-1] == "[]"


def test_read_only_folder_is_told(tiny_manifest: Manifest) -> None:
    prefix = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    if prefix and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and there is no setpriv to stop being root")
    folder = Path(tempfile.mkdtemp(prefix="edgemm-test-", dir="/tmp"))
    try:
        folder.chmod(0o555)
        out = run_script(prefix, folder, 10, tiny_manifest)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    assert "x.edgemm: cannot be written: Permission denied" in out
    assert out.splitlines()[-1] == "[]"


def write_when_told(path: Path, manifest: Manifest, files: Files, force: bool, barrier: Any, results: Any) -> None:
    real = store_module._publish

    def publish(*args: Any) -> None:
        barrier.wait()  # both have written their files and now want the name
        real(*args)

    store_module._publish = publish
    try:
        write_bundle(path, manifest, files, force=force)
        results.put("won")
    except BundleError as error:
        results.put(str(error))


@pytest.mark.parametrize("force", [False, True])
def test_of_two_writers_exactly_one_wins(
    tmp_path: Path, tiny_manifest: Manifest, tiny_files: Files, force: bool
) -> None:
    path = tmp_path / "x.edgemm"
    if force:
        write_bundle(path, tiny_manifest, tiny_files)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    contents = [{name: who for name in tiny_files} for who in (b"first" * 99, b"second" * 99)]
    writers = [
        context.Process(target=write_when_told, args=(path, tiny_manifest, c, force, barrier, results))
        for c in contents
    ]
    for writer in writers:
        writer.start()
    answers = sorted(results.get(timeout=60) for _ in writers)
    for writer in writers:
        writer.join()
    assert answers[1] == "won"
    assert "something else was written there meanwhile" in answers[0]
    verify(path, read_manifest(path))
    written = tree(path)
    del written["manifest.json"]
    assert written in contents
    assert os.listdir(tmp_path) == ["x.edgemm"]


def test_no_bundle_at_the_path(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("nowhere", "no such file or bundle"),
        ("x.onnx", "is a file, a bundle is a folder"),
        ("empty", "not a bundle .it has no manifest.json"),
    ):
        with pytest.raises(BundleError, match=message):
            read_manifest(tmp_path / name)


def test_manifest_that_is_a_link_or_too_large_is_refused(bundle: Path) -> None:
    file = bundle / "manifest.json"
    outside = bundle.parent / "elsewhere.json"
    shutil.move(file, outside)
    file.symlink_to(outside)
    with pytest.raises(BundleError, match="is a symbolic link, expected a file"):
        read_manifest(bundle)
    file.unlink()
    with file.open("wb") as stream:
        stream.truncate(store_module.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match="a manifest has at most"):
        read_manifest(bundle)


def test_truncated_manifest_is_refused(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_bytes()
    for cut in (0, 1, len(text) // 2, len(text) - 3):
        (bundle / "manifest.json").write_bytes(text[:cut])
        with pytest.raises(BundleError, match="not a manifest"):
            read_manifest(bundle)


def change(bundle: Path) -> None:
    file = bundle / "engines/cpu-fp32/image.onnx"
    file.write_bytes(file.read_bytes().replace(b"image", b"IMAGE"))


def lengthen(bundle: Path) -> None:
    with (bundle / "recipe.json").open("ab") as stream:
        stream.write(b" ")


def remove(bundle: Path) -> None:
    (bundle / "recipe.json").unlink()


def add(bundle: Path) -> None:
    (bundle / "engines" / "extra.onnx").write_bytes(b"")


def link_file_out(bundle: Path) -> None:
    shutil.move(bundle / "recipe.json", bundle.parent / "recipe.json")
    (bundle / "recipe.json").symlink_to(bundle.parent / "recipe.json")


def link_folder_out(bundle: Path) -> None:
    shutil.move(bundle / "engines", bundle.parent / "engines")
    (bundle / "engines").symlink_to(bundle.parent / "engines")


def pipe(bundle: Path) -> None:
    remove(bundle)
    os.mkfifo(bundle / "recipe.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change, r"'engines/cpu-fp32/image.onnx' was changed \(sha256 [0-9a-f]{12}…, the manifest says"),
        (lengthen, r"'recipe.json' has 4 bytes, the manifest says 3"),
        (remove, r"the file 'recipe.json' is missing"),
        (add, r"the file 'engines/extra.onnx' is not part of the bundle"),
        (link_file_out, r"'recipe.json' is a symbolic link; a bundle holds plain files only"),
        (link_folder_out, r"'engines' is a symbolic link; a bundle holds plain files only"),
        (pipe, r"'recipe.json' is a pipe; a bundle holds plain files only"),
    ],
)
def test_damage_is_found_before_use(bundle: Path, damage: Callable[[Path], None], message: str) -> None:
    manifest = read_manifest(bundle)
    damage(bundle)
    with pytest.raises(BundleError, match=message) as caught:
        verify(bundle, manifest)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "engines/../../secret"])
def test_manifest_that_names_files_outside_is_refused(bundle: Path, name: str) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    data["files"][name] = data["files"].pop("recipe.json")
    (bundle / "manifest.json").write_text(json.dumps(data))
    (bundle.parent / "secret").write_bytes(b"{}\n")
    with pytest.raises(BundleError, match="the file name"):
        read_manifest(bundle)


def test_verify_reads_no_file_outside(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(bundle)
    outside = {**manifest.files, "../secret": {"sha256": "0" * 64, "size": 1}}
    monkeypatch.setattr(builtins, "open", lambda *a, **k: pytest.fail("opened a file"))
    with pytest.raises(BundleError, match=r"'\.\.' part"):
        verify(bundle, replace(manifest, files=outside))


def test_bundle_behind_a_link_is_fine(bundle: Path) -> None:
    link = bundle.parent / "current.edgemm"
    link.symlink_to(bundle)
    verify(link, read_manifest(link))
    assert read_manifest(link) == read_manifest(bundle)


def test_newer_schema_is_refused(bundle: Path) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(data | {"schema": 2, "stages": "different now"}))
    with pytest.raises(BundleError, match="made by a newer edgemm, schema 2; this is 1") as caught:
        read_manifest(bundle)
    assert "pip install --upgrade edgemm" in caught.value.hint
