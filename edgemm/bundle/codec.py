"""The manifest as JSON and back. What is read is untrusted: every key and type is checked here, once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from edgemm.bundle.manifest import FORMAT, SCHEMA, EngineEntry, HeadEntry, Manifest, StageEntry, StandIn, Variant
from edgemm.bundle.schedule import Schedule
from edgemm.errors import BundleError
from edgemm.tensors import IOSpec, StateSpec, TensorSpec

T = TypeVar("T")

DAMAGED = "the bundle is damaged or was edited; copy it again, or convert the model again"

MAX_DEPTH = 64
"""Deepest nesting of a manifest's values."""

_KINDS: dict[type, str] = {str: "a string", int: "a whole number", dict: "an object", list: "a list"}


def dumps(manifest: Manifest) -> bytes:
    """Returns the manifest as the bytes of `manifest.json`: UTF-8, one value per line, deterministic.

    Raises:
        BundleError: A value is not JSON.
    """
    try:
        text = json.dumps(manifest_to_json(manifest), ensure_ascii=False, indent=1, allow_nan=False)
        return text.encode() + b"\n"
    except UnicodeEncodeError as error:
        raise BundleError(
            f"the manifest holds text that is not Unicode: {error.object[error.start : error.end]!r}.",
            hint="rename the file, input or stage that has this character in its name",
        ) from error


def loads(text: bytes, where: str) -> Manifest:
    """Returns the manifest in `text`; `where` names the file in errors.

    Raises:
        BundleError: No JSON, a duplicate key, a newer schema, a missing key or a value of the wrong type.
    """
    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(data, ensure_ascii=False).encode()  # refuses lone surrogates hidden in \u escapes
    except RecursionError as error:
        raise BundleError(f"{where}: nested too deeply for a manifest.", hint=DAMAGED) from error
    except ValueError as error:  # JSONDecodeError and UnicodeError are ValueErrors
        raise BundleError(f"{where}: not a manifest ({error}).", hint=DAMAGED) from error
    try:
        return manifest_from_json(data)
    except BundleError as error:
        raise BundleError(f"{where}: {error}", hint=error.hint) from error


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """Returns `manifest` as plain JSON values, keys in reading order, free-form parts sorted by key."""
    stream = plain(manifest.stream, "stream")
    stand_ins = [_stand_in_to_json(s) for s in manifest.stand_ins]
    preprocess = [plain(p, "preprocess", ordered=True) for p in manifest.preprocess]
    return {
        "format": FORMAT,
        "schema": manifest.schema,
        "name": manifest.name,
        "io": plain(manifest.io.to_json(), "io", ordered=True),
        "stages": [_stage_to_json(s) for s in manifest.stages],
        "joins": [plain(j, "joins") for j in manifest.joins],
        "variants": [_variant_to_json(v) for v in manifest.variants],
        **({"stream": stream} if stream else {}),
        **({"stand_ins": stand_ins} if stand_ins else {}),
        **({"heads": [_head_to_json(h) for h in manifest.heads]} if manifest.heads else {}),
        **({"preprocess": preprocess} if preprocess else {}),
        **({"least": plain(manifest.least, "least")} if manifest.least else {}),
        "info": plain(manifest.info, "info"),
        "files": plain(manifest.files, "files"),
        "measured": plain(manifest.measured, "measured"),
    }


def manifest_from_json(data: object) -> Manifest:
    """Returns the manifest in `data`, checked key by key.

    Raises:
        BundleError: A newer schema, a missing key or a value of the wrong type.
    """
    top = _kind(data, dict, "manifest")
    if top.get("format") != FORMAT:
        raise BundleError(
            f"format is {top.get('format')!r}, expected {FORMAT!r}.", hint="this is not an edgemm bundle"
        )
    schema = _get(top, "schema", int, "")
    if schema > SCHEMA:
        raise BundleError(
            f"made by a newer edgemm, schema {schema}; this is {SCHEMA}.",
            hint="update edgemm on this device: pip install --upgrade edgemm",
        )
    if schema < 1:
        raise BundleError(f"schema {schema} does not exist; this edgemm reads 1 to {SCHEMA}.", hint=DAMAGED)
    return Manifest(
        name=_get(top, "name", str, ""),
        io=_io_from_json(_get(top, "io", dict, "")),
        stages=_each(top, "stages", "", _stage_from_json),
        joins=_each(top, "joins", "", lambda value, where: _kind(value, dict, where)),
        variants=_each(top, "variants", "", _variant_from_json),
        info=_get(top, "info", dict, ""),
        measured=_get(top, "measured", dict, ""),
        files=_files_from_json(_get(top, "files", dict, "")),
        schema=schema,
        stream=_get(top, "stream", dict, "") if "stream" in top else {},
        stand_ins=_each(top, "stand_ins", "", _stand_in_from_json) if "stand_ins" in top else (),
        heads=_each(top, "heads", "", _head_from_json) if "heads" in top else (),
        preprocess=_each(top, "preprocess", "", lambda value, where: _kind(value, dict, where))
        if "preprocess" in top
        else (),
        least=_least_from_json(_get(top, "least", dict, "")) if "least" in top else {},
    )


