"""Where two forms of a model part ways: outputs as they ship, and every tensor inside that both have by name.

Outputs come from the sessions that run on the device. Tensors inside are read from ONNX engines that run in ONNX
Runtime with those tensors as additional outputs; what it would fuse across them then runs unfused, so numbers
inside may differ in the last bits from those of the shipped engine.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.compare import OutputParity
from edgemm.data import Sample, Samples, Subset, make_feed, thinned
from edgemm.errors import DataError, did_you_mean
from edgemm.graph import load
from edgemm.metrics import is_classes
from edgemm.partition import Stage, StageGraph
from edgemm.partition.prepare import fill_shapes
from edgemm.quant.chain import Chain, Tap, filled
from edgemm.quant.collect import BUDGET, group_taps
from edgemm.quant.gains import Gains, moves_factors
from edgemm.quant.inner_tensors import InnerTensor, inner_tensors
from edgemm.runtime import FusionSession, open_session
from edgemm.tensors import IOSpec

SQNR_DB = 20.0
"""A tensor below this has lost a tenth of its amplitude to noise: it diverges."""

LAYER_SAMPLES = 64
"""Samples, spread evenly, that the tensors inside are compared on."""

RESCALED_DB = 6.0
"""So much nearer are tensors whose factors per channel are taken off, if they have any: half the error."""

WORST = 5

_PROBE = 64

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models.

    Attributes:
        path: Bundle or ONNX file.
        session: It, as it runs on the device.
        graph: Its engines as stages, for looking inside; None when an engine is no ONNX file.
        rescaled: Whether its plan multiplied tensors inside by factors per channel.
    """

    path: Path
    session: FusionSession
    graph: StageGraph | None
    rescaled: bool = False

    @property
    def label(self) -> str:
        """What messages call it."""
        name = self.session.variant.name
        return self.path.name if self.path.is_file() else f"{self.path.name}:{name}"


def open_side(path: Path, variant: str | None = None) -> Side:
    """Returns a bundle (its first variant, or the one named) or a bare ONNX file, opened.

    Raises:
        BundleError: No such bundle, file or variant, or a damaged one.
        BackendError: An engine does not open on this machine.
        MissingExtraError: The backend of the variant is not installed.
    """
    session = open_session(path, variant=variant, cache="off")
    files = [path if path.is_file() else path / e.file for e in session.variant.engines]
    if any(file.suffix != ".onnx" for file in files):
        return Side(path, session, None)
    stages = []
    for entry, file in zip(session.variant.engines, files, strict=True):
        model = load(file)
        fill_shapes(model)
        stages.append(Stage(entry.name, (), "engine", (), (), model, len(model.graph), 0))
    rescaled = path.is_dir() and moves_factors(path, session.manifest, session.variant.target)
    return Side(path, session, StageGraph(tuple(stages), (), ()), rescaled)


@dataclass(frozen=True, slots=True)
class Layer:
    """A tensor that both models have, compared.

    Attributes:
        tensor: Its name.
        op: Operator that makes it in A; `"input"` for a model input that one side quantizes.
        engines: Engine in A, engine in B.
        parity: The difference.
        gains: Factors per channel from A to B, where a plan moved such factors; else None.
    """

    tensor: str
    op: str
    engines: tuple[str, str]
    parity: OutputParity
    gains: Gains | None = None

    def add(self, a: np.ndarray, b: np.ndarray, sample: int) -> None:
        """Adds one sample's values."""
        self.parity.add(a, b, sample)
        if self.gains is not None:
            self.gains.add(a, b)

    @property
    def sqnr_db(self) -> float:
        """SQNR in dB; of a tensor that a plan multiplied per channel, without these factors."""
        return max(self.parity.sqnr_db, self.gains.sqnr_db if self.gains is not None else -math.inf)

    @property
    def rescaled(self) -> bool:
        """Whether factors per channel explain most of the difference."""
        return self.sqnr_db > self.parity.sqnr_db + RESCALED_DB


