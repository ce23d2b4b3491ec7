"""Runs an ONNX graph on a GPU by ONNX Runtime: its CUDA, TensorRT and TensorRT-RTX providers.

ONNX Runtime goes on without a provider that it lacks or that fails to start, on the CPU and without an error. Here
the provider is asked for first, and looked for afterwards.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from edgemm._optional import require
from edgemm.errors import BackendError, EdgemmError, MissingExtraError, UnsupportedDeviceError
from edgemm.runtime._trt.sidecar import sha256
from edgemm.runtime.ort import OrtSession, explain, session_settings
from edgemm.runtime.provider_options import Options, cuda_options, rtx_options, tensorrt_options
from edgemm.runtime.session import SessionOptions

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"

RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
"""Import name of the package that brings TensorRT-RTX's provider as a plugin."""

_GPU_HINT = (
    "pip uninstall onnxruntime, then pip install 'edgemm[gpu]'; on a Jetson take NVIDIA's onnxruntime-gpu wheel "
    "for its JetPack"
)
_LIBRARIES = {
    CUDA: "CUDA, cuDNN and the driver",
    TENSORRT: "TensorRT, CUDA, cuDNN and the driver",
    RTX: "TensorRT-RTX, CUDA and the driver",
}

_SOURCE = re.compile(r"\S+\.(?:cc|h|cu):\d+ [^()]*\([^()]*\)( const)? ")
_LIBRARY = re.compile(r"install .*libraries|load library|cannot open shared object|CUDA driver", re.IGNORECASE)
"""What ONNX Runtime says when a library of a provider is missing, not when it refuses a graph."""


class OrtCudaSession(OrtSession):
    """One engine on ONNX Runtime's CUDA provider; operators that it lacks run on the CPU."""

    provider: ClassVar[str] = CUDA

    def _open(self, engine: Path, options: SessionOptions) -> Any:
        """Returns an `onnxruntime.InferenceSession` that the provider has taken.

        Raises:
            BackendError: The provider refuses the graph.
            UnsupportedDeviceError: The provider does not start on this machine, or takes no node.
            MissingExtraError: The installed ONNX Runtime has no such provider.
        """
        ort = require("onnxruntime", extra="gpu", why="run this engine on a GPU")
        self._require(ort)
        cache = _cache_folder(self.provider, engine, options, ort.__version__)
        try:
            session = self._start(ort, engine, options, cache)
        except Exception as error:
            if cache is None or not _thrown_away(cache):
                raise self._refused(ort, error) from error
            try:  # what was in the cache may have been in its way
                session = self._start(ort, engine, options, cache)
            except Exception as again:
                raise self._refused(ort, again) from again
        check_taken(session, self.provider, self.name)
        return session

    def _require(self, ort: Any) -> None:
        available = ort.get_available_providers()
        if self.provider not in available:
            raise MissingExtraError(
                f"engine '{self.name}': ONNX Runtime {ort.__version__} as it is installed here has no "
                f"{self.provider} (it has {', '.join(available)}).",
                hint=_GPU_HINT,
            )

    def _options(self, options: SessionOptions, cache: Path | None) -> Options:
        return cuda_options(options.plan, options.device)

    def _providers(self, ort: Any, options: SessionOptions, cache: Path | None) -> list[tuple[str, Options]]:
        return [(self.provider, self._options(options, cache)), (CPU, {})]

    def _start(self, ort: Any, engine: Path, options: SessionOptions, cache: Path | None) -> Any:
        settings = session_settings(ort, options)
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = self._providers(ort, options, cache)
        return ort.InferenceSession(str(engine), settings, providers=providers, enable_fallback=0)

    def _refused(self, ort: Any, error: Exception) -> EdgemmError:
        if isinstance(error, EdgemmError):
            return error
        said = _SOURCE.sub("", explain(error))
        message = (
            f"engine '{self.name}' does not open in ONNX Runtime {ort.__version__} on {self.provider}: {said}"
        )
        if _LIBRARY.search(said):
            return UnsupportedDeviceError(message, hint=_needs(self.provider))
        return BackendError(
            message,
            hint="update onnxruntime or open another target; edgemm check says what TensorRT refuses",
        )


class OrtTensorRtSession(OrtCudaSession):
    """One engine on ONNX Runtime's TensorRT provider; what TensorRT lacks runs on CUDA, or on the CPU."""

    provider: ClassVar[str] = TENSORRT

    def _options(self, options: SessionOptions, cache: Path | None) -> Options:
        return tensorrt_options(options.plan, options.device, cache)

    def _providers(self, ort: Any, options: SessionOptions, cache: Path | None) -> list[tuple[str, Options]]:
        first, last = super()._providers(ort, options, cache)
        if CUDA not in ort.get_available_providers():
            return [first, last]
        return [first, (CUDA, cuda_options(options.plan, options.device)), last]


