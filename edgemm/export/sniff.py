"""Tells what a model file is from its content. A suffix is a habit; the bytes are what a loader will meet."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Final

from edgemm.errors import ModelError

EXPORTED_PROGRAM: Final = "exported-program"
TORCHSCRIPT: Final = "torchscript"
TORCH_ZIP: Final = "torch-zip"
TORCH_LEGACY: Final = "torch-legacy-pickle"
SAFETENSORS: Final = "safetensors"
ONNX: Final = "onnx"
RECIPE: Final = "recipe"

_ACCEPTED = (
    "edgemm reads .pt2 (torch.export), TorchScript, state_dict (.pt, .pth, .safetensors), "
    "pickled modules, .onnx and recipe .yaml"
)
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_TEXT = 1 << 20
_MAX_SAFETENSORS_HEADER = 100 << 20

# First bytes -> what the file is, and what to do about it.
_KNOWN_BYTES: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (a Keras model?)"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (4, b"ET12", "an ExecuTorch program"),
    (0, b"GGUF", "a GGUF model"),
    (0, b"ptrt", "a TensorRT engine"),
    (0, b"ftrt", "a TensorRT engine"),
    (0, b"\x93NUMPY", "a NumPy array (.npy)"),
    (0, b"\x7fELF", "an ELF program or library"),
    (0, b"RIFF", "a RIFF file (audio or video)"),
    (0, b"SQLite format 3\0", "an SQLite database"),
)


def sniff(path: Path) -> str:
    """Returns the kind of the model file at `path`, told from its content and never from its suffix.

    Nothing in the file is executed or unpickled. A file that starts like a known kind and ends too early is
    reported as cut off.

    Returns:
        `"exported-program"`, `"torchscript"`, `"torch-zip"` (torch.save: a state_dict or a pickled module),
        `"torch-legacy-pickle"` (the same, written before torch 1.6), `"safetensors"`, `"onnx"` or `"recipe"`.

    Raises:
        ModelError: The path is missing, a folder, empty, cut off or of no kind that edgemm reads; the message
            says what it is instead.
    """
    size = _file_size(path)
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK"):
        return _sniff_zip(path, size)
    if head.startswith(b"\x80"):
        return _sniff_pickle(path, head)
    for offset, magic, what in _KNOWN_BYTES:
        if head[offset : offset + len(magic)] == magic:
            raise ModelError(f"{path} is {what}, not a model that edgemm reads.", hint=_hint_for(what))
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER:
        return _sniff_safetensors(path, size)
    text = _read_text(path, size)
    if text is not None:
        return _sniff_text(path, text)
    return _sniff_onnx(path, size, head)


def _file_size(path: Path) -> int:
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a folder, not a model file.", hint=_hint_for_folder(path))
        size = path.stat().st_size
        if size:
            with path.open("rb"):
                pass
    except FileNotFoundError as error:
        near = _neighbours(path)
        raise ModelError(f"{path} does not exist.", hint=near or "check the path") from error
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror or error}.", hint="check the file's permissions"
        ) from error
    if size == 0:
        raise ModelError(f"{path} is an empty file (0 bytes).", hint="download or save the model again")
    return size


def _neighbours(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    models, recipes = {".pt2", ".pt", ".pth", ".onnx", ".safetensors"}, {".yaml", ".yml"}
    suffixes = models if path.suffix in models else models | recipes
    found = sorted(p.name for p in folder.iterdir() if p.suffix in suffixes)[:5]
    return f"models in {folder}: {', '.join(found)}" if found else ""


def _hint_for_folder(path: Path) -> str:
    if (path / "manifest.json").is_file():
        return "it is a bundle that is converted already; try `edgemm inspect` or `edgemm profile`"
    for name in ("model.onnx", "model.safetensors", "pytorch_model.bin", "model.pt2"):
        if (path / name).is_file():
            return f"did you mean {path / name}?"
    return f"name a file; {_ACCEPTED}"


def _hint_for(what: str) -> str:
    if "archive" in what:
        return f"unpack it first; {_ACCEPTED}"
    if "NumPy" in what:
        return "data goes to --calib or --eval; " + _ACCEPTED
    if "engine" in what:
        return "an engine cannot be converted; start from the model it was built from"
    return _ACCEPTED


def _sniff_zip(path: Path, size: int) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            # The table of contents of an archive inside a cut-off one is no table of contents of the file.
            if names and min(entry.header_offset for entry in archive.infolist()) > 0:
                raise EOFError
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise ModelError(
            f"{path} is a zip archive cut off at {size:,} bytes (its table of contents is missing).",
            hint="copy, download or save the model again",
        ) from error
    inner = {name.split("/", 1)[1] if "/" in name else name for name in names}
    if "serialized_exported_program.json" in names or any(
        name.startswith("models/") and name.endswith(".json") for name in inner
    ):
        return EXPORTED_PROGRAM
    if any(name.startswith("data/aotinductor/") for name in inner):
        raise ModelError(
            f"{path} is an AOTInductor package: compiled code without a graph.",
            hint="save the program itself with torch.export.save()",
        )
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return TORCHSCRIPT
    if "data.pkl" in inner:
        return TORCH_ZIP
    if names and all(name.endswith(".npy") for name in names):
        raise ModelError(f"{path} is a NumPy archive (.npz), not a model.", hint=_hint_for("NumPy"))
    shown = ", ".join(names[:3]) or "nothing"
    raise ModelError(f"{path} is a zip archive of something else (it holds {shown}).", hint=_ACCEPTED)


def _sniff_pickle(path: Path, head: bytes) -> str:
    if head[2 : 2 + len(_LEGACY_MAGIC)] == _LEGACY_MAGIC:
        return TORCH_LEGACY
    if head[1] <= 5:
        raise ModelError(
            f"{path} is a Python pickle that torch.save did not write. Loading it runs code from the file.",
            hint="--allow-pickle is for files of torch.save only; save the model with torch.export.save(), or its "
            "state_dict() with torch.save()",
        )
    raise ModelError(f"{path} is no known kind of file (first bytes {head[:8].hex(' ')}).", hint=_ACCEPTED)


def _sniff_safetensors(path: Path, size: int) -> str:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    again = "copy, download or save the file again"
    if len(header) < length:
        raise ModelError(f"{path} is a safetensors file cut off at {size:,} bytes, inside its header.", hint=again)
    try:
        table = json.loads(header)
        end = max((v["data_offsets"][1] for k, v in table.items() if k != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{path} starts like a safetensors file, but its header is damaged.", hint=again
        ) from error
    if 8 + length + end != size:
        what = f"cut off at {size:,}" if size < 8 + length + end else f"{size:,} bytes long instead"
        raise ModelError(f"{path} is a safetensors file {what} of {8 + length + end:,} bytes.", hint=again)
    return SAFETENSORS


def _read_text(path: Path, size: int) -> str | None:
    with path.open("rb") as file:
        data = file.read(_MAX_TEXT)
    if b"\0" in data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if size <= _MAX_TEXT or error.start < len(data) - 4:
            return None
        text = data[: error.start].decode("utf-8")
    controls = sum(1 for c in text[:512] if ord(c) < 32 and c not in "\t\r\n\f")
    return None if controls else text


def _sniff_text(path: Path, text: str) -> str:
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith("version https://git-lfs"):
        raise ModelError(
            f"{path} is a Git LFS pointer: the model itself was not downloaded.",
            hint="run `git lfs pull` in that repository",
        )
    if start.startswith(("<!doctype html", "<html")):
        raise ModelError(
            f"{path} is HTML text (a web page saved in place of the model?).",
            hint="download the file itself, not the page that shows it",
        )
    if start.startswith("<"):
        raise ModelError(f"{path} is XML text, not a model that edgemm reads.", hint=_ACCEPTED)
    if path.suffix == ".py" or start.startswith(("import ", "from ", "#!/usr/bin/env python")):
        raise ModelError(
            f"{path} is Python source, not a model file.",
            hint="to build a model in code, pass its state_dict as MODEL and --factory FILE.py:FUNC",
        )
    import yaml

    try:
        value = yaml.safe_load(text) if len(text) < _MAX_TEXT else None
    except yaml.YAMLError as error:
        if path.suffix in {".yaml", ".yml"}:
            where = " ".join(str(error).split())
            raise ModelError(f"{path} is not valid YAML: {where}.", hint="fix the recipe") from error
        value = None
    if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        return RECIPE
    first = text.strip().splitlines()[0][:40] if text.strip() else ""
    found = f"text that starts with {first!r}" if first else "blank text"
    raise ModelError(f"{path} is {found}, neither a model nor a recipe.", hint=_ACCEPTED)


def _sniff_onnx(path: Path, size: int, head: bytes) -> str:
    """Walks the outermost protobuf fields of a ModelProto without reading the graph."""
    # field number -> wire type, from onnx.proto: ir_version, producer name and version, domain,
    # model_version, doc_string, graph, opset_import, metadata_props, training_info, functions, configuration
    wire = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
    fields: set[int] = set()
    position = 0
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            chunk = file.read(20)
            tag, used = _varint(chunk)
            if wire.get(tag >> 3) != (tag & 7) or used == 0:
                break
            value, more = _varint(chunk[used:])
            if more == 0:
                break
            fields.add(tag >> 3)
            position += used + more + (value if tag & 7 == 2 else 0)
    if position == size and 7 in fields:
        return ONNX
    if position > size and {1, 7} <= fields:
        raise ModelError(
            f"{path} is an ONNX model cut off at {size:,} of at least {position:,} bytes.",
            hint="copy or download the model again",
        )
    raise ModelError(f"{path} is no known kind of file (first bytes {head[:8].hex(' ')}).", hint=_ACCEPTED)


def _varint(data: bytes) -> tuple[int, int]:
    """Returns a protobuf varint and its length in bytes; length 0 when it does not end."""
    value = 0
    for index, byte in enumerate(data[:10]):
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, index + 1
    return 0, 0
