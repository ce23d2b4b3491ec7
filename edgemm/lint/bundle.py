"""The lint over an ONNX file, or over every engine of a bundle, named by stage and modality."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgemm.backends.targets import Target
from edgemm.bundle import EngineEntry, Manifest, Variant, read_manifest, verify
from edgemm.errors import ModelError
from edgemm.graph import load
from edgemm.lint import lint
from edgemm.lint.findings import NOTE, SEVERITIES, Finding
from edgemm.lint.profiles import check_profiles, inputs_of, profile_of, symbol_ranges
from edgemm.lint.view import open_view
from edgemm.tensors import ShapeRange

Profile = Mapping[str, ShapeRange]


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked, and what was found.

    Attributes:
        path: Bundle or ONNX file.
        target: What engines would be for.
        variants: Variants of the bundle that were read; empty for an ONNX file.
        graphs: Number of graphs.
        nodes: Number of nodes in them.
        findings: Errors first.
        notes: What was not as asked for: no variant for the target, engines that are no ONNX files.
    """

    path: Path
    target: Target
    variants: tuple[str, ...]
    graphs: int
    nodes: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def checked(self) -> bool:
        """Whether there are rules for the target at all."""
        return self.target.builder is not None

    @property
    def counts(self) -> dict[str, int]:
        """Severity -> number of findings."""
        return {s: sum(f.severity == s for f in self.findings) for s in SEVERITIES}

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict."""
        return {
            "file": str(self.path),
            "target": self.target.name,
            "variants": list(self.variants),
            "graphs": self.graphs,
            "nodes": self.nodes,
            "counts": self.counts,
            "findings": [f.to_json() for f in self.findings],
            "notes": list(self.notes),
        }


def lint_file(path: Path, target: Target, profile: Profile | None = None) -> Report:
    """Returns what is found in the ONNX file at `path`.

    Raises:
        ModelError: There is no such file, it is no ONNX model, or its weights lie outside of its folder.
    """
    model = _read(path)
    findings = lint(model, target, None if profile is None else (profile,))
    return Report(path, target, (), 1, _count(model), findings, _scope(target))


def lint_bundle(path: Path, target: Target, profile: Profile | None = None) -> Report:
    """Returns what is found in every stage of every variant made for `target`, or in the float one without any.

    Args:
        path: A bundle; it is verified first.
        target: What engines would be for.
        profile: Ranges of the fused model's inputs, or None where they are not decided. Those of a stage's inputs
            follow from the symbols; a tensor between stages whose symbol is no size of an input can be named, too.

    Raises:
        BundleError: Not a bundle, damaged, unsafe or too new.
        ModelError: An engine is no ONNX model.
    """
    manifest = read_manifest(path)
    verify(path, manifest)
    variants, notes = _variants(manifest, target)
    findings = list(_signature(manifest, profile)) if profile is not None and target.builder else []
    graphs = nodes = 0
    for variant in variants:
        for engine in variant.engines:
            file = _graph_file(path, manifest, engine)
            if file is None:
                notes.append(f"'{engine.name}' of {variant.name} is no ONNX file and was not checked")
                continue
            model = _read(file)
            graphs, nodes = graphs + 1, nodes + _count(model)
            findings += _engine(model, manifest, variant, engine, target, profile)
    findings.sort(key=lambda f: SEVERITIES.index(f.severity))
    names = tuple(v.name for v in variants)
    return Report(path, target, names, graphs, nodes, tuple(findings), (*notes, *_scope(target)))


def _variants(manifest: Manifest, target: Target) -> tuple[list[Variant], list[str]]:
    made = [v for v in manifest.shipped if v.target == target.name]
    if made:
        return made, []
    plain = [v for v in manifest.shipped if v.precision == "fp32"]
    chosen = (plain or list(manifest.shipped))[0]
    kind = "the float graphs" if plain else f"the graphs of {chosen.name}, made for {chosen.target},"
    return [chosen], [f"no variant is made for {target.name}; {kind} were checked ({chosen.name})"]


def _signature(manifest: Manifest, profile: Profile) -> Iterator[Finding]:
    """Yields what is wrong with ranges of the fused model's inputs, tensors between stages apart."""
    inputs = {spec.name: spec.shape for spec in manifest.io.inputs}
    between = {o for variant in manifest.shipped for engine in variant.engines for o in engine.outputs}
    yield from check_profiles(inputs, ({n: r for n, r in profile.items() if n in inputs or n not in between},))


def _engine(
    model: ir.Model,
    manifest: Manifest,
    variant: Variant,
    engine: EngineEntry,
    target: Target,
    profile: Profile | None,
) -> list[Finding]:
    findings = list(lint(model, target))
    if profile is not None and target.builder:
        inputs = inputs_of(open_view(model))
        known = symbol_ranges({s.name: s.shape for s in manifest.io.inputs}, profile)
        derived = profile_of(inputs, known) | {n: r for n, r in profile.items() if n in inputs}
        fed = {spec.name for spec in manifest.io.inputs}
        findings += [f for f in check_profiles(inputs, (derived,)) if f.tensor not in fed]
    if variant.target != target.name:
        findings = [_prepared(f, target) for f in findings]
    modalities = dict.fromkeys(m for s in manifest.stages if s.name in engine.stages for m in s.modalities)
    return [
        replace(f, variant=variant.name, stage=tuple(engine.stages), modalities=tuple(modalities))
        for f in findings
    ]


_FOR_ONNX_RUNTIME = frozenset({"com.microsoft.Attention", "com.microsoft.MultiHeadAttention"})
"""What `edgemm.rewrite.prepare` puts into graphs for ONNX Runtime, and for nothing else."""


def _prepared(finding: Finding, target: Target) -> Finding:
    """Returns a finding in a graph that was made for another target, without the blame for its preparation."""
    if finding.rule != "operator-domain" or finding.op not in _FOR_ONNX_RUNTIME:
        return finding
    reason = f"put in for ONNX Runtime; a variant for {target.name} keeps ONNX's own operators"
    return replace(finding, severity=NOTE, reason=reason, fix="nothing, unless the model came with it")


def _graph_file(path: Path, manifest: Manifest, engine: EngineEntry) -> Path | None:
    """Returns the ONNX file of an engine: itself, or the one that lies beside it under the same name."""
    name = str(Path(engine.file).with_suffix(".onnx"))
    return path / name if name in manifest.files else None


def _scope(target: Target) -> tuple[str, ...]:
    if target.builder is None:
        return (f"no TensorRT reads graphs for {target.name}: no rule applies to it",)
    if target.builder != "tensorrt-rtx":
        return (
            "the rules were proven with TensorRT-RTX; TensorRT has the same parser, and what its builder refuses "
            "shows on the device only",
        )
    return ()


def _read(path: Path) -> ir.Model:
    try:
        model = load(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file.", hint="give an .onnx file or a bundle") from error
    except Exception as error:
        raise ModelError(
            f"{path} is no ONNX model: {str(error).splitlines()[0] if str(error) else type(error).__name__}.",
            hint="give an .onnx file or a bundle; other models become one by `edgemm convert`",
        ) from error
    if not len(model.graph) and not model.graph.outputs:
        raise ModelError(f"{path} is no ONNX model: it has no nodes.", hint="give an .onnx file or a bundle")
    folder = path.parent.resolve()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and not Path(tensor.path).resolve().is_relative_to(folder):
                raise ModelError(
                    f"{path}: the weight '{value.name}' lies outside of the model's folder ({tensor.location}).",
                    hint="move the file with the weights beside the model",
                )
    return model


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())
