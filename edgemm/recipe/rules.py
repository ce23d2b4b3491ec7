"""`quantize.rules`: the precision of some nodes by hand."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from edgemm.recipe.section import Section

RulePrecision = Literal["float", "int8", "int8-dynamic", "int8-weight", "int4-weight", "fp16"]


class RuleMatch(Section):
    """Which nodes a rule is about: those that fit all that is given; `*` and `?` stand for anything."""

    stage: str | None = Field(default=None, description="Name of the stage, as `edgemm inspect` shows it.")
    modality: str | None = Field(
        default=None, description="Stages that see this modality and no other: its encoder."
    )
    op: str | None = Field(default=None, description="ONNX operator: Conv, Gemm, MatMul, LSTM.")
    node: str | None = Field(default=None, description="Name of the node, as `edgemm plan --all` shows it.")
    module: str | None = Field(
        default=None, description="Path of a torch module, for all that is in it: encoder.layers.*, image.conv1."
    )

    @model_validator(mode="after")
    def _something(self) -> RuleMatch:
        if not self.model_dump(exclude_none=True):
            raise ValueError("it matches nothing: give stage, modality, op, node or module")
        return self


class QuantizeRule(Section):
    """The precision of some nodes, whatever the search would choose for them."""

    match: RuleMatch = Field(description="Which nodes.")
    precision: RulePrecision = Field(
        description="float: never quantized; float32 on NVIDIA targets. CPU targets, where the node can have it: "
        "int8, int8-dynamic (a scale per call), int8-weight, int4-weight. NVIDIA targets: fp16, not quantized."
    )

    @property
    def integer(self) -> bool:
        """Whether it asks for integers."""
        return self.precision.startswith("int")
