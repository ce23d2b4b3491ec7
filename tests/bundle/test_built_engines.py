"""Engines that were built into a bundle: a lost one stops nothing else, and is dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from planned import AMPERE, CPU, planned_bundle

from edgemm.bundle import add_files, damaged_engines, drop_engines, read_manifest, verify
from edgemm.errors import BundleError

FOLDER = "engines/rtx-ampere-int8"
IMAGE, AUDIO = f"{FOLDER}/image.0123456789ab.engine", f"{FOLDER}/audio.0123456789ab.engine"
STRAY = f"{FOLDER}/image.ffffffffffff.engine"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = planned_bundle(tmp_path / "tiny.edgemm", AMPERE | CPU)
    add_files(path, {name: name.encode() for e in (IMAGE, AUDIO) for name in (e, f"{e}.json")})
    return path


DAMAGE: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "engine missing": (lambda b: (b / IMAGE).unlink(), {IMAGE: "is missing"}),
    "both missing": (lambda b: [f.unlink() for f in b.glob(f"{IMAGE}*")], {IMAGE: "is missing"}),
    "engine changed": (lambda b: (b / IMAGE).write_bytes(b"x" * len(IMAGE)), {IMAGE: "was changed after it was"}),
    "engine cut": (lambda b: (b / IMAGE).write_bytes(b""), {IMAGE: "was changed after it was built"}),
    "sidecar missing": (lambda b: (b / f"{IMAGE}.json").unlink(), {IMAGE: "has a sidecar that is missing"}),
    "sidecar changed": (lambda b: (b / f"{IMAGE}.json").write_text("{}"), {IMAGE: "has a sidecar that was"}),
    "not listed": (lambda b: (b / STRAY).write_bytes(b"x"), {STRAY: "is not in the manifest"}),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_engine_is_found_and_dropped_and_stops_nothing_else(bundle: Path, what: str) -> None:
    break_it, wanted = DAMAGE[what]
    assert damaged_engines(bundle, read_manifest(bundle)) == {}
    break_it(bundle)
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    found = damaged_engines(bundle, manifest)
    assert found.keys() == wanted.keys()
    assert all(found[name].startswith(reason) for name, reason in wanted.items())
    assert drop_engines(bundle, lambda m: damaged_engines(bundle, m)) == found
    after = read_manifest(bundle)
    verify(bundle, after)
    assert damaged_engines(bundle, after) == {}
    assert after.files.keys() == manifest.files.keys() - {n for e in found for n in (e, f"{e}.json")}
    assert sorted(after.files) == sorted(
        p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file() and p.name != "manifest.json"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"{FOLDER}/image.onnx", "'engines/rtx-ampere-int8/image.onnx'"),
        (f"{FOLDER}/other.0123456789ab.engine", "is not part of the bundle"),
        ("engines/cpu-fp32/image.0123456789ab.engine", "is not part of the bundle"),
        (f"{FOLDER}/image.engine", "is not part of the bundle"),
    ],
)
def test_everything_else_is_verified(bundle: Path, name: str, said: str) -> None:
    (bundle / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=said):
        verify(bundle, read_manifest(bundle))


def test_engine_that_is_a_link_is_refused(bundle: Path) -> None:
    (bundle / IMAGE).unlink()
    (bundle / IMAGE).symlink_to(bundle / AUDIO)
    with pytest.raises(BundleError, match="symbolic link"):
        verify(bundle, read_manifest(bundle))


def test_only_engines_are_dropped(bundle: Path) -> None:
    before = read_manifest(bundle)
    with pytest.raises(BundleError, match="is no built engine"):
        drop_engines(bundle, lambda _: {f"{FOLDER}/image.onnx": "must go"})
    assert read_manifest(bundle) == before
    verify(bundle, before)