class OrtRtxSession(OrtCudaSession):
    """One engine on TensorRT-RTX's provider: built into ONNX Runtime, or NVIDIA's plugin for it."""

    provider: ClassVar[str] = RTX

    def _require(self, ort: Any) -> None:
        self._devices: list[Any] = []
        if RTX not in ort.get_available_providers():
            self._devices = rtx_devices(ort, self.name)

    def _options(self, options: SessionOptions, cache: Path | None) -> Options:
        return rtx_options(options.plan, options.device, cache)

    def _start(self, ort: Any, engine: Path, options: SessionOptions, cache: Path | None) -> Any:
        if not self._devices:
            return super()._start(ort, engine, options, cache)
        if options.device >= len(self._devices):
            raise UnsupportedDeviceError(
                f"engine '{self.name}': got device {options.device}, {RTX} finds {len(self._devices)}.",
                hint="device 0 is the first GPU",
            )
        settings = session_settings(ort, options)
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        settings.add_provider_for_devices([self._devices[options.device]], self._options(options, cache))
        return ort.InferenceSession(str(engine), settings, enable_fallback=0)


def rtx_devices(ort: Any, engine: str) -> list[Any]:
    """Returns the devices of NVIDIA's TensorRT-RTX plugin, which is registered the first time.

    Raises:
        MissingExtraError: The plugin, or what a newer ONNX Runtime needs for it, is not installed.
        UnsupportedDeviceError: It does not load, or finds no GPU.
    """
    try:
        plugin = importlib.import_module(RTX_PLUGIN)
        register, list_devices = ort.register_execution_provider_library, ort.get_ep_devices
    except (ImportError, OSError, AttributeError) as error:
        raise MissingExtraError(
            f"engine '{engine}': ONNX Runtime {ort.__version__} as it is installed here has no {RTX}, and its "
            f"plugin does not import: {error}.",
            hint="pip install 'onnxruntime>=1.24' onnxruntime-ep-nv-tensorrt-rtx-cu12",
        ) from error
    name = plugin.get_ep_name()

    def found() -> list[Any]:
        return [d for d in list_devices() if d.ep_name == name]

    devices = found()
    if not devices:
        try:
            register(name, plugin.get_library_path())
        except Exception as error:
            if "already registered" not in str(error).lower():
                raise UnsupportedDeviceError(
                    f"engine '{engine}': the plugin {name} does not load: {explain(error)}",
                    hint=_needs(RTX),
                ) from error
        devices = found()
    if not devices:
        raise UnsupportedDeviceError(
            f"engine '{engine}': the plugin {name} finds no GPU that it runs on.",
            hint="it runs on RTX GPUs from Ampere on; `edgemm doctor` tells what is there",
        )
    return devices


def check_taken(session: Any, provider: str, engine: str) -> None:
    """Checks that `provider` runs the session, or a part of it: ONNX Runtime says nothing when it does not.

    Raises:
        UnsupportedDeviceError: It did not start, or it got no node.
    """
    started = session.get_providers()
    if provider not in started:
        raise UnsupportedDeviceError(
            f"engine '{engine}': {provider} did not start; ONNX Runtime would have used {', '.join(started)}.",
            hint=_needs(provider),
        )
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return  # ONNX Runtime tells from version 1.24 on
    nodes: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] += len(part.get_nodes())
    if nodes and not nodes[provider]:
        took = ", ".join(f"{name} {count}" for name, count in nodes.most_common())
        raise UnsupportedDeviceError(
            f"engine '{engine}': {provider} took none of its nodes ({took}).",
            hint="open another target of the bundle; edgemm check tells what TensorRT refuses",
        )


def _needs(provider: str) -> str:
    libraries = _LIBRARIES.get(provider, "its libraries")
    return f"it needs {libraries} where the loader finds them: `edgemm doctor` tells what is there"


def _cache_folder(provider: str, engine: Path, options: SessionOptions, version: str) -> Path | None:
    """Returns the folder for what a provider keeps of one graph, version and set of options, None without one.

    ONNX Runtime does not look whether what it finds there was made from this graph with these options.
    """
    if options.cache is None or provider == CUDA:
        return None
    what = [sha256(engine), version, options.device, options.plan]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    folder = options.cache / provider / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a bundle that nobody may write to
    return folder


def _thrown_away(cache: Path) -> bool:
    """Empties the folder; returns whether there was something in it."""
    if not any(cache.iterdir()):
        return False
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    return True
