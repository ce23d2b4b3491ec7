"""Draws the stages of a model as text: encoders on the left, the joins, the fusion head on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ARROW = " ─▶ "


@dataclass(frozen=True, slots=True)
class _Block:
    """Some lines of text; the arrow to the next block leaves from line `anchor`."""

    lines: tuple[str, ...]
    anchor: int


def draw(report: Mapping[str, Any], width: int) -> list[str]:
    """Returns the stage graph of an `inspect` report as lines of text.

    A tree (every stage feeds one other) is drawn with its branches, without the counts where `width` columns are
    too few for them; any other graph, and one that is still too wide, as one line per stage.

    Args:
        report: Has `inputs`, `outputs`, `states`, `stages` and `joins` as in a bundle's manifest; `made_of` names
            the array in `inputs` that an input of a stage is made of on the host.
        width: Columns that there are.
    """
    from rich.cells import cell_len

    for counts in (True, False):
        graph = _Graph(report, counts=counts)
        root = graph.root()
        if root is None:
            break
        block = graph.tree(root)
        results = graph.results(root)
        lines = list(block.lines)
        if results:
            lines[block.anchor] += ARROW + results
        if max(map(cell_len, lines)) <= width:
            return [line.rstrip() for line in lines]
    return _Graph(report, counts=True).listing()


class _Graph:
    def __init__(self, report: Mapping[str, Any], *, counts: bool) -> None:
        self.counts = counts
        self.stages = {s["name"]: s for s in report["stages"]}
        states = {s["input"] for s in report["states"]} | {s["output"] for s in report["states"]}
        self.modalities = {i["name"]: i["modality"] for i in report["inputs"] if i["name"] not in states}
        self.made_of = report.get("made_of", {})
        self.outputs = {o["name"] for o in report["outputs"] if o["name"] not in states}
        self.makers = {t["name"]: s["name"] for s in report["stages"] for t in s["outputs"]}
        self.joins: dict[str, dict[str, None]] = {}
        for join in report["joins"]:
            self.joins.setdefault(join["stage"], {})[join["op"]] = None

    def sources(self, stage: str) -> list[str]:
        """Returns the names of the stages that `stage` reads from."""
        names = (self.makers.get(t["name"]) for t in self.stages[stage]["inputs"])
        return list(dict.fromkeys(n for n in names if n is not None and n != stage))

    def inputs(self, stage: str) -> list[str]:
        """Returns the model inputs that `stage` reads, one text per modality."""
        groups: dict[str, dict[str, None]] = {}
        for tensor in self.stages[stage]["inputs"]:
            name = self.made_of.get(tensor["name"], tensor["name"])
            if name in self.modalities and name not in self.makers:
                groups.setdefault(self.modalities[name], {})[name] = None
        return [", ".join(names) for names in groups.values()]

    def root(self) -> str | None:
        """Returns the last stage if all others lead to it, each to exactly one stage; else None."""
        consumers = {name: 0 for name in self.stages}
        for name in self.stages:
            for source in self.sources(name):
                consumers[source] += 1
        ends = [name for name, number in consumers.items() if number == 0]
        return ends[0] if len(ends) == 1 and max(consumers.values()) <= 1 else None

    def title(self, name: str) -> str:
        """Returns `"image encoder"`, or `"fusion head"` for the only one."""
        role = self.stages[name]["role"]
        return role if name == "fusion" and role == "fusion head" else f"{name} {role}"

    def label(self, name: str) -> str:
        """Returns `"image encoder (14 nodes, 98 k)"`."""
        from edgemm.cli._output import count, short

        stage = self.stages[name]
        if not self.counts:
            return self.title(name)
        return f"{self.title(name)} ({count(stage['nodes'], 'node')}, {short(stage['parameters'])})"

    def results(self, stage: str) -> str:
        """Returns the names of the model outputs that `stage` gives."""
        return ", ".join(t["name"] for t in self.stages[stage]["outputs"] if t["name"] in self.outputs)

    def join(self, stage: str) -> str:
        """Returns the operators that join at `stage`."""
        operators = list(self.joins.get(stage, ()))
        return ", ".join(operators[:2]) + (", …" if len(operators) > 2 else "")

    def tree(self, stage: str) -> _Block:
        """Returns the drawing of everything that leads to `stage`."""
        blocks = [self.tree(s) for s in self.sources(stage)] + [_Block((text,), 0) for text in self.inputs(stage)]
        if not blocks:
            return _Block((self.label(stage),), 0)
        if len(blocks) == 1:
            lines = list(blocks[0].lines)
            lines[blocks[0].anchor] += ARROW + self.label(stage)
            return _Block(tuple(lines), blocks[0].anchor)
        return _merge(blocks, self.join(stage), self.label(stage))

    def listing(self) -> list[str]:
        """Returns one line per stage: what it reads, what it is, what it gives."""
        lines = []
        for name in self.stages:
            read = ", ".join([*map(self.title, self.sources(name)), *self.inputs(name)])
            join = f" ─ {self.join(name)}" if self.join(name) else ""
            results = self.results(name)
            lines.append(f"{read}{join}{ARROW}{self.label(name)}{ARROW + results if results else ''}")
        return lines


def _merge(blocks: Sequence[_Block], join: str, label: str) -> _Block:
    """Stacks blocks and leads their arrows into one, at the middle block or between the two middle ones."""
    from rich.cells import cell_len

    lines: list[str] = []
    anchors: list[int] = []
    middle = len(blocks) // 2
    for index, block in enumerate(blocks):
        if index == middle and len(blocks) % 2 == 0:
            out = len(lines)
            lines.append("")
        anchors.append(len(lines) + block.anchor)
        lines.extend(block.lines)
    if len(blocks) % 2:
        out = anchors[middle]
    width = max(map(cell_len, lines))
    for row, line in enumerate(lines):
        gap = width - cell_len(line)
        if row in anchors:
            corner = "┐" if row == anchors[0] else "┘" if row == anchors[-1] else "┤"
            lines[row] = f"{line} {'─' * (gap + 1)}{'┼' if row == out else corner}"
        elif anchors[0] < row < anchors[-1]:
            lines[row] = f"{line}{' ' * (gap + 2)}{'├' if row == out else '│'}"
    lines[out] += f"─ {join}{ARROW}{label}" if join else f"─▶ {label}"
    return _Block(tuple(lines), out)
