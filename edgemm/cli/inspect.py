"""`edgemm inspect`: what a model, an ONNX file or a bundle is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

EPILOG = """\b
Examples:
  edgemm inspect model.edgemm
  edgemm inspect model.pt2
  edgemm inspect clip.onnx --modality input_ids=text --modality attention_mask=text
  edgemm inspect model.edgemm --json
"""


@click.command(epilog=EPILOG)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the text.")
def inspect(file: Path, as_json: bool, **options: Any) -> None:
    """Show what FILE is made of: modalities, stages, joins, parameters, sizes, precision.

    FILE is a bundle, an .onnx file, or any model that `edgemm convert` reads. A bundle is verified against its
    manifest and needs no package beyond the base ones.
    """
    from edgemm.cli._output import echo_json

    report = describe_bundle(file)
    if as_json:
        echo_json(report)
    else:
        click.echo(render(report))


def describe_bundle(path: Path) -> dict[str, Any]:
    """Returns everything that the bundle at `path` says, after every file is verified.

    Raises:
        BundleError: Not a bundle, damaged, unsafe or too new.
    """
    from edgemm.bundle import read_manifest, verify

    manifest = read_manifest(path)
    verify(path, manifest)
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
        **manifest.io.to_json(),
        "parameters": sum(s.parameters for s in manifest.stages),
        "stages": [
            {
                "name": s.name,
                "modalities": list(s.modalities),
                "role": s.role,
                "nodes": s.nodes,
                "parameters": s.parameters,
                "inputs": [_tensor(t) for t in s.inputs],
                "outputs": [_tensor(t) for t in s.outputs],
                "precision": {
                    v.name: plans[v.name].get(s.name) or _engine_decisions(v.engines, s.name)
                    for v in manifest.shipped
                },
            }
            for s in manifest.stages
        ],
        "joins": [dict(join) for join in manifest.joins],
        "variants": [
            {
                "name": v.name,
                "target": v.target,
                "backend": v.backend,
                "precision": v.precision,
                "layout": v.layout,
                "decisions": dict(v.decisions),
                "size_bytes": v.size_bytes,
                "engines": [
                    {"name": e.name, "stages": list(e.stages), "size_bytes": manifest.files[e.file]["size"]}
                    for e in v.engines
                ],
                "accuracy": dict(v.accuracy) if v.accuracy else None,
                "latency": measured.get("latency", {}).get(v.name),
                "refused": v.refused,
            }
            for v in manifest.variants
        ],
        **{key: info.get(key) for key in ("model", "dynamic", "parity", "data", "float_size_bytes", "tools")},
        "machine": measured.get("machine"),
    }


def _tensor(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _stage_decisions(path: Path, files: Mapping[str, Any], variant: str) -> dict[str, dict[str, int]]:
    """Returns stage -> precision -> nodes from the variant's plan; empty where it has none."""
    import json

    name = f"plans/{variant}.json"
    if name not in files:
        return {}
    counts: dict[str, dict[str, int]] = {}
    for decision in json.loads((path / name).read_bytes()).get("decisions", ()):
        stage = counts.setdefault(decision["stage"], {})
        stage[decision["precision"]] = stage.get(decision["precision"], 0) + 1
    return counts


def _engine_decisions(engines: Iterable[Any], stage: str) -> dict[str, int] | None:
    """Returns the decisions of the engine that runs `stage` alone; None where it shares one."""
    return next((dict(e.decisions) for e in engines if tuple(e.stages) == (stage,)), None)


def render(report: Mapping[str, Any]) -> str:
    """Returns a report as text for people."""
    import shutil

    from edgemm.cli._diagram import draw

    width = max(shutil.get_terminal_size((120, 24)).columns, 80)
    lines = [_title(report), "", *draw(report, width), "", _signature(report)]
    lines += ["", *_joins(report)] if report["joins"] else []
    lines += ["", *_facts(report)]
    if report["kind"] == "bundle":
        lines += ["", _precision(report), "", _variants(report)]
        lines += [f"refused: {v['name']}: {v['refused']}" for v in report["variants"] if v["refused"]]
    return "\n".join(lines)


def _title(report: Mapping[str, Any]) -> str:
    from edgemm.cli._output import megabytes, short

    parts = []
    if report["kind"] == "bundle":
        maker = (report["tools"] or {}).get("edgemm")
        made = f"made {str(report['created'])[:10]}" if report["created"] else "made"
        targets = dict.fromkeys(v["target"] for v in report["variants"] if not v["refused"])
        parts += [f"schema {report['schema']}", f"{made} by edgemm {maker}" if maker else made]
        parts += [f"targets {', '.join(targets)}"]
    else:
        parts += [report["kind"].replace("-", " ")]
    parts += [f"{short(report['parameters'])} parameters", megabytes(report["size_bytes"])]
    if report["kind"] == "bundle":
        parts += [f"{report['files']} files, verified"]
    return f"{click.style(report['file'], bold=True)}   {' · '.join(parts)}"


