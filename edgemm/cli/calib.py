"""`edgemm calib`: what is in a set of samples, and a small part of it that stands for the whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgemm.data.subset import Choice
    from edgemm.data.survey import Survey

INSPECT_EPILOG = """\b
Examples:
  edgemm calib inspect calib.npz
  edgemm calib inspect drive.yaml --label class
  edgemm calib inspect pairs.csv --model model.edgemm --json
"""

SAMPLE_EPILOG = """\b
Examples:
  edgemm calib sample train.yaml -o small.npz --count 200 --label label
  edgemm calib sample train.npz -o small.npz --model model.edgemm --licence CC-BY-4.0
"""


@click.group(short_help="Look into calibration data, choose a small part of it.")
def calib() -> None:
    """Look into calibration data, or choose a small part of it that stands for the whole."""


@calib.command(epilog=INSPECT_EPILOG, short_help="Show what is in a set of samples.")
@click.argument("data")
@click.option("--label", metavar="NAME", help="Array of the labels.", show_default="label, class or target")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Compare samples by what this bundle's encoders make of them.",
    show_default="by raw values",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the text.")
def inspect(data: str, label: str | None, model: Path | None, as_json: bool) -> None:
    """Show statistics, silence, labels, coverage, duplicates and outliers of DATA.

    DATA is whatever --calib takes. Every sample is read once; the samples are not kept in memory. Near duplicates
    are closer than 5 % of the distance of two random samples in every input; an outlier is a row whose mean,
    deviation, minimum or maximum, or the distance to its nearest neighbour, has a robust z above 6.
    """
    from contextlib import nullcontext

    from edgemm.cli._output import echo_json
    from edgemm.cli._progress import RichProgress
    from edgemm.data import open_samples
    from edgemm.data.embeddings import Encoders
    from edgemm.data.survey import survey

    samples = open_samples(data)
    with Encoders(model) if model else nullcontext() as encoders, RichProgress() as progress:
        found = survey(
            samples,
            label=label,
            encoders=encoders,
            step=lambda done: progress.bar("read", done, len(samples)),
        )
    if as_json:
        echo_json(found.to_json())
    else:
        click.echo(render(found))


def render(found: Survey) -> str:
    """Returns a survey as text for people."""
    from edgemm.cli._output import count, table

    lines = [
        f"{click.style(found.origin, bold=True)}   {count(found.samples, 'sample')}   {found.digest[:12]}",
        "",
    ]
    header = ["array", "dtype", "row", "min", "max", "mean", "std", "NaN", "Inf", "silent"]
    rows = []
    for name, a in found.arrays.items():
        numbers = map(_number, (a.minimum, a.maximum, a.mean, a.std))
        odd = (str(a.nan or ""), str(a.inf or ""), f"{a.silent:.1%}" if a.silent else "")
        rows.append([name, a.dtype, _shape(a.smallest, a.largest), *numbers, *odd])
    lines.append(table(header, rows, right=header[3:]))
    constant = [name for name, a in found.arrays.items() if a.constant]
    lines += [f"constant    {', '.join(constant)}"] if constant else []
    for name, a in found.arrays.items():
        if a.counts:
            few = list(a.counts.items())[:20]
            more = f" and {len(a.counts) - 20} more" if len(a.counts) > 20 else ""
            lines.append(f"{'labels' if name == found.label else 'values'}      {name}: {_counts(few)}{more}")
    lines += [
        "",
        *_coverage(found),
        *_same(found),
        *_outliers(found),
        *(f"note        {note}" for note in found.notes),
    ]
    return "\n".join(lines).rstrip()


def _shape(smallest: tuple[int, ...], largest: tuple[int, ...]) -> str:
    sizes = [str(a) if a == b else f"{a}..{b}" for a, b in zip(smallest, largest, strict=True)]
    return f"[{','.join(sizes)}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _counts(items: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} × {number:,}" for name, number in items)


def _coverage(found: Survey) -> list[str]:
    return [
        f"coverage    {name}: {c['used']:,} of {c['found']:,} used"
        + (f"; {c['unmatched']:,} samples lack it" if c["unmatched"] else "")
        + (f" ({c['why']})" if c["why"] and (c["unmatched"] or c["used"] != c["found"]) else "")
        for name, c in found.coverage.items()
    ]


def _same(found: Survey) -> list[str]:
    copies = sum(len(group) - 1 for group in found.duplicates)
    groups = "; ".join(
        " = ".join(map(str, g[:4])) + (" = ..." if len(g) > 4 else "") for g in found.duplicates[:5]
    )
    lines = [
        f"duplicates  {copies:,}"
        + (f" (samples {groups}{'; ...' if len(found.duplicates) > 5 else ''})" * bool(copies))
    ]
    if found.contradictions:
        pairs = "; ".join(" = ".join(map(str, g[:4])) for g in found.contradictions[:5])
        lines.append(f"            of these with different labels: {pairs}")
    shown = "; ".join(f"{a} ~ {b} ({d:.3f})" for a, b, d in found.near[:5])
    by = f", {found.compared:,} samples compared by {found.by}"
    lines.append(f"near        {found.near_count:,}{by}" + (f": {shown}" if shown else ""))
    return lines


def _outliers(found: Survey) -> list[str]:
    lines = [f"outliers    {found.outlier_count:,}"]
    for o in found.outliers[:5]:
        what = f"'{o.array}' has {o.statistic}" if o.array else f"{o.statistic} to its nearest neighbour"
        lines.append(f"            {o.where}: {what} {o.value:.4g} (robust z {o.z:+.1f})")
    return lines


@calib.command(epilog=SAMPLE_EPILOG, short_help="Choose a small part that stands for the whole.")
@click.argument("data")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="File to write, .npz."
)
@click.option("--count", type=click.IntRange(min=1), default=200, show_default=True, help="Samples to choose.")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Choose by what this bundle's encoders make of them.",
    show_default="by raw values",
)
@click.option(
    "--label", metavar="NAME", help="Array whose values keep their shares.", show_default="label, class or target"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the choice.")
@click.option("--licence", metavar="TEXT", help="Licence of the data, for the card.", show_default="unknown")
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the text.")
def sample(data: str, output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Choose samples of DATA that stand for all, and write them with a card beside them (FILE.card.yaml).

    Each next sample is the one farthest from all that were chosen (k-centre greedy), so that rare situations are
    among them; a label keeps its share. What is rare may be a fault: take that out first, as `calib inspect` shows
    it. Only NaN and Inf are left out here. The card has origin, licence, seed, counts and sha256.
    """
    from edgemm._optional import require
    from edgemm.cli._output import echo_json, refuse_to_overwrite, refuse_to_touch, write_file
    from edgemm.data import open_samples
    from edgemm.data.subset import card, gather, npz_bytes

    if output.suffix != ".npz":
        raise click.BadParameter(f"got '{output}', expected a name that ends in .npz.", param_hint="-o")
    beside = output.with_suffix(".card.yaml")
    for path in (output, beside):
        refuse_to_overwrite(path, force=force)
        refuse_to_touch(path, [Path(data)])
    yaml = require("yaml", extra="data", why="write a card")
    samples = open_samples(data)
    choice, facts = _choose(samples, Path(data).name, options)
    arrays = gather(samples, choice.indices)
    content = npz_bytes(arrays)
    told = card(arrays, content, facts)
    text = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, default_flow_style=None).encode()
    write_file(output, lambda file: _write(file, content), force=force)
    write_file(beside, lambda file: _write(file, text), force=force)
    if as_json:
        echo_json({"output": str(output), "card": told, "indices": list(choice.indices)})
    else:
        click.echo(_told(output, beside, told))


