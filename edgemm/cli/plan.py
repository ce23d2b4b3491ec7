"""`edgemm plan`: what becomes integer, where, why, at what cost and for what gain."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from edgemm.cli._output import echo_json, table, write_file
from edgemm.cli._recipe import read_recipe, recipe_options, require_convert
from edgemm.errors import BundleError

EPILOG = """\b
Examples:
  edgemm plan model.edgemm
  edgemm plan model.edgemm --target rtx-ampere
  edgemm plan model.pt2 --calib calib.npz --label label --save plan.json
  edgemm convert model.pt2 --calib calib.npz --label label --plan plan.json
"""

_COLUMNS = ("stage", "node", "op", "precision", "rule", "cost", "gain ms", "reason")


@click.command(epilog=EPILOG, short_help="Show what becomes integer, and why.")
@click.argument("source", metavar="BUNDLE|MODEL", type=click.Path(path_type=Path))
@click.option("--save", type=click.Path(path_type=Path), help="Write the plan as JSON, to edit and re-apply.")
@click.option("--force", is_flag=True, help="Replace the file of --save.")
@click.option("--all", "every", is_flag=True, help="A row per node, also where neighbours are alike.")
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="The plan, the search and the front as JSON on stdout.")
def plan(source: Path, save: Path | None, force: bool, every: bool, as_json: bool, **options: Any) -> None:
    """Show what becomes integer, where, why, at what cost and for what gain.

    A bundle tells what its conversion decided, for its first variant or for --target. A model is calibrated and
    searched as in edgemm convert, with the same options, and nothing but the plan is kept. Cost is the output
    error of a group of nodes by itself, gain the milliseconds that it saves (unmeasured on NVIDIA targets).
    """
    from edgemm.bundle import MANIFEST
    from edgemm.cli._output import refuse_to_overwrite

    if save is not None:
        refuse_to_overwrite(save, force=force)
    if (source / MANIFEST).is_file():
        found = _from_bundle(source, options["target"])
    else:
        found = _from_model(source, options)
    if save is not None:
        payload = json.dumps(found["plan"], indent=1).encode() + b"\n"
        write_file(save, lambda file: _write(file, payload), force=force)
    if as_json:
        echo_json(found)
        return
    _print(found, every=every)
    if save is not None:
        click.echo(f"{save}   next: edgemm convert MODEL --plan {save}")


def _write(file: Any, payload: bytes) -> None:
    file.write(payload)


def _from_model(model: Path, options: dict[str, Any]) -> dict[str, Any]:
    from edgemm._optional import require

    for package in ("pydantic", "yaml"):
        require(package, extra="convert", why="plan a model")
    recipe = read_recipe(model, options)
    require_convert()
    from edgemm.cli._progress import RichProgress
    from edgemm.pipeline import convert as run_convert

    with tempfile.TemporaryDirectory(prefix="edgemm-plan-") as folder, RichProgress() as progress:
        return _from_bundle(run_convert(recipe, Path(folder) / "plan.edgemm", progress=progress).path)


def _names(targets: Sequence[str]) -> set[str]:
    from edgemm.backends.targets import find_targets

    return {t.name for t in find_targets(targets)}


def _for(targets: Sequence[str]) -> str:
    return f" for {', '.join(targets)}" if targets else ""


def _from_bundle(bundle: Path, targets: Sequence[str] = ()) -> dict[str, Any]:
    """Returns `{variant, plan, search, variants}` of a bundle: the plan of its first variant, or of a target's.

    Raises:
        BundleError: It is damaged, or holds no such plan.
        BackendError: There is no such target.
    """
    from edgemm.bundle import read_manifest, verify

    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    plans = [name for name in manifest.files if name.startswith("plans/")]
    if targets:
        plans = [f"plans/{v.name}.json" for v in manifest.variants if v.target in _names(targets)]
        plans = [name for name in plans if name in manifest.files]
    if not plans:
        why = "; ".join(manifest.info.get("notes", [])[-1:]) or "it was asked for fp32"
        raise BundleError(
            f"{bundle}: it was converted without a plan{_for(targets)}: {why}.",
            hint="convert it with calibration samples (--calib) and without --precision fp32",
        )
    order = [v.target for v in manifest.shipped] + [v.target for v in manifest.variants]
    ranks = {f"plans/{v.name}.json": (order.index(v.target), v.refused is not None) for v in manifest.variants}
    plans.sort(key=lambda name: ranks.get(name, (len(order), True)))
    plan = json.loads((bundle / plans[0]).read_text())
    report = "report/search.json" if plan["target"] == "cpu" else "report/search-tensorrt.json"
    data = manifest.to_json()
    return {
        "bundle": bundle.name,
        "variant": Path(plans[0]).stem,
        "plan": plan,
        "search": json.loads((bundle / report).read_text()) if report in manifest.files else None,
        "variants": [
            {key: v[key] for key in ("name", "precision", "layout", "backend", "refused")}
            for v in data["variants"]
        ],
    }


def _print(found: Mapping[str, Any], *, every: bool) -> None:
    decisions = found["plan"]["decisions"]
    search = found["search"]
    header, rows = _filled(_COLUMNS, list(_rows(decisions, every=every)))
    click.echo(table(header, rows, right=("cost", "gain ms")))
    if found["plan"]["target"] != "cpu":
        order = "; what goes back first is chosen by a cost model" if search is not None else ""
        click.echo(f"\nlatency is unmeasured without the GPU{order}")
    if search is not None and search["stages"]:
        click.echo("\ndrop of the metric when one stage alone is integer")
        blanks = list(next(iter(search["stages"].values()))["blank"])
        rows = [
            (name, _number(s["drop"]), *(_number(s["blank"][b]) for b in blanks))
            for name, s in search["stages"].items()
        ]
        header = ("stage", "complete", *(f"{b} blank" for b in blanks))
        click.echo(table(header, rows, right=header[1:]))
    if search is not None and search["points"]:
        click.echo(f"\nfront (budget {search['budget']:.4g})")
        rows = [
            (
                _number(p["expected"]),
                _number(p["drop"]),
                _number(max([d for d in p["blank"].values() if d is not None], default=None)),
                f"{len(p['setting'])}",
                "ships" if p["chosen"] else "" if p["fits"] else "over the budget",
            )
            for p in search["points"]
        ]
        header = (search["unit"], "drop", "worst blank", "groups", "")
        click.echo(table(header, rows, right=header[:4]))
    shipped = [v for v in found["variants"] if v["refused"] is None]
    click.echo("\nships: " + ", ".join(f"{v['name']} ({v['layout']}, {v['backend']})" for v in shipped))
    for variant in found["variants"]:
        if variant["refused"] is not None:
            click.echo(f"refused: {variant['name']}: {variant['refused']}")


def _filled(
    header: Sequence[str], rows: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns the table without cost and gain where no row has one."""
    kept = [i for i, name in enumerate(header) if name not in ("cost", "gain ms") or any(r[i] for r in rows)]
    return tuple(header[i] for i in kept), [tuple(r[i] for i in kept) for r in rows]


def _rows(decisions: Sequence[Mapping[str, Any]], *, every: bool) -> Iterator[tuple[str, ...]]:
    """Yields a row per run of neighbours that were decided alike."""

    def alike(d: Mapping[str, Any]) -> tuple[Any, ...]:
        same = d["stage"], d["op"], d["precision"], d["rule"], d.get("cost"), d.get("gain")
        return (*same, d["node"]) if every else same

    for _, run in groupby(decisions, alike):
        some = list(run)
        first, last = some[0], some[-1]
        name = first["node"] if len(some) == 1 else f"{first['node']} … {last['node']} ({len(some)})"
        reason = (
            first["reason"] if all(d["reason"] == first["reason"] for d in some) else f"{first['reason']}, ..."
        )
        cost, gain = _number(first.get("cost")), _number(first.get("gain"))
        yield first["stage"], name, first["op"], first["precision"], first["rule"], cost, gain, reason


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
