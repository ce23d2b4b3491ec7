"""Does a manifest make sense? Names that repeat, engines whose inputs nobody gives, paths that lead out."""

from __future__ import annotations

from collections.abc import Iterable

from edgemm.bundle.manifest import CACHE, MANIFEST, EngineEntry, HeadEntry, Manifest, StandIn, Variant
from edgemm.errors import BundleError

MAX_FILES = 10_000
"""Most files that a bundle may hold."""

ENGINE_OPTIONS: dict[str, type] = {
    "threads": int,
    "precision": str,
    "module": str,
    "profiles": list,
    "precisions": list,
    "build": dict,
}
"""What an engine may ask for when it is opened; from `module` on, of a graph that TensorRT builds one from."""

_EXPECTED = {
    int: "a number of threads, 0 or more",
    str: "a word",
    list: "a list",
    dict: "options of the builder by name",
}

_HINT = "the bundle was put together wrongly; convert the model again"


def check_consistent(manifest: Manifest) -> None:
    """Checks that every name in the manifest refers to something and that the engines can be chained.

    Raises:
        BundleError: With the stage, variant or engine that does not fit.
    """
    io = manifest.io
    _check_unique("input", (i.name for i in io.inputs))
    _check_unique("output", (o.name for o in io.outputs))
    _check_unique("stage", (s.name for s in manifest.stages))
    _check_unique("variant", (v.name for v in manifest.variants))
    inputs, outputs = {i.name for i in io.inputs}, {o.name for o in io.outputs}
    for state in io.states:
        if state.input not in inputs or state.output not in outputs:
            raise BundleError(
                f"manifest: the state '{state.input}' from '{state.output}' names no input and output.", hint=_HINT
            )
    for spec in io.feed_inputs:
        if spec.name not in io.modalities:
            raise BundleError(f"manifest: the input '{spec.name}' has no modality.", hint=_HINT)
    for name in manifest.files:
        check_path(name)
    if len(manifest.files) > MAX_FILES:
        raise BundleError(
            f"manifest: {len(manifest.files)} files; a bundle holds at most {MAX_FILES}.", hint=_HINT
        )
    if not manifest.shipped:
        raise BundleError("manifest: no variant has engines.", hint=_HINT)
    for variant in manifest.shipped:
        _check_variant(manifest, variant)
    for stand_in in manifest.stand_ins:
        _check_stand_in(manifest, stand_in)
    _check_unique("head", (h.name for h in manifest.heads))
    for head in manifest.heads:
        _check_head(manifest, head)


def _check_variant(manifest: Manifest, variant: Variant) -> None:
    stages = {s.name for s in manifest.stages}
    known = {i.name for i in manifest.io.inputs}
    _check_unique(f"engine of variant '{variant.name}'", (e.name for e in variant.engines))
    for engine in variant.engines:
        where = f"variant '{variant.name}', engine '{engine.name}'"
        if engine.file not in manifest.files:
            raise BundleError(f"{where}: its file '{engine.file}' is not in the bundle.", hint=_HINT)
        if strange := [s for s in engine.stages if s not in stages]:
            raise BundleError(f"{where}: there is no stage '{strange[0]}'.", hint=_HINT)
        if lacking := [i for i in engine.inputs if i not in known]:
            raise BundleError(f"{where}: no input and no engine before it gives '{lacking[0]}'.", hint=_HINT)
        _check_options(engine, where)
        known.update(engine.outputs)
    backends = "+".join(sorted({e.backend for e in variant.engines}))
    if backends != variant.backend:
        raise BundleError(
            f"variant '{variant.name}': its backend is '{variant.backend}', its engines have '{backends}'.",
            hint=_HINT,
        )
    if variant.reuse and (len(variant.engines) != 1 or not _has_stages(manifest, variant)):
        raise BundleError(
            f"variant '{variant.name}': no variant '{variant.reuse}' for '{variant.target}' can run its stages.",
            hint=_HINT,
        )
    if lacking := [o.name for o in manifest.io.outputs if o.name not in known]:
        raise BundleError(f"variant '{variant.name}': no engine gives the output '{lacking[0]}'.", hint=_HINT)