def _write(file: Any, content: bytes) -> None:
    file.write(content)


def _choose(samples: Any, name: str, options: dict[str, Any]) -> tuple[Choice, dict[str, Any]]:
    """Returns the choice among all samples, and what the card says of it."""
    from contextlib import nullcontext

    from edgemm import __version__
    from edgemm.cli._progress import RichProgress
    from edgemm.data.embeddings import Encoders
    from edgemm.data.subset import choose_from

    model = options["model"]
    with Encoders(model, options["seed"]) if model else nullcontext() as encoders, RichProgress() as progress:
        choice, facts = choose_from(
            samples,
            options["count"],
            label=options["label"],
            seed=options["seed"],
            encoders=encoders,
            step=lambda done: progress.bar("read", done, len(samples)),
        )
    head = {"origin": name, "licence": options["licence"] or "unknown"}
    return choice, head | facts | {"edgemm": __version__}


def _told(output: Path, beside: Path, told: dict[str, Any]) -> str:
    from edgemm.cli._output import megabytes

    labels = told["labels"]
    lines = [
        f"{output}: {told['samples']:,} of {told['of']:,} samples, {megabytes(told['bytes'])}",
        f"chosen by   {told['by']}; farthest sample {told['radius']:.3f} from a chosen one "
        f"({told['random_radius']:.3f} when drawn at random; two random samples are 1 apart)",
    ]
    if labels:
        lines.append(f"labels      {_counts(list(labels.items())[:20])}")
    if told["left_out"]:
        lines.append(f"left out    {told['left_out']:,} with NaN or Inf")
    return "\n".join([*lines, f"card        {beside}"])
