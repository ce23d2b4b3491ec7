"""Runs an ONNX engine on ONNX Runtime's CPU execution provider. onnxruntime is imported when one opens.

Arrays go from engine to engine as numpy has them. Buffers that are allocated once and bound (IOBinding) were
measured to gain nothing at any size on a CPU, and would have to be guarded: an app keeps its results as long as
it likes.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm._optional import require
from edgemm.errors import BackendError, BundleError, DataError
from edgemm.runtime.protobuf import last, messages
from edgemm.runtime.session import SessionOptions
from edgemm.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(complex64)": "complex64",
    "tensor(complex128)": "complex128",
}
"""ONNX Runtime's type names that numpy has a dtype for."""

_FATAL = 4
_RECURRENT = re.compile(rb'"(?:\x03GRU|\x03RNN|\x04LSTM|\x13DynamicQuantizeLSTM)')
"""`NodeProto.op_type` of what ends the process, in ONNX Runtime, when it is given nothing."""

_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")


class OrtSession:
    """One engine on ONNX Runtime. `run` may be called from several threads at once."""

    def __init__(self, engine: Path, options: SessionOptions) -> None:
        """Opens the engine file.

        Raises:
            BackendError: No ONNX file, an operator that ONNX Runtime lacks, or an input that is no number.
            MissingExtraError: onnxruntime is not installed.
        """
        self.name = Path(engine).name
        self._profiling = options.profile_to is not None
        self._recurrent = _is_recurrent(Path(engine))
        self._session: Any = self._open(Path(engine), options)
        self.inputs = _specs(self._session.get_inputs(), "input", self.name)
        self.outputs = _specs(self._session.get_outputs(), "output", self.name)
        self._output_names = [o.name for o in self.outputs]

    def _open(self, engine: Path, options: SessionOptions) -> Any:
        return open_onnx(engine, options, self.name)

    def run(self, feed: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """Returns the outputs in the order of `outputs`. `feed` holds exactly the engine's inputs.

        Raises:
            DataError: An input has nothing in it, and the engine has recurrent layers.
            BackendError: A node failed; the message names it.
            BundleError: The session is closed.
        """
        if self._recurrent:
            self._check_filled(feed)
        session = self._session
        if session is None:
            raise BundleError(f"engine '{self.name}' is closed.", hint="open the session again")
        try:
            outputs: Sequence[np.ndarray] = session.run(self._output_names, feed)
        except Exception as error:
            raise BackendError(
                f"engine '{self.name}' failed: {explain(error)}",
                hint="check the values and sizes of the inputs; `edgemm inspect` shows what the model takes",
            ) from error
        return outputs

    def _check_filled(self, feed: Mapping[str, np.ndarray]) -> None:
        for name, array in feed.items():
            if array.size == 0:
                raise DataError(
                    f"engine '{self.name}': input '{name}' is empty, its shape is {array.shape}; recurrent layers "
                    "take 1 sample and 1 step or more.",
                    hint="leave out a call that has nothing to run on",
                )

    def close(self) -> None:
        """Frees what the engine holds; a second call does nothing. A run under way in a thread ends first."""
        session, self._session = self._session, None
        if session is not None and self._profiling:
            session.end_profiling()


def _is_recurrent(engine: Path) -> bool:
    """Returns whether a recurrent operator is in an ONNX file; weights are not looked at."""
    try:
        with engine.open("rb") as file:
            model = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return any(_RECURRENT.search(node) for node in messages(last(model, 7), 1))
    except (OSError, ValueError, IndexError):
        return False  # ONNX Runtime says what is wrong with it


def open_onnx(model: Path | bytes, options: SessionOptions, name: str) -> Any:
    """Returns an `onnxruntime.InferenceSession` over `model` on the CPU execution provider.

    Idle pool threads stop spinning as soon as a run ends unless `options.spinning`: several engines in one
    process otherwise take the cores from each other.

    Raises:
        BackendError: ONNX Runtime cannot load `model`, or has no such precision; the message starts with `name`.
        MissingExtraError: onnxruntime is not installed.
    """
    ort = require("onnxruntime", extra="cpu", why="run this engine")
    if options.precision != "f32":
        raise BackendError(
            f"engine '{name}': ONNX Runtime has no precision '{options.precision}' beside the graph's own.",
            hint="convert the model again; bf16 needs the openvino backend",
        )
    try:
        return ort.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            _profiled(session_settings(ort, options), options, model),
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # the fallback prints to stdout
        )
    except Exception as error:
        raise BackendError(
            f"engine '{name}' does not open in ONNX Runtime {ort.__version__}: {explain(error)}",
            hint="is it a whole ONNX file? then update onnxruntime; any other model goes through edgemm convert",
        ) from error


def session_settings(ort: Any, options: SessionOptions) -> Any:
    """Returns the `onnxruntime.SessionOptions` that `options` come to, without providers."""
    settings = ort.SessionOptions()
    settings.log_severity_level = _FATAL  # failures are raised; nothing is printed behind the app's back
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    if not options.optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not options.spinning:
        settings.add_session_config_entry("session.force_spinning_stop", "1")
    if options.profile_to is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = options.profile_to
    return settings


def _profiled(settings: Any, options: SessionOptions, model: Path | bytes) -> Any:
    """Returns `settings` with a profile per engine, and with the graph as it is run beside it."""
    if options.profile_to is not None and isinstance(model, Path):
        settings.profile_file_prefix = options.profile_prefix(model)
        settings.optimized_model_filepath = f"{settings.profile_file_prefix}.onnx"
    return settings


def explain(error: Exception) -> str:
    """Returns what ONNX Runtime said, without its prefix and source lines."""
    text = _PREFIX.sub("", str(error).strip())
    return " ".join(text.split())[:800]


def _specs(arguments: Sequence[Any], kind: str, engine: str) -> tuple[TensorSpec, ...]:
    """Returns the specs of a session's inputs or outputs; an unnamed size gets the name `NAME:AXIS`."""
    specs = []
    for argument in arguments:
        if argument.type not in DTYPES:
            raise BackendError(
                f"engine '{engine}': {kind} '{argument.name}' is a {argument.type}, which edgemm does not run.",
                hint="give the model numbers only: leave tokenizers, text, maps and sequences outside of it",
            )
        shape = tuple(d if d is not None else f"{argument.name}:{axis}" for axis, d in enumerate(argument.shape))
        specs.append(TensorSpec(argument.name, DTYPES[argument.type], shape))
    return tuple(specs)
