"""`edgemm inspect`: what a model, an ONNX file or a bundle is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


@click.command(epilog=EPILOG, short_help="Show what a model or bundle is made of.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--calib", metavar="PATH", help="Samples that show a model's sizes: .npz, shards, FILE.py:CLASS.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=SHAPE:DTYPE", help="Declare an input.")
@click.option("--modality", "modalities", multiple=True, metavar="INPUT=NAME", help="Group inputs.")
@click.option("--state", "states", multiple=True, metavar="IN=OUT", help="State input fed by an output.")
@click.option("--factory", metavar="FILE.py:FUNC", help="Makes the nn.Module for a state_dict. Runs that code.")
@click.option("--allow-pickle", is_flag=True, help="Load a pickled nn.Module. Runs code from the file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the text.")
def inspect(file: Path, as_json: bool, **options: Any) -> None:
    """Show what FILE is made of: modalities, stages, joins, parameters, sizes, precision.

    FILE is a bundle, an .onnx file, or anything else that `edgemm convert` reads. A bundle is verified against
    its manifest, and needs no package beyond the base ones. A model is exported and cut into stages as convert
    does it (nothing is written); the options but --json are for models.
    """
    from edgemm.cli._description import describe_bundle
    from edgemm.cli._output import echo_json

    report = describe_bundle(file) if _is_bundle(file) else _inspect_model(file, options)
    if as_json:
        echo_json(report)
    else:
        click.echo(render(report))


def _is_bundle(file: Path) -> bool:
    # a missing path with the suffix of a bundle is answered as a missing bundle
    return file.is_dir() or (file.suffix == ".edgemm" and not file.exists())


def _inspect_model(file: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    from edgemm._optional import require

    if file.exists():  # a missing file is said before a missing package
        for package in ("torch", "onnx", "onnx_ir", "onnxscript", "pydantic", "yaml"):
            require(package, extra="convert", why="inspect a model (a bundle needs none of it)")
        require("onnxruntime", extra="cpu", why="check the exported graph")
    from edgemm.export.sniff import RECIPE, sniff

    kind = sniff(file)
    from edgemm.cli._description import describe_model
    from edgemm.cli._progress import RichProgress
    from edgemm.recipe.loader import build_recipe, load_recipe, merge

    fields = _fields(options)
    if kind == RECIPE:
        recipe = load_recipe(file, fields)
    else:
        recipe = build_recipe(merge({"model": {"path": file}}, fields), where="options")
    with RichProgress() as progress:
        return describe_model(file, recipe, progress)


def _fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recipe fields that the given options set."""
    from edgemm.cli._options import input_fields

    model = {key: options[key] for key in ("factory", "allow_pickle") if options[key]}
    data = {"calib": options["calib"]} if options["calib"] else {}
    fields = input_fields(options["inputs"], options["modalities"], options["states"])
    return fields | ({"model": model} if model else {}) | ({"data": data} if data else {})


def render(report: Mapping[str, Any]) -> str:
    """Returns a report as text for people."""
    import shutil

    from edgemm.cli._diagram import draw

    width = max(shutil.get_terminal_size((120, 24)).columns, 80)
    lines = [*_title(report), "", *draw(report, width), "", _signature(report)]
    lines += ["", *_joins(report)] if report["joins"] else []
    lines += ["", *_facts(report), *_streams(report), ""]
    if report["kind"] == "bundle":
        lines += [_stages_of_bundle(report), "", *_variants(report)]
    else:
        lines += [_stages_of_model(report)]
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join(lines)


def _title(report: Mapping[str, Any]) -> list[str]:
    from edgemm.cli._output import count, megabytes

    first, second = [], [count(report["parameters"], "parameter"), megabytes(report["size_bytes"])]
    if report["kind"] == "bundle":
        maker = (report["tools"] or {}).get("edgemm")
        made = [f"made {str(report['created'])[:10]}"] if report["created"] else []
        made += [f"by edgemm {maker}"] if maker else []
        targets = dict.fromkeys(v["target"] for v in report["variants"] if not v["refused"])
        first += [f"schema {report['schema']}", *([" ".join(made)] if made else [])]
        first += [f"{'target' if len(targets) == 1 else 'targets'} {', '.join(targets)}"]
        second += [f"{report['files']} files, verified"]
    else:
        kind = {"onnx": "ONNX model", "torchscript": "TorchScript"}.get(report["kind"], report["kind"])
        first += [kind.replace("-", " "), f"opset {report['model']['opset']}"]
    return [f"{click.style(report['file'], bold=True)}   {' · '.join(first)}", " · ".join(second)]


