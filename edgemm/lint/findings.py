"""What the lint says: one value per thing that a builder would refuse, or take without a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
"""`error`: no engine, or one that computes something else. `warning`: an engine that is not what was meant, or not
with every version the target may have. `note`: right, and slower than it need be."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to change before an engine is built.

    Attributes:
        rule: Key of `edgemm.lint.registry.RULES`.
        severity: One of `SEVERITIES`.
        reason: What the builder does with it, and why.
        fix: What to do.
        node: Name of the node; empty where it is about an input.
        op: The node's operator.
        tensor: The tensor that it is about, or empty.
        scope: Nodes whose bodies the node is in, outermost first and joined by `/`; empty in the main graph.
        variant: Variant of a bundle, or empty.
        stage: Stages of the engine in a bundle, or empty.
        modalities: Their modalities.
    """

    rule: str
    severity: str
    reason: str
    fix: str
    node: str = ""
    op: str = ""
    tensor: str = ""
    scope: str = ""
    variant: str = ""
    stage: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Node (inside its scope) and operator, or the tensor."""
        if not self.node:
            return f"input '{self.tensor}'" if self.tensor else "the model"
        name = f"{self.scope}/{self.node}" if self.scope else self.node
        return f"{self.op} '{name}'"

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "node": self.node,
            "op": self.op,
            "scope": self.scope,
            "tensor": self.tensor,
            "reason": self.reason,
            "fix": self.fix,
            "variant": self.variant,
            "stage": list(self.stage),
            "modalities": list(self.modalities),
        }
