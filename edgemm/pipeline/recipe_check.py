"""A recipe held against its model and samples: what names an input, a modality or a node must find one.

The steps are those of `convert` up to the first measurement. Each says what is wrong as a `Problem` with its line;
a step that needs what an earlier one did not give is left out.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemm.data.reader import is_reference
from edgemm.errors import EdgemmError, did_you_mean
from edgemm.export.request import ExportResult
from edgemm.metrics import choose_output
from edgemm.partition import StageGraph, partition
from edgemm.pipeline import targets_of
from edgemm.pipeline.exporting import export
from edgemm.pipeline.missing import find_cuts
from edgemm.pipeline.preprocessing import NONE, Preprocessing, bake_preprocessing, read_preprocessing
from edgemm.pipeline.progress import Clock, Progress
from edgemm.pipeline.rates import check_rates
from edgemm.pipeline.scoring import check_metric
from edgemm.pipeline.shapes import open_dimensions
from edgemm.pipeline.splits import Splits, open_splits
from edgemm.pipeline.wishes import check_cuts, check_fills, check_policy
from edgemm.quant.placement import possible
from edgemm.quant.ruled import find_ruled
from edgemm.recipe import Recipe
from edgemm.recipe.problems import Problem, dotted, in_order
from edgemm.recipe.source import Loc, RecipeText
from edgemm.rewrite.pipeline import rewrite
from edgemm.tensors import IOSpec

_BY_MODALITY = ("optional", "window", "max_age", "offset")
"""Fields of `stream` whose keys are modalities."""
_ABOUT_MISSING = ("optional", "learn", "heads")
"""Fields of `stream` and `missing` that say what stands for a modality."""


def check_names(
    recipe: Recipe,
    text: RecipeText,
    progress: Progress,
    *,
    run_code: bool = False,
    lost: frozenset[Loc] = frozenset(),
) -> tuple[list[Problem], list[str]]:
    """Returns what is wrong with a recipe and its model and samples, and notes on what was opened.

    Args:
        recipe: Valid, its paths resolved.
        text: As it was written, for lines and columns.
        progress: Told about every step.
        run_code: Also open what runs code: factories, pickles, readers and metrics of the user.
        lost: What is wrong by itself and was taken out of `recipe`, or names a file that is not there; what would
            only follow from that is not told.
    """
    job = _Check(recipe, text, progress, run_code, lost)
    with tempfile.TemporaryDirectory(prefix="edgemm-check-") as folder:
        job.run(Path(folder))
    return in_order(dict.fromkeys(job.problems)), job.notes


@dataclass(slots=True)
class _Check:
    recipe: Recipe
    text: RecipeText
    progress: Progress
    run_code: bool
    lost: frozenset[Loc]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self, folder: Path) -> None:
        recipe = self.recipe
        if self.sound("evaluate", "data") and self.may_run(recipe.evaluate.metric, "the metric"):
            with self.told(("evaluate", "metric")):
                check_metric(recipe.evaluate, recipe.data.label)
        if self.sound("stream", "missing", "states"):
            with self.told(("stream",)):
                check_fills(recipe)
        if self.sound("target", "quantize"):
            with self.told(("target",)):
                targets_of(recipe)
        front: Preprocessing | None = NONE
        splits, fed = Splits(None, None), self.sound("data", "inputs")
        if fed:
            splits = self.samples()
            front = None
            with self.told(("inputs",)):
                front = read_preprocessing(recipe, splits.any)
        if front is None:  # what goes into the model is not known: of it only the names
            recipe, splits = _as_saved(recipe), Splits(None, None)
        exported = self.exported(recipe, splits, folder)
        if exported is None:
            return
        io = exported.graph.io
        self.names(io)
        if front is not None:
            self.arrays(splits, io, front)
            with self.told(("inputs",)):
                exported, front = bake_preprocessing(exported, front, splits.any, self.progress)
        graph, _ = rewrite(exported.graph)
        self.against(partition(graph), graph.io)

    def sound(self, *sections: str) -> bool:
        """Returns whether nothing is wrong by itself in these sections."""
        return not any(loc[0] in sections for loc in self.lost)

    def may_run(self, reference: str | None, what: str) -> bool:
        """Returns whether something may be opened; notes it where that would run code and may not."""
        if reference is None or not is_reference(reference) or self.run_code:
            return True
        self.notes.append(f"{what} is not opened: it runs code (--run-code)")
        return False

    def samples(self) -> Splits:
        data = self.recipe.data
        for key, reference in (("calib", data.calib), ("eval", data.eval)):
            if not self.may_run(reference, f"data.{key}"):
                return Splits(None, None)
        with self.told(("data",)):
            return open_splits(data)
        return Splits(None, None)

    def exported(self, recipe: Recipe, splits: Splits, folder: Path) -> ExportResult | None:
        """Returns the exported model, without what the recipe says of inputs and states that it has not."""
        model = recipe.model
        if (model.factory is not None or model.allow_pickle) and not self.run_code:
            self.notes.append("the model is not opened: its factory or pickle runs code (--run-code)")
            return None
        while True:
            try:
                return export(recipe, splits.any, folder, self.progress, Clock())
            except EdgemmError as error:
                problem, loc = self.located(error, ("model", "path"))
                key = str(loc[1]) if len(loc) > 1 else ""
                sections: dict[str, Mapping[str, Any]] = {"inputs": recipe.inputs, "states": recipe.states}
                named = key in sections.get(str(loc[0]), ())
                if self.sound("model", "inputs", "states", "data") or (
                    named and loc[:2] not in {at[:2] for at in self.lost}
                ):
                    self.problems.append(problem)
                else:
                    self.notes.append(f"the model is not opened with what is wrong here: {error}")
                if not named:
                    return None
                rest = {k: v for k, v in sections[str(loc[0])].items() if k != key}
                recipe = recipe.model_copy(update={str(loc[0]): rest})

    def names(self, io: IOSpec) -> None:
        """Tells every name of an input or modality that the model has not."""
        raw = {s.source for s in self.recipe.inputs.values() if s.source is not None}
        inputs = [*(i.name for i in io.inputs), *raw]
        self.known(("inputs",), self.recipe.inputs, inputs, "input")
        if self.recipe.evaluate.output is not None:
            with self.told(("evaluate", "output")):
                choose_output(io, self.recipe.evaluate.output)
        if any(loc[0] == "inputs" and (len(loc) < 3 or loc[2] == "modality") for loc in self.lost):
            return  # what is called a modality cannot be known
        modalities = io.modality_names()
        stream = self.recipe.stream
        for name in _BY_MODALITY:
            keys = getattr(stream, name)
            self.known(("stream", name), keys if isinstance(keys, Mapping) else (), modalities, "modality")
        if isinstance(stream.trigger, str) and stream.trigger not in (*modalities, "any"):
            self.unknown(("stream", "trigger"), stream.trigger, [*modalities, "any"], "modality")
        for number, name in enumerate(self.recipe.missing.learn):
            if name not in modalities:
                self.unknown(("missing", "learn", number), name, modalities, "modality")
        self.known(("profile", "rates"), self.recipe.profile.rates or (), modalities, "modality")
        for number, name in enumerate(self.recipe.profile.cached):
            if name not in modalities:
                self.unknown(("profile", "cached", number), name, modalities, "modality")

    def arrays(self, splits: Splits, io: IOSpec, front: Preprocessing) -> None:
        """Tells every input that the samples have no array for."""
        raw = {way.input: way.raw.name for way in (*front.baked, *front.host)}
        for key, source in (("calib", splits.calib), ("eval", splits.held_out)):
            for spec in io.feed_inputs if source is not None else ():
                name = raw.get(spec.name, spec.name)
                if source is not None and name not in source.names:
                    self.unknown(("data", key), name, source.names, "array", f" for input '{spec.name}'")

    def against(self, stages: StageGraph, io: IOSpec) -> None:
        """Tells rules that match nothing or that no node can follow, sizes of no dimension, and wrong streams."""
        for number, rule in enumerate(self.recipe.quantize.rules):
            with self.told(("quantize", "rules", number)):
                ruled = find_ruled((rule,), stages)
                if rule.integer:
                    ruled.choices(possible(stages))
        symbols, places, inside = open_dimensions(stages, io)
        for number, one in enumerate(self.recipe.profiles if self.sound("inputs", "data") else ()):
            at: Loc = ("profiles", number) if isinstance(self.text.fields.get("profiles"), list) else ("profiles",)
            self.known(at, one, [*symbols, *places, *inside], "dynamic dimension")
        for name, section in self.recipe.inputs.items() if self.sound("inputs", "data") else ():
            for axis in section.ranges:
                if f"{name}:{axis}" not in places:
                    self.unknown(("inputs", name, "shape", axis), f"{name}:{axis}", places, "dynamic dimension")
        if not self.problems and not self.lost:
            with self.told(("stream",)):
                check_policy(self.recipe, io)
                check_rates(self.recipe, io)
                check_cuts(self.recipe, find_cuts(stages, io), io)
        modalities = ", ".join(io.modality_names())
        self.notes.append(f"modalities {modalities}; stages {', '.join(s.name for s in stages.stages)}")

    # -- problems ----------------------------------------------------------------------------------------------

    def known(self, loc: Loc, names: Iterable[str], known: Iterable[str], what: str) -> None:
        for name in names:
            if name not in known and not self.has((*loc, name)):
                self.unknown((*loc, name), name, known, what)

    def has(self, loc: Loc) -> bool:
        return any(p.field == dotted(loc) for p in self.problems)

    def unknown(self, loc: Loc, name: str, known: Iterable[str], what: str, why: str = "") -> None:
        names = list(dict.fromkeys(known))
        owner = "in these samples" if what == "array" else "in this model"
        message = f"there is no {what} '{name}'{why} {owner} (it has {', '.join(names) or 'none'})"
        hint = did_you_mean(name, names, "take it out, or give one of these names")
        self.problems.append(Problem(self.text.origin, dotted(loc), message, hint, self.text.place(loc, key=True)))

    @contextmanager
    def told(self, loc: Loc) -> Iterator[None]:
        """Turns an error into a problem; it is about `loc` unless its text says about what."""
        try:
            yield
        except EdgemmError as error:
            self.problems.append(self.located(error, loc)[0])

    def located(self, error: EdgemmError, otherwise: Loc) -> tuple[Problem, Loc]:
        """Returns the problem of an error, and the field that it is about."""
        message = str(error).rstrip(".")
        loc = otherwise
        begin = re.match(r"([a-z]\w*(?:\.[\w-]+)+):? ", message)
        if begin is not None and otherwise[:2] != ("quantize", "rules"):
            named = tuple(begin.group(1).split("."))
            loc = named if named in self.text.keys else loc
        elif begin is not None:
            message = message[begin.end() :]
        option = re.match(r"--(\w+) (\S+?)(?:=\S+)?: ", message)
        if option is not None:
            message = message[option.end() :]
        if loc == otherwise == ("stream",):
            loc = self.wish(message)
            message = re.sub(r"^stream: (\w+: )?", "", message)
        elif loc == otherwise and otherwise[:2] != ("quantize", "rules"):
            quoted = [option.group(2)] if option is not None else []
            quoted += re.findall(r"'([^']+)'", message)
            loc = next((found for name in quoted for found in self.spots(name)), loc)
        message = message.removeprefix(f"{dotted(loc)}: ")
        place = self.text.place(loc, key=loc[0] == "inputs" and len(loc) == 2)
        return Problem(self.text.origin, dotted(loc), message, error.hint, place), loc

    def wish(self, message: str) -> Loc:
        """Returns the field of `stream` or `missing` that a message about missing modalities is about."""
        names = re.findall(r"'([^']+)'", message)
        named = re.match(r"stream: (\w+)", message)
        for section in ("stream", "missing"):
            fields: Mapping[str, Any] = getattr(self.recipe, section).model_dump(exclude_none=True)
            for key, value in fields.items():
                if (named is None and key not in _ABOUT_MISSING) or (named and key != named.group(1)):
                    continue
                inner = value if isinstance(value, (Mapping, tuple)) else ()
                found = next((name for name in names if name in inner), None)
                if found is not None:
                    return (section, key, found if isinstance(inner, Mapping) else inner.index(found))
        return ("stream",) if named is None else ("stream", named.group(1))

    def spots(self, name: str) -> Iterator[Loc]:
        """Yields the fields about inputs, data and model that are called `name`, then those that say it."""

        def walk(value: Any, loc: Loc, called: bool) -> Iterator[Loc]:
            if loc[-1] == name if called else value == name:
                yield loc
            for key, inner in value.items() if isinstance(value, Mapping) else ():
                yield from walk(inner, (*loc, key), called)

        for called in (True, False):
            for section in ("inputs", "states", "evaluate", "data", "model"):
                for key, value in (self.text.fields.get(section) or {}).items():
                    yield from walk(value, (section, key), called)


def _as_saved(recipe: Recipe) -> Recipe:
    """Returns the recipe without preprocessing: its model takes what it was saved for."""
    none = {"preprocess": None, "bake": None, "source": None, "raw": None}
    return recipe.model_copy(update={"inputs": {k: v.model_copy(update=none) for k, v in recipe.inputs.items()}})
