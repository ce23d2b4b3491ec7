"""Other heads for a bundle: trained models that take what some encoders give, for sets that lack the others.

A head is trained by whoever trained the model, on what its encoders give: on the tensors where the stages are cut.
It is exported as the model was, and ships in float. A plan whose repairs change what the encoders give has no use
for it, and does not get it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.backends import get_backend
from edgemm.bundle import HeadEntry
from edgemm.data import Samples, open_samples, thinned
from edgemm.errors import DataError, ExportError, RecipeError, did_you_mean
from edgemm.graph import ExportedGraph
from edgemm.pipeline.exporting import export
from edgemm.pipeline.missing import Cut, Encoders
from edgemm.pipeline.progress import Clock, Silent
from edgemm.recipe import Recipe
from edgemm.recipe.schema import ModelSection
from edgemm.rewrite.pipeline import rewrite
from edgemm.tensors import IOSpec, TensorSpec

BACKEND = "onnxruntime"
"""What runs heads."""

SAMPLES = 32
"""Calibration samples whose embeddings a head is exported and checked with."""

MOVED = 0.25
"""Relative difference of embeddings from which a variant's encoders do not give what a head was trained on."""

Embeddings = Mapping[str, np.ndarray]
"""Tensor at a cut -> [samples, ...]."""


def embed(io: IOSpec, cuts: Iterable[Cut], encoders: Encoders, samples: Samples) -> dict[str, np.ndarray]:
    """Returns what the encoders give at their cuts for a few samples; what has other sizes in each is left out."""
    few = thinned(samples, SAMPLES)
    found: dict[str, np.ndarray] = {}
    for cut in cuts:
        parts = list(encoders.rows(cut, few)) if encoders.has(cut) else []
        for name in parts[0] if parts else ():
            if len({part[name].shape[1:] for part in parts}) == 1:
                found[name] = np.concatenate([part[name] for part in parts])
    return found


def make_head(
    name: str, model: Path, io: IOSpec, cuts: Mapping[str, Cut], given: Embeddings, folder: Path
) -> HeadEntry:
    """Returns the entry of a head, for no variant yet, whose engine is in `folder`, exported and loaded once.

    Args:
        name: What streams call it.
        model: A trained model file, as `edgemm convert` takes one.
        io: Of the fused model.
        cuts: Modality -> where it enters what it shares with others.
        given: Embeddings of the float encoders.
        folder: Where engines are, as in a bundle.

    Raises:
        RecipeError: It takes or gives something else than tensors of the model.
        EdgemmError: It does not load or export.
    """
    path = _file_of(name)
    file = folder / path
    file.parent.mkdir(exist_ok=True)
    ends = {cut.modality: (*cut.given, *cut.direct) for cut in cuts.values()}
    aliases = {modality: tensors[0].name for modality, tensors in ends.items() if len(tensors) == 1}
    owners = {t.name: cut.modality for cut in cuts.values() for t in (*cut.given, *cut.direct)}
    specs = {t.name: t for cut in cuts.values() for t in (*cut.given, *cut.direct)}
    source = None
    if specs.keys() <= given.keys():
        samples = file.with_suffix(".npz")
        arrays: dict[str, Any] = {**given, **{m: given[tensor] for m, tensor in aliases.items()}}
        np.savez(samples, **arrays)
        source = open_samples(str(samples))
    try:
        found = export(Recipe(model=ModelSection(path=model)), source, file.parent, Silent(), Clock())
    except (DataError, ExportError) as error:
        raise RecipeError(f"head '{name}': {error}", hint=error.hint) from error
    graph, _ = rewrite(found.graph)
    inputs = [_match(name, spec, specs, aliases) for spec in graph.io.inputs]
    outputs = _results(name, graph.io, io)
    _rename(graph, [*inputs, *outputs])
    get_backend(BACKEND).build(graph.model, "cpu", file)
    modalities = tuple(m for m in io.modality_names() if m in {owners[i] for i in inputs})
    return HeadEntry(name, modalities, path, tuple(inputs), tuple(outputs), BACKEND, ())


def _file_of(name: str) -> str:
    """Returns where a head is in a bundle: another file for every name, on whatever file system."""
    plain = re.sub(r"[^a-z0-9_.-]", "_", name.lower())
    mark = "" if plain == name else f"-{sha256(name.encode()).hexdigest()[:8]}"
    return f"heads/{plain}{mark}.onnx"


def fits(entry: HeadEntry, own: Embeddings, given: Embeddings) -> bool:
    """Returns whether the encoders of a variant give what the head was trained on.

    Args:
        entry: The head's.
        own: Embeddings of the variant; one that is not among them has no engine of its own.
        given: Those of the float encoders, of the same samples.
    """
    return all(name in own and _distance(own[name], given[name]) <= MOVED for name in entry.inputs)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    norm = float(np.linalg.norm(b.astype(np.float64)))
    return float(np.linalg.norm(a.astype(np.float64) - b)) / norm if norm else float(np.any(a != b))


def _match(name: str, spec: TensorSpec, specs: Mapping[str, TensorSpec], aliases: Mapping[str, str]) -> str:
    """Returns the tensor at a cut that an input of a head is called after."""
    wanted = specs.get(spec.name) or specs.get(aliases.get(spec.name, ""))
    known = [*specs, *aliases]
    if wanted is None:
        raise RecipeError(
            f"head '{name}': its input '{spec.name}' is nothing that an encoder gives ({', '.join(known)}).",
            hint=did_you_mean(spec.name, known, "name its inputs after modalities"),
        )
    fixed = zip(spec.shape, wanted.shape, strict=False)
    if (spec.dtype, len(spec.shape)) != (wanted.dtype, len(wanted.shape)) or any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in fixed
    ):
        raise RecipeError(
            f"head '{name}': its input is {spec}, the encoder gives {wanted}.",
            hint="train the head on what this model's encoders give; export it with a dynamic batch",
        )
    return wanted.name


def _results(name: str, own: IOSpec, io: IOSpec) -> list[str]:
    """Returns the results of the model in the order of the head's outputs: by name, else by position."""
    given, wanted = own.outputs, {o.name: o for o in io.result_outputs}
    names = [o.name for o in given] if {o.name for o in given} == set(wanted) else list(wanted)
    if len(given) != len(wanted):
        raise RecipeError(
            f"head '{name}' gives {len(given)} results ({', '.join(o.name for o in given)}), "
            f"the model {len(wanted)} ({', '.join(wanted)}).",
            hint="a head gives every result of the model",
        )
    for spec, result in zip(given, names, strict=True):
        expected = wanted[result]
        if (spec.dtype, spec.shape[1:]) != (expected.dtype, expected.shape[1:]):
            raise RecipeError(
                f"head '{name}' gives {spec}, the model {expected}.", hint="a head gives what the model gives"
            )
    return names


def _rename(graph: ExportedGraph, names: Sequence[str]) -> None:
    """Calls the inputs and outputs of a graph by these names."""
    inner = graph.model.graph
    ends = [*inner.inputs, *inner.outputs]
    wanted = dict(zip(map(id, ends), names, strict=True))
    for number, value in enumerate(v for node in inner for v in node.outputs if id(v) not in wanted):
        if value.name in names:
            value.name = f"{value.name}_inside_{number}"
    for value in ends:
        value.name = wanted[id(value)]