def _has_stages(manifest: Manifest, variant: Variant) -> bool:
    """Returns whether what `variant.reuse` names can run in its place."""
    found = (v for v in manifest.shipped if v.name == variant.reuse and v is not variant)
    return any(v.target == variant.target and not v.reuse for v in found)


def _check_stand_in(manifest: Manifest, stand_in: StandIn) -> None:
    where = f"stand-in '{stand_in.fill}' of '{stand_in.modality}'"
    if stand_in.modality not in manifest.io.modality_names():
        raise BundleError(f"{where}: there is no such modality.", hint=_HINT)
    if stand_in.variant and stand_in.variant not in {v.name for v in manifest.variants}:
        raise BundleError(f"{where}: there is no variant '{stand_in.variant}'.", hint=_HINT)
    known = {i.name for i in manifest.io.inputs} | {o.name for s in manifest.stages for o in s.outputs}
    for name, entry in stand_in.arrays.items():
        if name not in known:
            raise BundleError(f"{where}: there is no tensor '{name}'.", hint=_HINT)
        if isinstance(entry, str) and entry not in manifest.files:
            raise BundleError(f"{where}: its file '{entry}' is not in the bundle.", hint=_HINT)


def _check_head(manifest: Manifest, head: HeadEntry) -> None:
    known = {i.name for i in manifest.io.inputs} | {o.name for s in manifest.stages for o in s.outputs}
    for what, names, there in (
        ("modality", head.modalities, set(manifest.io.modality_names())),
        ("variant", head.variants, {v.name for v in manifest.variants}),
        ("tensor", head.inputs, known),
        ("file", (head.file,), manifest.files),
    ):
        if strange := [name for name in names if name not in there]:
            raise BundleError(f"head '{head.name}': there is no {what} '{strange[0]}'.", hint=_HINT)
    if lacking := [o.name for o in manifest.io.result_outputs if o.name not in head.outputs]:
        raise BundleError(f"head '{head.name}': it does not give the output '{lacking[0]}'.", hint=_HINT)


def _check_options(engine: EngineEntry, where: str) -> None:
    """Refuses options that this version does not know: an engine opened without them may answer otherwise."""
    for name, value in engine.options.items():
        if name not in ENGINE_OPTIONS:
            raise BundleError(
                f"{where}: there is no option '{name}' (options: {', '.join(ENGINE_OPTIONS)}).",
                hint="made by a newer edgemm? update edgemm on this device: pip install --upgrade edgemm",
            )
        kind = ENGINE_OPTIONS[name]
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            expected = _EXPECTED[kind]
            raise BundleError(f"{where}: the option '{name}' is {value!r:.60}, expected {expected}.", hint=_HINT)


def check_path(name: str) -> None:
    """Checks that `name` is a plain relative path below the bundle, the same on every system.

    Raises:
        BundleError: Absolute, `..`, a backslash, a control character, the manifest's own name, or in the cache.
    """
    reason = None
    if name.startswith("/"):
        reason = "is absolute"
    elif any(part in ("", ".", "..") for part in name.split("/")):
        reason = "has an empty, '.' or '..' part"
    elif "\\" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        reason = "has a backslash or a control character"
    elif name == MANIFEST:
        reason = "is the manifest itself"
    elif name.split("/")[0] == CACHE:
        reason = f"lies in '{CACHE}', which is not verified"
    if reason:
        raise BundleError(
            f"manifest: the file name {name!r} {reason}.",
            hint="a bundle only names files below its own folder; do not use this one",
        )


def _check_unique(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BundleError(f"manifest: there are two {kind}s called '{name}'.", hint=_HINT)
        seen.add(name)
