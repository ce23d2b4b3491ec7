"""Files added to a bundle where it lies: whole, in any order of events, and never outside of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edgemm.bundle import Manifest, add_files, read_manifest, verify, write_bundle
from edgemm.errors import BundleError

NEW = {
    "engines/cpu-fp32/image.0123456789ab.engine": b"built engine",
    "engines/cpu-fp32/image.0123456789ab.engine.json": b"{}",
}
PLAN = "plans/more/deep.json"


@pytest.fixture
def bundle(tmp_path: Path, tiny_manifest: Manifest, tiny_files: Mapping[str, bytes]) -> Path:
    path = tmp_path / "tiny.edgemm"
    write_bundle(path, tiny_manifest, tiny_files)
    return path


def tree(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def test_files_are_added_and_verified(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    before = read_manifest(bundle)
    manifest = add_files(bundle, {**NEW, PLAN: source})
    assert manifest == read_manifest(bundle)
    assert manifest.files.keys() == before.files.keys() | NEW.keys() | {PLAN}
    assert list(manifest.files) == sorted(manifest.files)
    assert replace(manifest, files={}) == replace(before, files={})
    verify(bundle, manifest)
    assert (bundle / PLAN).read_bytes() == b"from a file"
    assert source.exists()
    assert tree(bundle) == sorted([*manifest.files, "manifest.json"])


def test_what_lies_in_the_cache_is_moved(bundle: Path) -> None:
    built = bundle / "cache/building/engine"
    built.parent.mkdir(parents=True)
    built.write_bytes(b"large")
    add_files(bundle, {PLAN: built})
    assert not built.exists()
    verify(bundle, read_manifest(bundle))


def test_a_file_is_replaced_and_the_manifest_changed(bundle: Path) -> None:
    add_files(bundle, NEW)
    name = next(iter(NEW))

    def renamed(manifest: Manifest) -> Manifest:
        return replace(manifest, name="other")

    manifest = add_files(bundle, {name: b"another engine"}, renamed)
    assert manifest.name == read_manifest(bundle).name == "other"
    assert manifest.files.keys() >= NEW.keys()
    assert (bundle / name).read_bytes() == b"another engine"
    verify(bundle, manifest)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../outside": b""}, "has an empty, '.' or '..' part"),
        ({"/outside": b""}, "is absolute"),
        ({"manifest.json": b"{}"}, "is the manifest itself"),
        ({"cache/x": b""}, "lies in 'cache', which is not verified"),
        ({"engines/cpu-fp32/image.onnx": b"another graph"}, r"its file 'engines/cpu-fp32/image\.onnx' is not in"),
    ],
)
def test_refusals_leave_the_bundle_as_it_was(bundle: Path, files: dict[str, bytes], message: str) -> None:
    before = tree(bundle)
    with pytest.raises(BundleError, match=message):
        add_files(bundle, files)
    assert tree(bundle) == before
    verify(bundle, read_manifest(bundle))


def test_a_change_that_makes_no_sense_is_refused(bundle: Path) -> None:
    before = tree(bundle)
    with pytest.raises(BundleError, match="no variant has engines"):
        add_files(bundle, NEW, lambda manifest: replace(manifest, variants=()))
    assert tree(bundle) == before


def test_folders_that_are_links_are_refused(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (bundle / "plans").symlink_to(outside)
    with pytest.raises(BundleError, match="the folder 'plans' is a symbolic link"):
        add_files(bundle, {PLAN: b""})
    (bundle / "plans").unlink()
    (bundle / "cache").symlink_to(outside)
    with pytest.raises(BundleError, match="the folder 'cache' is a symbolic link"):
        add_files(bundle, {PLAN: b""})
    assert not list(outside.iterdir())


def test_no_bundle_and_no_such_file(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        add_files(tmp_path, NEW)
    with pytest.raises(BundleError, match="cannot be read"):
        add_files(bundle, {PLAN: tmp_path / "missing"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_bundle(bundle: Path) -> None:
    bundle.chmod(0o500)
    try:
        with pytest.raises(BundleError, match="cannot be written"):
            add_files(bundle, NEW)
    finally:
        bundle.chmod(0o700)


def test_failure_half_way_takes_back_what_was_placed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if Path(target).suffix == ".json" and Path(target).parent.name == "cpu-fp32":
            raise OSError(28, "No space left on device")
        real(source, target)

    before = tree(bundle)
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(BundleError, match="no room on the disk"):
        add_files(bundle, NEW)
    assert bundle / next(iter(NEW)) in calls
    assert tree(bundle) == before


POWER_CUTS = """
import json, os, shutil, sys
from pathlib import Path
from edgemm.bundle import add_files, read_manifest, verify

