"""Times of layers by TensorRT's profiler, and the ONNX nodes that its inspector tells for each of them."""

from __future__ import annotations

import json
import re
from typing import Any

from edgemm.runtime._trt.module import has

_METADATA = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


def attach_profiler(trt: Any, context: Any) -> Any:
    """Returns an `IProfiler` on `context`: `layers` has name -> milliseconds of every launch, in order.

    With a profiler every launch waits for its end (NVIDIA, TensorRT API, "IProfiler"): launches are slower, and
    nothing overlaps.
    """

    class LayerProfiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.layers: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.layers.setdefault(layer_name, []).append(float(ms))

    profiler = LayerProfiler()
    context.profiler = profiler
    return profiler


def onnx_nodes(trt: Any, engine: Any) -> dict[str, list[str]]:
    """Returns layer -> names of the ONNX nodes in it, as far as the engine was built to tell (`detailed`)."""
    if not has(trt, "ICudaEngine.create_engine_inspector"):
        return {}
    try:
        inspector = engine.create_engine_inspector()
        told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        layers = [layer for layer in told["Layers"] if isinstance(layer, dict)]
        return {str(x["Name"]): _METADATA.findall(str(x.get("Metadata", ""))) for x in layers}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        return {}  # an engine without such details, or a version that writes them otherwise


def profile_json(layers: dict[str, list[float]], nodes: dict[str, list[str]]) -> str:
    """Returns what a session writes to `SessionOptions.profile_to`."""
    entries = [{"name": name, "ms": ms, "nodes": nodes.get(name, [])} for name, ms in layers.items()]
    return json.dumps({"layers": entries})
