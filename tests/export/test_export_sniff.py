"""Kinds of model files, told from their bytes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from export_nets import TwoBranch, save, tensor
from safetensors.torch import save_file

from edgemm.errors import ModelError
from edgemm.export.sniff import sniff

ONNX_TEXT = '<ir_version: 10, opset_import: ["": 20]> g (float[N,4] a) => (float[N,4] y) { y = Relu(a) }'


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    model, args = TwoBranch(), (tensor(1, 1, 8, 8), tensor(1, 5))
    found = {
        "exported-program": save(model, args, folder / "", "pt2").path,
        "torch-zip": folder / "state.pt",
        "torch-legacy-pickle": folder / "legacy.pt",
        "safetensors": folder / "weights",
        "onnx": folder / "net",
        "recipe": folder / "recipe",
    }
    (folder / "script").mkdir()
    found["torchscript"] = save(model, args, folder / "script", "torchscript").path
    torch.save(model.state_dict(), found["torch-zip"])
    torch.save(model.state_dict(), found["torch-legacy-pickle"], _use_new_zipfile_serialization=False)
    save_file(model.state_dict(), found["safetensors"])
    onnx.save(onnx.parser.parse_model(ONNX_TEXT), found["onnx"])
    found["recipe"].write_text("model:\n  path: a.pt2\n")
    return found


KINDS = ["exported-program", "torchscript", "torch-zip", "torch-legacy-pickle", "safetensors", "onnx", "recipe"]


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_told_from_the_content_whatever_the_suffix(
    files: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    other = tmp_path / "model.jpg"
    other.write_bytes(files[kind].read_bytes())
    assert sniff(files[kind]) == kind
    assert sniff(other) == kind


@pytest.mark.parametrize("kind", ["exported-program", "torchscript", "torch-zip", "safetensors", "onnx"])
@pytest.mark.parametrize("part", [0.5, 0.95])
def test_a_file_that_was_cut_off_is_called_so(
    files: dict[str, Path], kind: str, part: float, tmp_path: Path
) -> None:
    data = files[kind].read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ModelError, match=f"cut off at {len(data) * part // 1:,.0f}"):
        sniff(cut)


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("word/document.xml", "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty file"),
        (b"\x89PNG\r\n\x1a\n123", "PNG image"),
        (b"<!DOCTYPE html><html>", "HTML text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n1234", "HDF5"),
        (b"\x1c\0\0\0TFL3abcd", "TensorFlow Lite"),
        (b"\x80\x04\x95\x10\0\0\0\0\0\0\0.", "Python pickle that torch.save did not write"),
        (b"just some words\n", "text that starts with 'just some words'"),
        (b"import torch\n", "Python source"),
        (b"- a\n- b\n", "neither a model nor a recipe"),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07\x08", "first bytes 00 01 02 03"),
        (_npz(), r"NumPy archive \(.npz\)"),
        (_zip(), "zip archive of something else .*word/document.xml"),
    ],
)
def test_what_a_foreign_file_is_is_said(content: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=found) as caught:
        sniff(path)
    assert caught.value.hint


def test_folders_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a folder"):
        sniff(tmp_path)
    with pytest.raises(ModelError, match="does not exist") as caught:
        sniff(tmp_path / "ent.onnx")
    assert "net.onnx" in caught.value.hint
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="is a folder") as caught:
        sniff(tmp_path)
    assert "bundle" in caught.value.hint
