"""Precision by hand: the rules of a recipe, resolved to nodes. The last rule that matches a node counts."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import onnx_ir as ir

from edgemm.errors import QuantizationError, RecipeError, did_you_mean
from edgemm.partition import Stage, StageGraph
from edgemm.profiling.onnx_nodes import SCOPES
from edgemm.quant.plan import FLOAT, QuantPlan
from edgemm.quant.tensors import named_nodes
from edgemm.recipe.rules import QuantizeRule, RuleMatch

Node = tuple[str, str]
"""Stage name, node name."""

RULE = "recipe"
"""`Decision.rule` of a node that a rule decides about."""

_PLURALS = {"stage": "stages", "modality": "modalities", "op": "operators", "node": "nodes", "module": "modules"}

_MOST = 12
"""Names that an error lists."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a rule says of one node: its precision as plans have it, and the reason that they give."""

    number: int
    precision: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ruled:
    """The nodes that rules decide about."""

    rulings: Mapping[Node, Ruling]

    def of(self, *precisions: str) -> dict[Node, tuple[str, str]]:
        """Returns node -> (rule, reason) of the nodes that are to have one of `precisions`."""
        return {node: (RULE, r.reason) for node, r in self.rulings.items() if r.precision in precisions}

    def without(self, alternatives: Mapping[Node, tuple[str, ...]]) -> dict[Node, tuple[str, ...]]:
        """Returns the alternatives of the nodes that no rule is about: what a search may choose among."""
        return {node: options for node, options in alternatives.items() if node not in self.rulings}

    def choices(self, alternatives: Mapping[Node, tuple[str, ...]]) -> dict[Node, str]:
        """Returns node -> the integer precision that a rule gives it, of the nodes that can have it.

        Raises:
            QuantizationError: None of the nodes that a rule matches can.
        """
        chosen: dict[Node, str] = {}
        lacking: dict[int, list[Node]] = {}
        for node, ruling in self.rulings.items():
            if ruling.precision == FLOAT:
                continue
            if ruling.precision in alternatives.get(node, ()):
                chosen[node] = ruling.precision
            else:
                lacking.setdefault(ruling.number, []).append(node)
        able = {self.rulings[node].number for node in chosen}
        for number, nodes in lacking.items():
            if number not in able:
                raise _cannot(number, self.rulings[nodes[0]].precision, nodes, alternatives)
        return chosen

    def marked(self, plan: QuantPlan) -> QuantPlan:
        """Returns a plan whose decisions name the rule where they follow one."""
        decisions = tuple(
            replace(d, rule=RULE, reason=ruling.reason)
            if (ruling := self.rulings.get((d.stage, d.node))) is not None and ruling.precision == d.precision
            else d
            for d in plan.decisions
        )
        return replace(plan, decisions=decisions)


def find_ruled(rules: Sequence[QuantizeRule], stages: StageGraph) -> Ruled:
    """Returns the nodes of `stages` that `rules` decide about.

    Raises:
        RecipeError: A rule matches nothing; names what there is, and the closest.
    """
    rulings: dict[Node, Ruling] = {}
    for number, rule in enumerate(rules):
        nodes = [(s.name, n) for s in stages.stages if _stage_fits(rule.match, s) for n in _nodes(rule.match, s)]
        if not nodes:
            raise _nothing(number, rule.match, stages)
        words = ", ".join(f"{key} {value}" for key, value in rule.match.model_dump(exclude_none=True).items())
        precision = FLOAT if rule.precision == "float" else rule.precision
        rulings |= dict.fromkeys(nodes, Ruling(number, precision, f"quantize.rules.{number}: {words}"))
    return Ruled(rulings)


def _stage_fits(match: RuleMatch, stage: Stage) -> bool:
    if match.stage is not None and not fnmatchcase(stage.name, match.stage):
        return False
    return match.modality is None or all(fnmatchcase(m, match.modality) for m in stage.modalities)


def _nodes(match: RuleMatch, stage: Stage) -> list[str]:
    return [
        name
        for name, node in named_nodes(stage.model.graph).items()
        if (match.op is None or fnmatchcase(node.op_type, match.op))
        and (match.node is None or fnmatchcase(name, match.node))
        and (match.module is None or any(fnmatchcase(m, match.module) for m in _modules(node)))
    ]


def _modules(node: ir.Node) -> list[str]:
    """Returns the paths of the torch modules that a node is in, the outer ones first, as far as they are known."""
    scopes = node.metadata_props.get(SCOPES)
    try:
        return [str(path) for path in ast.literal_eval(scopes or "[]")[:-1] if path]  # the last is the node's own
    except (ValueError, SyntaxError, TypeError):
        return []


def _nothing(number: int, match: RuleMatch, stages: StageGraph) -> RecipeError:
    """Returns the error for a rule that matches nothing: the part of it that does not, with what there is."""
    fitting = [s for s in stages.stages if _stage_fits(match, s)]
    inside = [n for s in fitting or stages.stages for n in named_nodes(s.model.graph).items()]
    known = {
        "stage": [s.name for s in stages.stages],
        "modality": list(dict.fromkeys(m for s in stages.stages if len(s.modalities) == 1 for m in s.modalities)),
        "op": sorted({node.op_type for _, node in inside}),
        "node": [name for name, _ in inside],
        "module": list(dict.fromkeys(path for _, node in inside for path in _modules(node))),
    }
    given = match.model_dump(exclude_none=True)
    for key, glob in given.items():
        if not any(fnmatchcase(name, glob) for name in known[key]):
            names = known[key]
            if key == "modality" and not names:
                has = "; ".join(f"{s.name} has {', '.join(s.modalities) or 'none'}" for s in stages.stages)
                return RecipeError(
                    f"quantize.rules.{number}: no stage is of the modality '{glob}' alone ({has}).",
                    hint="match by stage, op, node or module instead",
                )
            some = ", ".join(names[:_MOST]) + (f", and {len(names) - _MOST} more" if len(names) > _MOST else "")
            narrowed = len(fitting) < len(stages.stages) and fitting and key in ("op", "node", "module")
            where = f" in {', '.join(s.name for s in fitting)}" if narrowed else ""
            return RecipeError(
                f"quantize.rules.{number}: no {key} matches '{glob}'{where} ({_PLURALS[key]}: {some or 'none'}).",
                hint=did_you_mean(
                    glob, names, "see `edgemm inspect MODEL` and `edgemm plan MODEL --all` for the names"
                ),
            )
    words = " and ".join(f"{key} '{glob}'" for key, glob in given.items())
    return RecipeError(
        f"quantize.rules.{number}: no node has {words} at once.",
        hint="see `edgemm plan MODEL --all` for stages, nodes and operators",
    )


def _cannot(
    number: int, precision: str, nodes: Sequence[Node], alternatives: Mapping[Node, tuple[str, ...]]
) -> QuantizationError:
    able = [f"{s}/{n}" for (s, n), options in alternatives.items() if precision in options]
    some = ", ".join(able[:_MOST]) + (", ..." if len(able) > _MOST else "")
    what = (
        f"none of the {len(nodes)} nodes that it matches can"
        if len(nodes) > 1
        else "the node that it matches cannot"
    )
    return QuantizationError(
        f"quantize.rules.{number}: {what} be {precision} (nodes that can: {some or 'none'}).",
        hint="they have no kernel for it, or no calibrated range: `edgemm plan MODEL --all` says why",
    )
