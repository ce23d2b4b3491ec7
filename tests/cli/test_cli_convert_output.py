"""What may be at the path that `edgemm convert` writes to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_models import HEAD

PAIR = f"""{HEAD}
pair (float[batch,4] image, float[batch,3] gyro) => (float[batch,7] y) {{ y = Concat<axis=1>(image, gyro) }}"""
Edgemm = Callable[..., Any]


@pytest.fixture
def model(onnx_file: Callable[..., Path]) -> Path:
    """image[4] and gyro[3], joined."""
    return onnx_file(PAIR)


def test_existing_bundle_is_kept_without_force(edgemm: Edgemm, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.edgemm"
    assert edgemm("convert", model, "-o", out).code == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    result = edgemm("convert", model, "-o", out)
    assert (result.code, result.out) == (1, "")
    assert result.err == f"error: {out}: there is a bundle already.\nhint:  replace it with --force\n"
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert edgemm("convert", model, "-o", out, "--force", "--modality", "gyro=imu").code == 0
    assert b'"imu"' in (out / "manifest.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.edgemm"]


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_files_and_folders_are_never_replaced(
    edgemm: Edgemm, model: Path, tmp_path: Path, force: tuple[str, ...]
) -> None:
    content = model.read_bytes()
    result = edgemm("convert", model, "-o", model, *force)
    assert result.code == 1
    assert f"error: {model}: is a file; it is never replaced by a bundle." in result.err
    assert model.read_bytes() == content
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"dear")
    result = edgemm("convert", model, "-o", tmp_path / "photos", *force)
    assert result.code == 1
    assert "photos: exists and is not a bundle." in result.err
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["me.jpg"]


def test_missing_folder(edgemm: Edgemm, model: Path, tmp_path: Path) -> None:
    result = edgemm("convert", model, "-o", tmp_path / "no" / "out.edgemm")
    assert result.code == 1
    assert "no' does not exist" in result.err
    assert "mkdir -p" in result.err
