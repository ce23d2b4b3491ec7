"""What is quantized and why: a plan is a list of decisions that can be printed, saved, edited, re-applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

INT8 = "int8"
FLOAT = "fp32"


@dataclass(frozen=True, slots=True)
class Decision:
    """The precision of one node.

    Attributes:
        node: Node name in the stage's graph (unique within the stage).
        op: ONNX operator type.
        stage: Name of the stage that the node is in.
        precision: `"int8"` (static Q/DQ on its data inputs and weight) or `"fp32"`.
        rule: Short name of the rule that decided, for example `"conv-per-channel"`, `"too-few-channels"`.
        reason: One sentence for people.
    """

    node: str
    op: str
    stage: str
    precision: str
    rule: str
    reason: str


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
        """Returns this plan with every int8 node of `stages` turned back to float for `reason`."""
        chosen = set(stages)
        return QuantPlan(
            self.target,
            tuple(
                Decision(d.node, d.op, d.stage, FLOAT, rule, reason)
                if d.stage in chosen and d.precision == INT8
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
            "decisions": [asdict(d) for d in self.decisions],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantPlan:
        """Returns the plan that `to_json` wrote."""
        return cls(data["target"], tuple(Decision(**d) for d in data["decisions"]), data["calibration"])