def plain(value: object, where: str, *, ordered: bool = False, depth: int = 0) -> Any:
    """Returns `value` as JSON values: tuples become lists, numpy scalars Python's, mappings sorted by key.

    Raises:
        BundleError: NaN, infinity, a key that is no string, or any other type; `where` says where it is.
    """
    if depth > MAX_DEPTH:
        raise BundleError(f"manifest: '{where}' is nested too deeply.", hint="give flatter values")
    if isinstance(value, (np.floating, np.integer, np.bool_)):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BundleError(f"manifest: '{where}' is {value}, which JSON cannot hold.", hint="use None instead")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise BundleError(f"manifest: '{where}' has the key {key!r}.", hint="use strings as keys")
        keys = list(value) if ordered else sorted(value)
        return {k: plain(value[k], f"{where}.{k}", ordered=ordered, depth=depth + 1) for k in keys}
    if isinstance(value, (list, tuple)):
        return [plain(v, f"{where}[{i}]", ordered=ordered, depth=depth + 1) for i, v in enumerate(value)]
    raise BundleError(
        f"manifest: '{where}' is a {type(value).__name__}, expected numbers, strings, lists or mappings.",
        hint="convert it before writing the bundle",
    )


def _tensors_to_json(tensors: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    return [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in tensors]


def _stage_to_json(stage: StageEntry) -> dict[str, Any]:
    return {
        "name": stage.name,
        "modalities": list(stage.modalities),
        "role": stage.role,
        "inputs": _tensors_to_json(stage.inputs),
        "outputs": _tensors_to_json(stage.outputs),
        "nodes": int(stage.nodes),
        "parameters": int(stage.parameters),
    }


def _variant_to_json(variant: Variant) -> dict[str, Any]:
    where = f"variants.{variant.name}"
    return {
        "name": variant.name,
        "target": variant.target,
        "backend": variant.backend,
        "precision": variant.precision,
        "layout": variant.layout,
        "engines": [
            {
                "name": e.name,
                "stages": list(e.stages),
                "file": e.file,
                "inputs": list(e.inputs),
                "outputs": list(e.outputs),
                "decisions": plain(e.decisions, f"{where}.{e.name}.decisions"),
            }
            | ({"backend": e.backend} if e.backend != variant.backend else {})
            | ({"options": plain(e.options, f"{where}.{e.name}.options")} if e.options else {})
            for e in variant.engines
        ],
        "decisions": plain(variant.decisions, f"{where}.decisions"),
        "size_bytes": int(variant.size_bytes),
        "accuracy": plain(variant.accuracy, f"{where}.accuracy"),
        "refused": variant.refused,
        **({"schedule": variant.schedule.to_json()} if variant.schedule is not None else {}),
        **({"reuse": variant.reuse} if variant.reuse else {}),
    }


def _stand_in_to_json(stand_in: StandIn) -> dict[str, Any]:
    where = f"stand_ins.{stand_in.modality}.{stand_in.fill}"
    return {
        "modality": stand_in.modality,
        "fill": stand_in.fill,
        "arrays": plain(stand_in.arrays, f"{where}.arrays"),
    } | ({"variant": stand_in.variant} if stand_in.variant else {})


_HEAD_LISTS = ("modalities", "inputs", "outputs", "variants")


def _head_to_json(head: HeadEntry) -> dict[str, Any]:
    lists = {name: list(getattr(head, name)) for name in _HEAD_LISTS}
    return {"name": head.name, "file": head.file, "backend": head.backend, **lists}


def _head_from_json(value: object, where: str) -> HeadEntry:
    data = _kind(value, dict, where)
    lists = {name: _strings(data, name, where) for name in _HEAD_LISTS}
    name, file, backend = (_get(data, key, str, where) for key in ("name", "file", "backend"))
    return HeadEntry(name=name, file=file, backend=backend, **lists)


def _stage_from_json(value: object, where: str) -> StageEntry:
    data = _kind(value, dict, where)
    return StageEntry(
        name=_get(data, "name", str, where),
        modalities=_strings(data, "modalities", where),
        role=_get(data, "role", str, where),
        inputs=_each(data, "inputs", where, _tensor_from_json),
        outputs=_each(data, "outputs", where, _tensor_from_json),
        nodes=_get(data, "nodes", int, where),
        parameters=_get(data, "parameters", int, where),
    )


def _variant_from_json(value: object, where: str) -> Variant:
    data = _kind(value, dict, where)
    return Variant(
        name=_get(data, "name", str, where),
        target=_get(data, "target", str, where),
        backend=_get(data, "backend", str, where),
        precision=_get(data, "precision", str, where),
        layout=_get(data, "layout", str, where),
        engines=_each(data, "engines", where, _engine_from_json),
        decisions=_counts(data, "decisions", where),
        size_bytes=_get(data, "size_bytes", int, where),
        accuracy=None if data.get("accuracy") is None else _get(data, "accuracy", dict, where),
        refused=None if data.get("refused") is None else _get(data, "refused", str, where),
        schedule=Schedule.from_json(data["schedule"], f"{where}.schedule") if "schedule" in data else None,
        reuse=_get(data, "reuse", str, where) if "reuse" in data else "",
    )


def _stand_in_from_json(value: object, where: str) -> StandIn:
    data = _kind(value, dict, where)
    arrays = _get(data, "arrays", dict, where)
    return StandIn(
        modality=_get(data, "modality", str, where),
        fill=_get(data, "fill", str, where),
        arrays={name: _file_or_number(entry, f"{where}.arrays.{name}") for name, entry in arrays.items()},
        variant=_get(data, "variant", str, where) if "variant" in data else "",
    )


def _file_or_number(value: object, where: str) -> str | float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return _kind(value, str, where)


def _engine_from_json(value: object, where: str) -> EngineEntry:
    data = _kind(value, dict, where)
    return EngineEntry(
        name=_get(data, "name", str, where),
        stages=_strings(data, "stages", where),
        file=_get(data, "file", str, where),
        inputs=_strings(data, "inputs", where),
        outputs=_strings(data, "outputs", where),
        decisions=_counts(data, "decisions", where),
        backend=_get(data, "backend", str, where) if "backend" in data else "",
        options=_get(data, "options", dict, where) if "options" in data else {},
    )


def _io_from_json(data: dict[str, Any]) -> IOSpec:
    for at, entry in enumerate(_get(data, "inputs", list, "io")):
        for key in ("modality", "reason"):
            if key in _kind(entry, dict, f"io.inputs[{at}]"):
                _get(entry, key, str, f"io.inputs[{at}]")
    _each(data, "inputs", "io", _tensor_from_json)
    _each(data, "outputs", "io", _tensor_from_json)
    _each(data, "states", "io", _state_from_json)
    if data.get("batch") is not None:
        _dim(data["batch"], "io.batch")
    return IOSpec.from_json({"batch": None} | data)


def _state_from_json(value: object, where: str) -> StateSpec:
    data = _kind(value, dict, where)
    return StateSpec(_get(data, "input", str, where), _get(data, "output", str, where))


def _tensor_from_json(value: object, where: str) -> TensorSpec:
    data = _kind(value, dict, where)
    shape = tuple(_dim(d, f"{where}.shape") for d in _get(data, "shape", list, where))
    return TensorSpec(_get(data, "name", str, where), _get(data, "dtype", str, where), shape)


def _files_from_json(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    for name, entry in data.items():
        where = f"files.{name}"
        entry = _kind(entry, dict, where)
        _get(entry, "sha256", str, where)
        _get(entry, "size", int, where)
    return data


def _least_from_json(data: dict[str, Any]) -> dict[str, int]:
    return {dim: _get(data, dim, int, "least") for dim in data}


def _dim(value: object, where: str) -> int | str:
    if isinstance(value, str):
        return value
    number = _kind(value, int, where)
    if number < 0:
        raise BundleError(f"manifest: '{where}' has the size {number}.", hint=DAMAGED)
    return number


def _strings(data: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    return _each(data, key, where, lambda value, at: _kind(value, str, at))


def _counts(data: dict[str, Any], key: str, where: str) -> dict[str, int]:
    counts = _get(data, key, dict, where)
    return {name: _kind(count, int, f"{where}.{key}.{name}") for name, count in counts.items()}


def _each(data: dict[str, Any], key: str, where: str, read: Callable[[object, str], T]) -> tuple[T, ...]:
    path = f"{where}.{key}" if where else key
    return tuple(read(value, f"{path}[{i}]") for i, value in enumerate(_get(data, key, list, where)))


def _get(data: dict[str, Any], key: str, kind: type[T], where: str) -> T:
    path = f"{where}.{key}" if where else key
    if key not in data:
        raise BundleError(f"manifest: '{path}' is missing, expected {_KINDS[kind]}.", hint=DAMAGED)
    return _kind(data[key], kind, path)


def _kind(value: object, kind: type[T], where: str) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BundleError(
            f"manifest: '{where}' is {'true or false' if isinstance(value, bool) else type(value).__name__}, "
            f"expected {_KINDS[kind]}.",
            hint=DAMAGED,
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(n for n in names if names.count(n) > 1)}' is there twice")
    return data


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
