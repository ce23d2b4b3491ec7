"""What is quantized and why: a plan is a list of decisions that can be printed, saved, edited, re-applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from edgemm.errors import QuantizationError, did_you_mean

T = TypeVar("T")

FLOAT = "fp32"
INT8 = "int8"
"""Static: Q/DQ with calibrated scales on data and weight."""

DYNAMIC = "int8-dynamic"
"""Integer kernels whose activation scale is computed on every call."""

WEIGHT8, WEIGHT4 = "int8-weight", "int4-weight"
"""Weight-only: stored in 8 or 4 bits, activations stay float."""

FP8 = "fp8"
"""Static, as int8, in float8 E4M3: for TensorRT on GPUs that have it."""

HALF, BF16 = "fp16", "bf16"
"""Half precision, by casts: for TensorRT."""

PRECISIONS = (FLOAT, INT8, DYNAMIC, WEIGHT8, WEIGHT4, FP8, HALF, BF16)


@dataclass(frozen=True, slots=True)
class Decision:
    """The precision of one node.

    Attributes:
        node: Node name in the stage's graph (unique within the stage).
        op: ONNX operator type.
        stage: Name of the stage that the node is in.
        precision: One of `PRECISIONS`.
        rule: Short name of the rule that decided, for example `"conv-per-channel"`, `"too-few-channels"`.
        reason: One sentence for people.
        options: What else the plan does at this node, as plain JSON values, for example
            `{"block_size": 32}` or `{"range": [0.0, 6.0]}`.
        cost: What this precision costs in the fused metric or output error, where the search measured it.
        gain: What it saves, in milliseconds per call, where the search measured it.
    """

    node: str
    op: str
    stage: str
    precision: str
    rule: str
    reason: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cost: float | None = None
    gain: float | None = None

    @property
    def where(self) -> str:
        """Node and stage, for messages."""
        return f"'{self.node}' of stage '{self.stage}'"

    def node_in(self, nodes: Mapping[str, T]) -> T:
        """Returns the node that is decided about, of a stage's nodes by name.

        Raises:
            QuantizationError: There is none.
        """
        if self.node not in nodes:
            raise QuantizationError(
                f"the plan has {self.precision} for {self.where}, which has no such node.",
                hint="the plan was made for another model or export; plan again",
            )
        return nodes[self.node]

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict without the fields that are not in use."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["options"] = dict(self.options)
        return {name: value for name, value in values.items() if value not in (None, {})}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        """Returns the decision that `to_json`, or an editor of its file, wrote.

        Raises:
            QuantizationError: A field is missing or unknown, or there is no such precision; names the node.
        """
        where = f"decision on node '{data.get('node', '?')}'"
        known = [f.name for f in fields(cls)]
        for name in data:
            if name not in known:
                raise QuantizationError(
                    f"{where}: got field '{name}', expected {', '.join(known)}.",
                    hint=did_you_mean(name, known, "take it out"),
                )
        missing = [name for name in known[:6] if not isinstance(data.get(name), str)]
        if missing:
            raise QuantizationError(
                f"{where}: got no text for {', '.join(missing)}.", hint="every decision has these fields as text"
            )
        if data["precision"] not in PRECISIONS:
            raise QuantizationError(
                f"{where}: got precision '{data['precision']}', expected one of {', '.join(PRECISIONS)}.",
                hint=did_you_mean(data["precision"], PRECISIONS, "use one of these"),
            )
        return cls(**data)


@dataclass(frozen=True, slots=True)
class QuantPlan:
    """Every decision for one target, in graph order. Nodes that are not listed stay as they are."""

    target: str
    decisions: tuple[Decision, ...]
    calibration: Mapping[str, Any]

    def counts(self) -> dict[str, int]:
        """Returns how many nodes have each precision, for example `{"int8": 12, "fp32": 3}`."""
        result: dict[str, int] = {}
        for decision in self.decisions:
            result[decision.precision] = result.get(decision.precision, 0) + 1
        return dict(sorted(result.items()))

    def stage(self, name: str) -> tuple[Decision, ...]:
        """Returns the decisions of one stage."""
        return tuple(d for d in self.decisions if d.stage == name)

    def with_stages_float(self, stages: Iterable[str], rule: str, reason: str) -> QuantPlan:
        """Returns this plan with every node of `stages` that is not float turned back to it for `reason`."""
        chosen = set(stages)
        return QuantPlan(
            self.target,
            tuple(
                Decision(d.node, d.op, d.stage, FLOAT, rule, reason)
                if d.stage in chosen and d.precision != FLOAT
                else d
                for d in self.decisions
            ),
            self.calibration,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict; `from_json` is its inverse."""
        return {
            "target": self.target,
            "calibration": dict(self.calibration),
            "decisions": [d.to_json() for d in self.decisions],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantPlan:
        """Returns the plan that `to_json` wrote.

        Raises:
            QuantizationError: A part is missing, or a decision is not one; the message names it.
        """
        for name, kind in (("target", str), ("decisions", list), ("calibration", dict)):
            if not isinstance(data.get(name), kind):
                raise QuantizationError(
                    f"plan: got {data.get(name)!r:.40} for '{name}', expected a {kind.__name__}.",
                    hint="start from a file that edgemm plan --save wrote",
                )
        return cls(data["target"], tuple(Decision.from_json(d) for d in data["decisions"]), data["calibration"])