bundle, saved, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]

def cut_after(steps):
    left = [steps]

    def cutting(real):
        def call(*args, **kwargs):
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
            return real(*args, **kwargs)

        return call

    for name in ("replace", "fsync", "mkdir", "unlink", "rmdir"):
        setattr(os, name, cutting(getattr(os, name)))

def in_a_process_of_its_own(steps):
    child = os.fork()
    if child == 0:
        cut_after(steps)
        add_files(bundle, {name: b"rebuilt" for name in names})
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

seen, steps, code = [], 0, 9
while code == 9:
    shutil.rmtree(bundle)
    shutil.copytree(saved, bundle)
    code = in_a_process_of_its_own(steps)
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    seen.append([(bundle / name).read_text() for name in names if name in manifest.files])
    again = add_files(bundle, {"plans/x.json": b"x"})  # clears what was left behind
    verify(bundle, again)
    files = sorted(p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file())
    assert files == sorted([*again.files, "manifest.json"]), files
    steps += 1
print(json.dumps({"seen": seen, "code": code}))
"""


@pytest.mark.parametrize("replaced", [False, True], ids=["new", "replaced"])
def test_power_cut_at_any_step_leaves_a_bundle_that_verifies(bundle: Path, replaced: bool) -> None:
    if replaced:
        add_files(bundle, NEW)
    saved = bundle.with_suffix(".saved")
    shutil.copytree(bundle, saved)
    done = subprocess.run([sys.executable, "-c", POWER_CUTS, bundle, saved, *NEW], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["code"] == 0
    assert len(found["seen"]) > 8
    old = tuple(content.decode() for content in NEW.values()) if replaced else ()
    assert {tuple(contents) for contents in found["seen"]} == {old, ("rebuilt", "rebuilt"), ()}


def test_processes_that_add_at_once_wait_for_each_other(bundle: Path) -> None:
    code = (
        "import sys; from edgemm.bundle import add_files; "
        "[add_files(sys.argv[1], {f'plans/{sys.argv[2]}-{i}.json': b'{}'}) for i in range(10)]"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, bundle, str(number)]) for number in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    manifest = read_manifest(bundle)
    assert sum(name.startswith("plans/") for name in manifest.files) == 30
    verify(bundle, manifest)


def test_cache_is_not_verified_and_links_in_it_are_refused(bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    (bundle / "cache/rtx").mkdir(parents=True)
    (bundle / "cache/rtx/kernels.bin").write_bytes(b"anything")
    verify(bundle, manifest)
    write_bundle(bundle, manifest, {n: (bundle / n).read_bytes() for n in manifest.files}, force=True)
    assert not (bundle / "cache").exists()
    (bundle / "cache").mkdir()
    (bundle / "cache/link").symlink_to(tmp_path)
    with pytest.raises(BundleError, match="'cache/link' is a symbolic link"):
        verify(bundle, manifest)


def test_announced_names_do_not_lead_outside(bundle: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    (bundle / "cache").mkdir()
    (bundle / "cache/adding.json").write_text('{"files": ["../kept", "engines/cpu-fp32/left.engine"]}')
    left = bundle / "engines/cpu-fp32/left.engine"
    left.write_bytes(b"half")
    verify(bundle, read_manifest(bundle))
    add_files(bundle, NEW)
    assert kept.read_text() == "mine"
    assert not left.exists()
    (bundle / "cache/adding.json").write_text("{}")
    (bundle / "extra").write_text("")
    with pytest.raises(BundleError, match="'extra' is not part of the bundle"):
        verify(bundle, read_manifest(bundle))
