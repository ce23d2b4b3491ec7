"""What the real TensorRT-RTX makes of a graph. It needs no GPU to parse and to build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lint_models import ACCEPTS, BUILDER, PARSER


class RealBuilder:
    """Parses and builds with one logger: TensorRT keeps the first one of a process."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.logger = trt.Logger(trt.Logger.INTERNAL_ERROR)

    def parse(self, data: bytes) -> Any:
        """Returns the network, or None when the parser refuses."""
        builder = self.trt.Builder(self.logger)
        network = builder.create_network(0)
        parser = self.trt.OnnxParser(network, self.logger)
        return (builder, network) if parser.parse(data) else None

    def verdict(self, data: bytes, sm: int, shapes: Mapping[str, Any] | None = None) -> str:
        """Returns `ACCEPTS`, or who refuses."""
        parsed = self.parse(data)
        if parsed is None:
            return PARSER
        builder, network = parsed
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        assert config.set_compute_capability(getattr(self.trt.ComputeCapability, f"SM{sm}"), 0)
        if shapes:
            profile = builder.create_optimization_profile()
            for name, given in shapes.items():
                profile.set_shape(name, *given)
            config.add_optimization_profile(profile)
        return BUILDER if builder.build_serialized_network(network, config) is None else ACCEPTS

    def output_types(self, data: bytes) -> dict[str, str]:
        """Returns layer output -> type as the network has it, after parsing."""
        parsed = self.parse(data)
        assert parsed is not None
        _, network = parsed
        outputs = [network.get_layer(i).get_output(0) for i in range(network.num_layers)]
        return {o.name: str(o.dtype).removeprefix("DataType.") for o in outputs}
