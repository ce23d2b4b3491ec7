"""The `tensorrt` or `tensorrt_rtx` module: imported with care, asked what it has, never which version it is.

TensorRT 8.6 to 11 and TensorRT-RTX differ in classes, members and the numbers of their enums. Code that serves all
of them asks `has(trt, "BuilderFlag.FP16")` and uses names.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from edgemm.errors import BackendError, MissingExtraError, did_you_mean

MODULES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
"""Import name -> what people call it."""

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "FP4": "float4_e2m1fn",
    "E8M0": "float8_e8m0fnu",
    "INT4": "int4",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""Member of `DataType` -> numpy or ml_dtypes name. `nptype` of TensorRT has no bfloat16 and no 8-bit float."""

LOGGED = ("INTERNAL_ERROR", "ERROR", "WARNING")


def load_module(name: str) -> Any:
    """Returns the imported module `name`, a key of `MODULES`.

    Raises:
        BackendError: No such module.
        MissingExtraError: It is not installed, is an empty folder, or its libraries do not load.
    """
    if name not in MODULES:
        raise BackendError(
            f"no TensorRT module '{name}' (modules: {', '.join(MODULES)}).",
            hint=did_you_mean(name, MODULES, "use one of these"),
        )
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise _missing(name, error) from error
    if not hasattr(module, "Builder"):
        # tensorrt-stubs puts a folder `tensorrt` on the path: it imports as a namespace package
        raise MissingExtraError(
            f"the package '{name}' is needed to build and run {MODULES[name]} engines, and what imports under "
            "that name is an empty folder.",
            hint=f"pip uninstall tensorrt-stubs; then pip install 'edgemm[{EXTRAS[name]}]'",
        )
    return module


def _missing(name: str, error: Exception) -> MissingExtraError:
    hint = f"pip install 'edgemm[{EXTRAS[name]}]'"
    if not isinstance(error, ModuleNotFoundError) and "lib" in str(error):
        hint = f"the library in the message is not found: {hint}, or add its folder to LD_LIBRARY_PATH"
    elif name == "tensorrt":
        hint += "; on a Jetson it comes with JetPack: make the environment with --system-site-packages"
    return MissingExtraError(
        f"the package '{name}' is needed to build and run {MODULES[name]} engines and does not import: {error}",
        hint=hint,
    )


def has(trt: Any, path: str) -> bool:
    """Returns whether `trt` has the member `path`, for example `"IBuilderConfig.progress_monitor"`."""
    found = trt
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def is_rtx(trt: Any) -> bool:
    """Returns whether `trt` builds for compute capabilities that are named, not for the GPU at hand."""
    return has(trt, "IBuilderConfig.num_compute_capabilities")


def title(trt: Any) -> str:
    """Returns name and version, for example `"TensorRT 10.3.0"`."""
    return f"{'TensorRT-RTX' if is_rtx(trt) else 'TensorRT'} {trt.__version__}"


def dtype_name(dtype: Any) -> str:
    """Returns the numpy or ml_dtypes name of a member of `DataType`."""
    return DTYPES.get(dtype.name, str(dtype.name).lower())


@functools.cache
def logger(trt: Any) -> Any:
    """Returns the logger of this process, an `ILogger` with a list `messages` of (severity, text).

    TensorRT sends the messages of every builder and runtime to the first logger that it was given: there is one.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity.name in LOGGED:
                self.messages.append((severity.name, msg))
                del self.messages[:-MESSAGES]

    return Logger()


MESSAGES = 1000
"""So many messages are kept."""