def _signature(report: Mapping[str, Any]) -> str:
    from edgemm.cli._output import table

    states = {s["input"]: s["output"] for s in report["states"]}
    kept = {output: name for name, output in states.items()}
    rows = []
    for spec in report["inputs"]:
        why = f"kept from output '{states[spec['name']]}'" if spec["name"] in states else spec.get("reason", "")
        rows.append(["input", spec["name"], spec.get("modality", "(state)"), _type(spec), why])
    makers = {t["name"]: s["name"] for s in report["stages"] for t in s["outputs"]}
    for spec in report["outputs"]:
        why = f"kept for input '{kept[spec['name']]}'" if spec["name"] in kept else ""
        stage = makers.get(spec["name"])
        rows.append(["output", spec["name"], "", _type(spec), why or (f"from stage {stage}" if stage else "")])
    return table(["", "name", "modality", "type", "why"], rows)


def _type(spec: Mapping[str, Any]) -> str:
    return f"{spec['dtype']} [{','.join(map(str, spec['shape']))}]"


def _joins(report: Mapping[str, Any]) -> list[str]:
    lines = [
        f"join    {j['op']} ({j['kind']}) in {j['stage']}: {', '.join(j['sources'])}   {j['node']}".rstrip()
        for j in report["joins"]
    ]
    if len(lines) <= 8:
        return lines
    return [*lines[:7], f"join    … {len(lines) - 7} more; --json lists them all"]


def _facts(report: Mapping[str, Any]) -> list[str]:
    batch = report["batch"]
    text = "none" if batch is None else f"fixed at {batch}" if isinstance(batch, int) else "dynamic"
    dynamic = report.get("dynamic")
    lines = [f"batch   {text}"]
    if isinstance(dynamic, Mapping):
        lines += [
            f"dims    {key}: {_plain(value)}" for key, value in dynamic.items() if value not in (None, {}, [])
        ]
    parity = report.get("parity")
    if parity:
        samples = f" over {parity['samples']} samples" if parity.get("samples") else ""
        lines.append(
            f"parity  max-abs {parity['max_abs']:.1e}, cosine {parity['cosine']:.6f} to the source{samples}"
        )
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)


def _precision(report: Mapping[str, Any]) -> str:
    from edgemm.cli._output import table

    shipped = [v["name"] for v in report["variants"] if not v["refused"]]
    rows = [
        [s["name"], ", ".join(s["modalities"]), str(s["nodes"]), f"{s['parameters']:,}"]
        + [_counts(s["precision"].get(name)) for name in shipped]
        for s in report["stages"]
    ]
    return table(["stage", "modality", "nodes", "parameters", *shipped], rows, right=("nodes", "parameters"))


def _counts(decisions: Mapping[str, int] | None) -> str:
    """Returns `"12 int8, 3 fp32"`; a stage without decisions is float, or shares its engine."""
    if decisions is None:
        return "shares an engine"
    return ", ".join(f"{n} {precision}" for precision, n in sorted(decisions.items(), reverse=True)) or "fp32"


def _variants(report: Mapping[str, Any]) -> str:
    from edgemm.cli._output import megabytes, table

    rows = []
    for variant in report["variants"]:
        if variant["refused"]:
            continue
        rows.append(
            [
                variant["name"],
                variant["target"],
                f"{variant['backend']}, {variant['layout']}",
                megabytes(variant["size_bytes"]),
                _accuracy(variant["accuracy"]),
                _latency(variant["latency"]),
            ]
        )
    return table(["variant", "target", "runs on", "size", "accuracy", "latency"], rows, right=("size",))


def _accuracy(accuracy: Mapping[str, Any] | None) -> str:
    if not accuracy or accuracy.get("variant") is None:
        return "not measured"
    drop = f", drop {accuracy['drop']:.4f}" if accuracy.get("drop") is not None else ""
    budget = f" of {accuracy['budget']:g}" if accuracy.get("budget") is not None else ""
    samples = f", {accuracy['samples']} samples" if accuracy.get("samples") else ""
    before = f"{accuracy['float']:.4f} → " if accuracy.get("float") is not None else ""
    return f"{accuracy['metric']} {before}{accuracy['variant']:.4f}{drop}{budget}{samples}"


def _latency(latency: Mapping[str, Any] | None) -> str:
    from edgemm.cli._output import milliseconds

    if not latency or latency.get("variant_ms") is None:
        return "not measured"
    text = f"{milliseconds(latency['variant_ms'])} ms"
    if latency.get("ratio") is not None:
        text += f" ({latency['ratio']:.2f} × float)"
    return text