@dataclass(slots=True)
class Output:
    """One output, compared over all samples."""

    parity: OutputParity = field(default_factory=OutputParity)
    classes: bool = False
    equal: int = 0
    decided: int = 0
    worst: list[tuple[float, int, float]] = field(default_factory=list)

    def add(self, a: np.ndarray, b: np.ndarray, sample: int) -> None:
        """Adds one sample's values."""
        self.parity.add(a, b, sample)
        own = OutputParity()
        own.add(a, b, sample)
        heapq.heappush(self.worst, (own.max_abs, -sample, own.min_cosine))
        if len(self.worst) > WORST:
            heapq.heappop(self.worst)
        if not self.classes or a.shape != b.shape or a.size == 0:
            return
        same = a == b if a.dtype.kind in "iub" else a.argmax(-1) == b.argmax(-1)
        self.equal += int(np.sum(same))
        self.decided += int(np.size(same))

    @property
    def agreement(self) -> float | None:
        """Share of equal classes (argmax of scores, or integers); None for outputs that are no classes."""
        return self.equal / self.decided if self.decided else None

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers, with the worst samples first."""
        worst = sorted(self.worst, reverse=True)
        return {
            **_numbers(self.parity),
            "agreement": self.agreement,
            "samples": self.parity.samples,
            "worst": [{"sample": -s, "max_abs": m, "cosine": c} for m, s, c in worst],
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """How far B is from A.

    Attributes:
        outputs: Output name -> its comparison, for outputs that both have.
        layers: Tensors that both have, in A's order of computation.
        threshold: SQNR in dB below which a tensor diverges.
        layer_samples: Samples that `layers` is over.
        notes: What could not be compared, and why.
    """

    outputs: Mapping[str, Output]
    layers: tuple[Layer, ...]
    threshold: float
    layer_samples: int
    notes: tuple[str, ...]

    @property
    def first_diverging(self) -> Layer | None:
        """The first tensor, in A's order of computation, whose SQNR is below the threshold."""
        return next((x for x in self.layers if x.sqnr_db < self.threshold), None)

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict."""
        first = self.first_diverging
        return {
            "outputs": {name: o.to_json() for name, o in self.outputs.items()},
            "layers": [_layer_json(x) for x in self.layers],
            "layer_samples": self.layer_samples,
            "threshold_db": self.threshold,
            "first_diverging": None if first is None else _layer_json(first),
            "notes": list(self.notes),
        }


def _numbers(parity: OutputParity) -> dict[str, Any]:
    """Returns the measures; the SQNR of equal tensors is infinite, which is null in JSON with `equal` true."""
    return {
        "sqnr_db": parity.sqnr_db,
        "cosine": parity.min_cosine,
        "max_abs": parity.max_abs,
        "equal": parity.max_abs == 0.0,
    }


def _layer_json(layer: Layer) -> dict[str, Any]:
    return {
        "tensor": layer.tensor,
        "op": layer.op,
        "engine_a": layer.engines[0],
        "engine_b": layer.engines[1],
        **_numbers(layer.parity),
        "sqnr_db": layer.sqnr_db,
        "rescaled": layer.rescaled,
        "worst_sample": layer.parity.worst_sample,
    }


def compare_sides(
    a: Side,
    b: Side,
    samples: Samples,
    *,
    threshold: float = SQNR_DB,
    layer_samples: int = LAYER_SAMPLES,
    progress: Progress | None = None,
) -> Difference:
    """Returns how far `b` is from `a` on `samples`, in constant memory.

    Args:
        a: The reference.
        b: What is held against it.
        samples: One array per input of each model. Models with states run them in order.
        threshold: SQNR in dB below which a tensor diverges.
        layer_samples: At most this many samples for the tensors inside; 0 compares outputs only. With states
            the first ones are taken, otherwise they are spread evenly.
        progress: Called with (`"outputs"` or `"layers"`, done, total).

    Raises:
        DataError: No samples, an array that an input needs is missing, or no output of the same name.
        BackendError: An engine fails on a sample; the message names it.
    """
    if len(samples) == 0:
        raise DataError("no samples to compare on.", hint="the data needs at least one row in every array")
    tell = progress or (lambda step, done, total: None)
    names, notes = _shared_outputs(a, b)
    outputs = _compare_outputs(a, b, names, samples, tell)
    layers: tuple[Layer, ...] = ()
    few = _few(samples, layer_samples, bool(a.session.io.states or b.session.io.states))
    if layer_samples:
        closed = [side.label for side in (a, b) if side.graph is None]
        if closed:
            notes.append(f"{' and '.join(closed)}: engines that are no ONNX files; only the outputs are compared")
        else:
            layers = _compare_layers(a, b, few, tell)
            if not layers:
                notes.append("no tensor inside has the same name in both; only the outputs are compared")
    return Difference(outputs, layers, threshold, len(few) if layers else 0, tuple(notes))


def _shared_outputs(a: Side, b: Side) -> tuple[tuple[str, ...], list[str]]:
    ours, theirs = ([o.name for o in side.session.io.result_outputs] for side in (a, b))
    shared = tuple(name for name in ours if name in theirs)
    if not shared:
        raise DataError(
            f"{a.label} gives {', '.join(ours)}, {b.label} gives {', '.join(theirs)}: no output of the same name.",
            hint="compare two forms of one model; rename the outputs of the ONNX file if they mean the same",
        )
    notes = []
    for side, own in ((a, ours), (b, theirs)):
        alone = [name for name in own if name not in shared]
        if alone:
            notes.append(f"only {side.label} gives {', '.join(alone)}")
    return shared, notes


def _few(samples: Samples, count: int, in_order: bool) -> Samples:
    if in_order:
        return Subset(samples, tuple(range(min(count, len(samples)))))
    return thinned(samples, count)


def _compare_outputs(
    a: Side, b: Side, names: Sequence[str], samples: Samples, tell: Progress
) -> dict[str, Output]:
    outputs = {name: Output() for name in names}
    for side in (a, b):
        side.session.reset_state()
    for index in range(len(samples)):
        sample = samples[index]
        x, y = (side.session.run(_feed(side, sample)) for side in (a, b))
        for name in names:
            if index == 0:
                outputs[name].classes = is_classes(x[name])
            if x[name].shape != y[name].shape:
                raise DataError(
                    f"output '{name}': {a.label} gives the shape {x[name].shape}, {b.label} {y[name].shape}.",
                    hint="compare two forms of one model",
                )
            outputs[name].add(x[name], y[name], index)
        tell("outputs", index + 1, len(samples))
    return outputs


def _feed(side: Side, sample: Sample) -> dict[str, np.ndarray]:
    io = side.session.io
    missing = [i.name for i in io.feed_inputs if i.name not in sample]
    if missing:
        raise DataError(
            f"{side.label} takes '{missing[0]}', and the data has no such array (arrays: {', '.join(sample)}).",
            hint=did_you_mean(missing[0], sorted(sample), "add it to the data; a state of a bare ONNX file too"),
        )
    return make_feed(io, [sample])


def _made(side: Side, sample: Sample) -> dict[str, np.ndarray]:
    """Returns what the graph takes of a sample: steps on the host have run."""
    feed = _feed(side, sample)
    return feed if side.session.raw is None else side.session.raw(feed)


def _compare_layers(a: Side, b: Side, samples: Samples, tell: Progress) -> tuple[Layer, ...]:
    assert a.graph is not None
    assert b.graph is not None
    ours, theirs = inner_tensors(a.graph), inner_tensors(b.graph)
    pairs: dict[str, tuple[InnerTensor, InnerTensor]] = {}
    for name, mine in ours.items():
        other = theirs.get(name)
        if other is None or not (mine.is_float or other.is_float):
            continue
        if mine.op == "input" and mine.tap[1] == other.tap[1] == name:
            continue  # the same numbers went in
        pairs[name] = mine, other
    groups = list(_groups(a, b, pairs, samples))
    moved = a.rescaled != b.rescaled
    layers = {
        name: Layer(name, mine.op, (mine.tap[0], other.tap[0]), OutputParity(), Gains() if moved else None)
        for name, (mine, other) in pairs.items()
    }
    total, done = len(groups) * len(samples), 0
    for group in groups:
        chains = _chains(a, b, [pairs[name] for name in group])
        for index in range(len(samples)):
            x, y = (
                _watch(chain, side.session.manifest.io, _made(side, samples[index]))
                for chain, side in zip(chains, (a, b), strict=True)
            )
            for name in group:
                mine, other = pairs[name]
                layers[name].add(x[mine.tap], y[other.tap], _source_index(samples, index))
            done += 1
            tell("layers", done, total)
    return tuple(layers.values())


def _source_index(samples: Samples, index: int) -> int:
    return samples.indices[index] if isinstance(samples, Subset) else index


def _chains(a: Side, b: Side, pairs: Sequence[tuple[InnerTensor, InnerTensor]]) -> tuple[Chain, Chain]:
    assert a.graph is not None
    assert b.graph is not None
    return (
        Chain(a.graph, a.session.manifest.io, [mine.tap for mine, _ in pairs]),
        Chain(b.graph, b.session.manifest.io, [other.tap for _, other in pairs]),
    )


def _watch(chain: Chain, io: IOSpec, feed: Mapping[str, np.ndarray]) -> dict[Tap, np.ndarray]:
    """Returns the tapped tensors of one sample; a fixed batch is filled with it, and its first row counts."""
    size = io.batch
    if not isinstance(size, int) or size == 1:
        return dict(chain.taps(feed))
    taps = chain.taps(filled(feed, io))
    return {t: v[: len(v) // size] if v.ndim and len(v) % size == 0 else v for t, v in taps}


def _groups(
    a: Side, b: Side, pairs: Mapping[str, tuple[InnerTensor, InnerTensor]], samples: Samples
) -> Iterator[list[str]]:
    """Yields names in groups whose values fit the budget, measured on one sample, a few tensors at a time."""
    names = list(pairs)
    sizes: dict[Tap, int] = {}
    back: dict[Tap, str] = {pairs[name][0].tap: name for name in names}
    for start in range(0, len(names), _PROBE):
        part = names[start : start + _PROBE]
        chain, _ = _chains(a, b, [pairs[name] for name in part])
        found = _watch(chain, a.session.manifest.io, _made(a, samples[0]))
        sizes |= {pairs[name][0].tap: max(1, 2 * found[pairs[name][0].tap].nbytes) for name in part}
    for group in group_taps(sizes, BUDGET) if sizes else ():
        yield [back[tap] for tap in group]