def _signature(report: Mapping[str, Any]) -> str:
    from edgemm.cli._output import table

    states = {s["input"]: s["output"] for s in report["states"]}
    kept = {output: name for name, output in states.items()}
    rows = []
    for spec in report["inputs"]:
        why = f"state, from output '{states[spec['name']]}'" if spec["name"] in states else spec.get("reason", "")
        rows.append(["input", spec["name"], _type(spec), spec.get("modality", ""), why])
    makers = {t["name"]: s["name"] for s in report["stages"] for t in s["outputs"]}
    for spec in report["outputs"]:
        stage = makers.get(spec["name"])
        why = f"state, for input '{kept[spec['name']]}'" if spec["name"] in kept else ""
        rows.append(["output", spec["name"], _type(spec), "", why or (f"from stage '{stage}'" if stage else "")])
    return table(["", "name", "type", "modality", "because"], rows)


def _type(spec: Mapping[str, Any]) -> str:
    return f"{spec['dtype']} [{','.join(map(str, spec['shape']))}]"


def _joins(report: Mapping[str, Any]) -> list[str]:
    """Returns one line per kind of join: where, of what, how often, and the first node."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for join in report["joins"]:
        key = (join["op"], join["kind"], join["stage"], " and ".join(dict.fromkeys(join["sources"])))
        groups.setdefault(key, []).append(join["node"])
    lines = []
    for (op, kind, stage, sources), nodes in groups.items():
        what = op if kind == op.lower() else f"{op} ({kind})"
        times = f" × {len(nodes)}" if len(nodes) > 1 else ""
        lines.append(f"join     {what}{times} of {sources} in {stage}, node '{nodes[0]}'")
    return lines


def _facts(report: Mapping[str, Any]) -> list[str]:
    batch = report["batch"]
    text = "no batch axis" if batch is None else f"fixed at {batch}" if isinstance(batch, int) else "dynamic"
    lines = [f"batch    {text}"]
    dynamic = report["dynamic"] or {}
    symbols: dict[str, list[Mapping[str, Any]]] = {}
    for dim in dynamic.get("dynamic", ()):
        symbols.setdefault(dim["symbol"], []).append(dim)
    for symbol, dims in symbols.items():
        places = ", ".join(f"{d['tensor']} axis {d['axis']}" for d in dims)
        checked = ", ".join(map(str, dims[0]["checked"]))
        lines.append(f"dynamic  '{symbol}': {places}" + (f" (run at {checked})" if checked else ""))
    for dim in dynamic.get("fixed", ()):
        lines.append(f"fixed    {dim['tensor']} axis {dim['axis']} at {dim['size']}: {dim['reason']}")
    parity = report["parity"]
    if parity:
        samples = f" over {parity['samples']} samples" if parity.get("samples") else ""
        measured = f"max-abs {parity['max_abs'] or 0:.1e}, cosine {parity['cosine']:.6f}"
        lines.append(f"parity   {measured} to the source{samples}")
    return lines


def _streams(report: Mapping[str, Any]) -> list[str]:
    """Returns what streams do unless they are told otherwise, and what the bundle holds for missing modalities."""
    lines = [f"raw      {way['way']} (by the {way['by']})" for way in report.get("preprocess", {}).values()]
    policy = [f"{name} {_policy(value)}" for name, value in report.get("stream", {}).items()]
    lines += [f"stream   {' · '.join(policy)}"] if policy else []
    fills: dict[str, dict[str, list[str]]] = {}
    for entry in report.get("stand_ins", ()):
        variants = fills.setdefault(entry["modality"], {}).setdefault(entry["fill"], [])
        variants += [entry["variant"]] if entry.get("variant") else []
    for modality, kinds in fills.items():
        texts = [f"{fill} ({', '.join(variants)})" if variants else fill for fill, variants in kinds.items()]
        lines.append(f"missing  {modality}: {', '.join(texts)}")
    for head in report.get("heads", ()):
        held = ", ".join(head["variants"]) or "no variant"
        lines.append(f"head     {head['name']}: from {', '.join(head['modalities'])} alone ({held})")
    return lines


def _policy(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_policy(each)}" for name, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _stages_of_model(report: Mapping[str, Any]) -> str:
    from edgemm.cli._output import megabytes, table

    rows = []
    for stage in report["stages"]:
        weights = stage["weights"]
        kinds = ", ".join(f"{entry['elements']:,} {dtype}" for dtype, entry in weights.items())
        size = megabytes(sum(entry["bytes"] for entry in weights.values()))
        rows.append([*_stage_cells(stage), size, kinds])
    columns = ["stage", "modality", "role", "nodes", "parameters", "size", "weights"]
    return table(columns, rows, right=("nodes", "parameters", "size"))


def _stages_of_bundle(report: Mapping[str, Any]) -> str:
    from edgemm.cli._output import table

    shipped = [v["name"] for v in report["variants"] if not v["refused"]]
    rows = [
        _stage_cells(stage) + [_counts(stage["precision"].get(name)) for name in shipped]
        for stage in report["stages"]
    ]
    columns = ["stage", "modality", "role", "nodes", "parameters", *shipped]
    return table(columns, rows, right=("nodes", "parameters"))


def _stage_cells(stage: Mapping[str, Any]) -> list[str]:
    modalities = ", ".join(stage["modalities"])
    return [stage["name"], modalities, stage["role"], str(stage["nodes"]), f"{stage['parameters']:,}"]


def _counts(decisions: Mapping[str, int] | None) -> str:
    """Returns `"12 int8, 3 fp32"`, nodes per precision; None is a stage inside an engine of several."""
    if decisions is None:
        return "in one engine"
    return ", ".join(f"{n} {precision}" for precision, n in sorted(decisions.items(), reverse=True)) or "fp32"


def _variants(report: Mapping[str, Any]) -> list[str]:
    from edgemm.cli._output import megabytes

    lines = []
    for variant in report["variants"]:
        if variant["refused"]:
            lines.append(f"refused  {variant['name']}: {variant['refused']}")
            continue
        runs = f"{variant['backend']} on {variant['target']}, {variant['layout']}{_shared(variant)}"
        size = megabytes(variant["size_bytes"])
        lines.append(f"variant  {variant['name']}: {runs} · {size} · nodes: {_counts(variant['decisions'])}")
        lines.append(f"         {_accuracy(variant['accuracy'])} · {_latency(variant['latency'])}")
        if variant["backend"] == "tensorrt":
            lines.append(f"         {_engines(variant['engines'])}{_lint(variant['lint'])}")
    return lines


def _shared(variant: Mapping[str, Any]) -> str:
    """Returns how engines share the cores, and what runs calls in which something is unchanged."""
    schedule = variant.get("schedule")
    order = f", engines {schedule['order']}{', spinning' * (schedule['idle'] == 'spin')}" if schedule else ""
    return order + (f", with {variant['reuse']} for what is unchanged" if variant.get("reuse") else "")


def _engines(engines: Sequence[Mapping[str, Any]]) -> str:
    """Returns `"3 of 3 engines for SM 86 by tensorrt_rtx 1.7.1 (2.03 MB)"`, one text per kind that was built."""
    from edgemm.cli._output import megabytes

    kinds: dict[str, dict[str, int]] = {}  # one engine of each graph: several may fit the same GPU
    for engine in engines:
        for built in (b for b in engine["built"] if b["unused"] is None):
            sms = ", ".join(map(str, built["compute_capabilities"]))
            where = f"SM {sms}" if built["module"] == "tensorrt_rtx" else built["device"].get("name", "one GPU")
            sizes = kinds.setdefault(f"{where} by {built['module']} {built['version']}", {})
            sizes.setdefault(engine["name"], built["size_bytes"])
    texts = [
        f"{len(sizes)} of {len(engines)} engines for {kind} ({megabytes(sum(sizes.values()))})"
        for kind, sizes in kinds.items()
    ] or ["no engines built yet (edgemm build)"]
    unused = sum(b["unused"] is not None for engine in engines for b in engine["built"])
    return "; ".join([*texts, *([f"{unused} with options that the plan does not ask for"] if unused else [])])


def _lint(counts: Mapping[str, int] | None) -> str:
    found = [f"{n} {severity}{'s' * (n != 1)}" for severity, n in (counts or {}).items() if n]
    return f" · lint: {', '.join(found)}" if found else ""


def _accuracy(accuracy: Mapping[str, Any] | None) -> str:
    if not accuracy or accuracy.get("variant") is None:
        return "accuracy not measured"
    percent = accuracy.get("percent")

    def show(value: float) -> str:
        return f"{value:.2%}" if percent else f"{value:.4g}"

    before = f"{show(accuracy['float'])} → " if accuracy.get("float") is not None else ""
    how = ", simulated" if accuracy.get("simulated") else ""
    samples = f" ({accuracy['samples']:,} samples{how})" if accuracy.get("samples") else ""
    return f"{accuracy['metric']} {before}{show(accuracy['variant'])}{samples}"


def _latency(latency: Mapping[str, Any] | None) -> str:
    from edgemm.cli._output import milliseconds

    if not latency or latency.get("variant_ms") is None:
        return "latency not measured"
    text = f"{milliseconds(latency['variant_ms'])} ms"
    if latency.get("ratio") is not None:
        text += f" ({latency['ratio']:.2f} × float)"
    return text
