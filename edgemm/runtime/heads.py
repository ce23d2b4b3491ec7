"""Other heads of a model: a bundle may hold one for sets that lack a modality, in the place of the fusion head.

A head takes what the encoders of some modalities give, and gives the results of the model. When one of the others
has no sample, its encoder and the fusion head do not run, and that head does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.bundle import HeadEntry, Manifest, Variant
from edgemm.errors import BundleError, DataError
from edgemm.runtime.chain import fetched
from edgemm.runtime.registry import session_class
from edgemm.runtime.schedule import find_levels
from edgemm.runtime.session import EngineSession, SessionOptions

HEAD = "head"
"""The fill `head:NAME`."""

NOTHING = np.zeros(0, np.float32)
"""What an engine gives that does not run, and whose outputs nobody reads."""


def head_name(fill: object) -> str | None:
    """Returns `"NAME"` of the fill `"head:NAME"`, None of any other."""
    kind, colon, name = fill.partition(":") if isinstance(fill, str) else ("", "", "")
    return name if colon and kind == HEAD else None


@dataclass(frozen=True, slots=True)
class OpenHead:
    """A head that runs.

    Attributes:
        entry: As the manifest has it.
        engine: What runs it: its inputs and outputs are those of the entry.
    """

    entry: HeadEntry
    engine: EngineSession

    def __call__(self, values: Mapping[str, Any], names: Sequence[str]) -> tuple[np.ndarray, ...]:
        """Returns the tensors `names` of what the head gives for `values`; nothing for what it does not give."""
        given = {name: np.ascontiguousarray(fetched(values[name])) for name in self.entry.inputs}
        found = dict(zip(self.entry.outputs, self.engine.run(given), strict=True))
        return tuple(found.get(name, NOTHING) for name in names)


def open_heads(
    folder: Path, manifest: Manifest, variant: Variant, options: SessionOptions
) -> tuple[dict[str, OpenHead], tuple[EngineSession, ...]]:
    """Returns the heads of a bundle that fit a variant by name, and their engines, which the caller closes.

    Raises:
        EdgemmError: An engine does not open.
        BundleError: It takes or gives something else than the manifest says.
    """
    heads: dict[str, OpenHead] = {}
    engines: list[EngineSession] = []
    try:
        for entry in manifest.heads:
            if variant.name not in entry.variants:
                continue
            engine = session_class(entry.backend)(folder / entry.file, options)
            engines.append(engine)
            for kind, own, said in (
                ("takes", engine.inputs, entry.inputs),
                ("gives", engine.outputs, entry.outputs),
            ):
                if (names := [t.name for t in own]) != list(said):
                    raise BundleError(
                        f"head '{entry.name}' {kind} {', '.join(names)}; the manifest says {', '.join(said)}.",
                        hint="the bundle was put together wrongly; convert the model again",
                    )
            heads[entry.name] = OpenHead(entry, engine)
    except BaseException:
        for engine in engines:
            engine.close()
        raise
    return heads, tuple(engines)


Instead = Mapping[str, Mapping[str, np.ndarray] | OpenHead]
"""Engine that does not run -> its outputs, or the head that gives them."""


def place_head(manifest: Manifest, variant: Variant, head: OpenHead, modality: str) -> Instead | None:
    """Returns what becomes of the engines behind `modality` when it lacks; None where the head cannot stand in.

    None of them runs: those that give results have the head's. All other engines run as ever.
    """
    lost = {name for name, of in manifest.io.modalities.items() if of == modality}
    results = {o.name for o in manifest.io.result_outputs}
    found: dict[str, Mapping[str, np.ndarray] | OpenHead] = {}
    for engine in variant.engines:
        if lost & set(engine.inputs):
            lost |= set(engine.outputs)
            found[engine.name] = head if results & set(engine.outputs) else dict.fromkeys(engine.outputs, NOTHING)
    if lost & set(head.entry.inputs):
        return None
    levels = {at: level for level, of in enumerate(find_levels(variant.engines)) for at in of}
    read = [levels[at] for at, e in enumerate(variant.engines) if set(e.outputs) & set(head.entry.inputs)]
    giving = [levels[at] for at, e in enumerate(variant.engines) if found.get(e.name) is head]
    return found if giving and max(read, default=-1) < min(giving) else None


def choose_head(fills: Mapping[str, str], heads: Mapping[str, OpenHead]) -> str | None:
    """Returns the head for a set that lacks modalities whose fills are heads; None where it lacks none of these.

    Args:
        fills: Modality that lacks -> its fill.
        heads: Of the bundle.

    Raises:
        DataError: Every one of these heads reads a modality that lacks.
    """
    wanted = {m: name for m, fill in fills.items() if (name := head_name(fill)) is not None}
    for name in dict.fromkeys(wanted.values()):
        if not wanted.keys() & set(heads[name].entry.modalities):
            return name
    if not wanted:
        return None
    raise DataError(
        f"no head for a set without {', '.join(wanted)}: {', '.join(dict.fromkeys(wanted.values()))} "
        "read a modality that lacks.",
        hint="convert with a head that takes the others alone, or fill one of them in another way",
    )
