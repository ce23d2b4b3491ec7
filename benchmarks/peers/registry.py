"""The peers: what is installed for each, what runs it, and what runs its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to quantize an ONNX model.

    Attributes:
        script: File in `scripts/`, called as `python SCRIPT model.onnx calib.npz out_folder *arguments`; it writes
            `model.onnx` or `model.xml` to the folder. Lines that it prints after `note: ` stand in the table.
        environment: Name of its requirements in `requirements/`, or None where this environment has all it needs.
        arguments: What follows on the command line.
        packages: Distributions whose versions are kept with the results.
    """

    script: str
    environment: str | None
    packages: tuple[str, ...]
    arguments: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The script's file."""
        return FOLDER / "scripts" / f"{self.script}.py"


PEERS: Mapping[str, Peer] = {
    "ort-minmax": Peer("ort_static", None, ("onnxruntime",), ("MinMax",)),
    "ort-entropy": Peer("ort_static", None, ("onnxruntime",), ("Entropy",)),
    "ort-percentile": Peer("ort_static", None, ("onnxruntime",), ("Percentile",)),
    "ort-dynamic": Peer("ort_dynamic", None, ("onnxruntime",)),
    "modelopt": Peer("modelopt_int8", "modelopt", ("nvidia-modelopt", "onnxruntime", "onnx")),
    "nncf-onnx": Peer("nncf_onnx", "nncf", ("nncf", "onnxruntime", "onnx")),
    "nncf-openvino": Peer("nncf_openvino", "nncf", ("nncf", "openvino")),
    "aimet": Peer("aimet_int8", "aimet", ("aimet-onnx", "onnxruntime", "onnx"), ("0",)),
    "aimet-adaround": Peer("aimet_int8", "aimet", ("aimet-onnx", "onnxruntime", "onnx"), ("2000",)),
    "olive": Peer("olive_int8", "olive", ("olive-ai", "onnxruntime", "onnx")),
    "onnx-neural-compressor": Peer(
        "onnx_neural_compressor_int8",
        "onnx_neural_compressor",
        ("onnx-neural-compressor", "onnxruntime", "onnx"),
    ),
    "openvino-float": Peer("openvino_float", None, ("openvino",)),
}
"""Every peer by the name of its row, in the order of the table. `openvino-float` quantizes nothing: it tells what
of the row `nncf-openvino` is the engine's."""


def count_lines(path: Path) -> int:
    """Returns the lines that a user writes: the script without blank lines, comments and docstring."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    if lines and lines[0].startswith('"""'):
        end = 0 if lines[0].count('"""') == 2 else next(i for i, s in enumerate(lines[1:], 1) if s.endswith('"""'))
        lines = lines[end + 1 :]
    return sum(1 for line in lines if line and not line.startswith("#"))
