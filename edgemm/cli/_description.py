"""What `edgemm inspect` shows, as plain JSON values: the same keys for a bundle and for a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemm.bundle import StageEntry, Variant
    from edgemm.partition import Stage
    from edgemm.pipeline import Progress
    from edgemm.recipe import Recipe


def describe_bundle(path: Path) -> dict[str, Any]:
    """Returns everything that the bundle at `path` says, after every file is verified.

    Raises:
        BundleError: Not a bundle, damaged, unsafe or too new.
    """
    from dataclasses import replace

    from edgemm.bundle import damaged_engines, read_manifest, verify
    from edgemm.runtime.raw import fed_io

    manifest = read_manifest(path)
    verify(path, manifest)
    damaged = damaged_engines(path, manifest)
    lost = {name for engine in damaged for name in (engine, f"{engine}.json")}
    manifest = replace(manifest, files={n: e for n, e in manifest.files.items() if n not in lost})
    data = manifest.to_json()
    plans = {v.name: _stage_decisions(path, manifest.files, v.name) for v in manifest.shipped}
    info, measured = data["info"], data["measured"]
    return {
        "file": str(path),
        "kind": "bundle",
        "name": manifest.name,
        "schema": manifest.schema,
        "created": measured.get("created"),
        "size_bytes": sum(f["size"] for f in manifest.files.values()),
        "files": len(manifest.files) + 1,
        **fed_io(path, manifest).to_json(),
        "parameters": sum(s.parameters for s in manifest.stages),
        "stages": [
            described
            | {
                "precision": {
                    v.name: plans[v.name].get(s.name) or _engine_decisions(v, s) for v in manifest.shipped
                },
            }
            for described, s in zip(data["stages"], manifest.stages, strict=True)
        ],
        "joins": data["joins"],
        "variants": [_variant(v, data, path) for v in data["variants"]],
        "preprocess": info.get("preprocess", {}),
        "made_of": {way["input"]: way["raw"]["name"] for way in manifest.preprocess},
        "stream": data.get("stream", {}),
        "stand_ins": data.get("stand_ins", []),
        "heads": data.get("heads", []),
        **{key: info.get(key) for key in ("model", "dynamic", "parity", "data", "float_size_bytes", "tools")},
        "notes": [
            *info.get("notes", []),
            *(f"{e} {why}; build it again: edgemm build" for e, why in damaged.items()),
        ],
        "machine": measured.get("machine"),
    }


def _variant(variant: Mapping[str, Any], data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns a variant of the manifest with the sizes of its engines, what was built of them, and its latency."""
    engines = [
        e | {"size_bytes": data["files"][e["file"]]["size"], "built": _built(e, data["files"], path)}
        for e in variant["engines"]
    ]
    latency = data["measured"].get("latency", {}).get(variant["name"])
    lint = data["info"].get("lint", {}).get(variant["name"])
    return {**variant, "engines": engines, "latency": latency, "lint": lint}


def _built(entry: Mapping[str, Any], files: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """Returns what the sidecars of a graph's TensorRT engines say; `unused` is why the plan would not use one."""
    from edgemm.runtime._trt.engines import engines_of, other_plan
    from edgemm.runtime._trt.sidecar import load_sidecar

    found = []
    for name in engines_of(files, entry["file"]):
        side, options = load_sidecar(path / name), entry.get("options", {})
        module = options.get("module", side.flavour)
        unused = other_plan(side, onnx_sha256=files[entry["file"]]["sha256"], module=module, options=options)
        found.append(
            {"file": name, "size_bytes": files[name]["size"], "module": side.flavour, "version": side.version}
            | {"compute_capabilities": list(side.compute_capabilities), "device": dict(side.device)}
            | {"precisions": dict(side.precisions), "weights": dict(side.weights), "seconds": side.seconds}
            | {"size_limit": side.size_limit, "unused": unused}
        )
    return found


def _stage_decisions(path: Path, files: Mapping[str, Any], variant: str) -> dict[str, dict[str, int]]:
    """Returns stage -> precision -> nodes from the variant's plan; empty where it has none."""
    name = f"plans/{variant}.json"
    if name not in files:
        return {}
    counts: dict[str, dict[str, int]] = {}
    for decision in json.loads((path / name).read_bytes()).get("decisions", ()):
        stage = counts.setdefault(decision["stage"], {})
        stage[decision["precision"]] = stage.get(decision["precision"], 0) + 1
    return counts


def _engine_decisions(variant: Variant, stage: StageEntry) -> dict[str, int] | None:
    """Returns precision -> nodes of `stage`, or None where it shares an engine of several precisions."""
    alone = next((e.decisions for e in variant.engines if tuple(e.stages) == (stage.name,)), None)
    if alone is not None:
        return dict(alone)
    return {precision: stage.nodes for precision in variant.decisions} if len(variant.decisions) == 1 else None


def describe_model(path: Path, recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """Returns what a model file is made of, after it was exported and partitioned as `convert` does it.

    Args:
        path: What the user named: a model, or a recipe.
        recipe: The model's file, and what was declared about its inputs.
        progress: Told about every step.

    Raises:
        EdgemmError: The model does not load or cannot be exported.
        MissingExtraError: The `convert` extra is not installed.
    """
    from edgemm.data import open_samples
    from edgemm.export.model import ModelSource, load_model
    from edgemm.export.torch_onnx import export_model
    from edgemm.partition import partition
    from edgemm.pipeline.exporting import request_of
    from edgemm.rewrite.pipeline import rewrite

    samples = open_samples(recipe.data.calib) if recipe.data.calib else None
    progress.status("load", recipe.model.path.name)
    loaded = load_model(ModelSource(recipe.model.path, recipe.model.factory, recipe.model.allow_pickle))
    exported = export_model(loaded, request_of(recipe), samples, lambda text: progress.status("export", text))
    progress.status("partition", "")
    graph, _ = rewrite(exported.graph)
    stages = partition(graph)
    data = stages.to_json()
    parts = [s | {"weights": _weights(stage)} for s, stage in zip(data["stages"], stages.stages, strict=True)]
    return {
        "file": str(path),
        "kind": loaded.kind,
        "name": loaded.path.stem,
        "size_bytes": loaded.path.stat().st_size,
        **graph.io.to_json(),
        "parameters": loaded.parameters,
        "stages": parts,
        "joins": data["joins"],
        "variants": [],
        "model": {
            "source": loaded.path.name,
            "kind": loaded.kind,
            "sha256": loaded.sha256,
            "parameters": loaded.parameters,
            "opset": exported.graph.model.opset_imports.get("", 0),
        },
        "dynamic": exported.dynamic.to_json(),
        "parity": exported.parity.to_json(),
        "notes": [*loaded.notes, *exported.notes, *stages.notes],
    }


def _weights(stage: Stage) -> dict[str, dict[str, int]]:
    """Returns dtype -> `{elements, bytes}` of the weights of a stage."""
    found: dict[str, dict[str, int]] = {}
    for value in stage.model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            entry = found.setdefault(tensor.dtype.numpy().name, {"elements": 0, "bytes": 0})
            entry["elements"] += tensor.size
            entry["bytes"] += tensor.nbytes
    return found
