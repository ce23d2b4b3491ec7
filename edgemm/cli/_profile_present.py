"""What `edgemm profile` does with its numbers: compares them, holds them against a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edgemm.profiling.budget import Limit, Outcome
    from edgemm.profiling.fail_if import Condition

F = TypeVar("F", bound=Callable[..., Any])

BROKEN = 2
"""Exit code where a budget is broken or a comparison fails."""

_OPTIONS = [
    click.option(
        "--compare",
        metavar="B",
        help="A second build, run interleaved with FILE: a bundle, BUNDLE:VARIANT, an .onnx file; or a saved "
        "report (.json), where only a difference of over 25% counts.",
    ),
    click.option(
        "--fail-if",
        metavar="CONDITION",
        help="With --compare: exit code 2 when slower>5% (than B), memory>10%, or drop>0.5% (of the metric).",
    ),
    click.option("--label", metavar="NAME", help="With --compare: label array in --data, to score both."),
    click.option(
        "--metric",
        metavar="NAME",
        help="With --compare: accuracy, f1_macro, auroc, mae, mse, agreement, cosine or FILE.py:FUNC.",
        show_default="accuracy with integer labels, mae with float ones",
    ),
    click.option("--output-name", metavar="NAME", help="Output that is scored.", show_default="the first"),
    click.option(
        "--budget",
        metavar="LIMITS",
        help="Exit code 2 unless all are kept: 'p99<30ms,memory<500MB,energy<5mJ', 'paced.missed<1%'.",
    ),
    click.option(
        "--html", metavar="FILE", type=click.Path(path_type=Path), help="Write the report as one page, too."
    ),
]

_OF_ONE_BUILD = ("budget", "html", "csv", "trace", "rates", "cached", "scenario")
_OF_A_COMPARISON = ("fail_if", "label", "metric", "output_name")


def presenting_options(command: F) -> F:
    """Adds the options of this module to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Presenting:
    """What was asked for besides the numbers.

    Attributes:
        limits: Of `--budget`.
        against: What `--compare` names, or None.
        conditions: Of `--fail-if`.
    """

    limits: tuple[Limit, ...]
    against: str | None
    conditions: tuple[Condition, ...]


def read_presenting(options: Mapping[str, Any]) -> Presenting:
    """Returns what the options of this module ask for, checked before anything is measured.

    Raises:
        click.UsageError: Options that contradict each other.
        DataError: A budget or condition that cannot be read.
    """
    from edgemm.profiling.budget import parse_budget
    from edgemm.profiling.fail_if import parse_conditions

    against = options["compare"]
    for name in _OF_A_COMPARISON if against is None else _OF_ONE_BUILD:
        if options.get(name) not in (None, ()):
            option = f"--{name.replace('_', '-').removesuffix('s')}"
            raise click.UsageError(
                f"{option} is for --compare."
                if against is None
                else f"{option} is about one build, not --compare."
            )
    scored = options["label"] is not None or options["metric"] is not None
    if scored and options["data"] is None:
        raise click.UsageError("--label and --metric need --data.")
    if scored and str(against).endswith(".json"):
        raise click.UsageError("a saved report has no outputs to score; leave out --label and --metric.")
    conditions = parse_conditions(options["fail_if"]) if options["fail_if"] is not None else ()
    if not scored and any(c.name == "drop" for c in conditions):
        raise click.UsageError("--fail-if 'drop>...' needs --data, and --label or --metric.")
    limits = parse_budget(options["budget"]) if options["budget"] is not None else ()
    return Presenting(limits, against, conditions)


def show_comparison(file: Path, asked: Presenting, options: Mapping[str, Any], *, as_json: bool) -> None:
    """Measures FILE against `--compare`, prints what came out, and ends with exit code 2 where that fails.

    Raises:
        EdgemmError: One does not open, or the data does not fit.
    """
    from edgemm.cli._output import echo_json, warn
    from edgemm.cli._profile_compare import compare_files, render_comparison

    comparison = compare_files(file, options, asked.conditions)
    if as_json:
        echo_json(comparison)
    else:
        click.echo(render_comparison(comparison))
        for text in comparison["warnings"]:
            warn(text)
    end_if_broken(condition["fails"] for condition in comparison["fail_if"])


def judge(report: dict[str, Any], asked: Presenting) -> tuple[Outcome, ...]:
    """Holds a report against the budget, and adds what came out as `report["budget"]`, where there is one."""
    from edgemm.profiling.budget import check_budget

    outcomes = check_budget(asked.limits, report)
    if outcomes:
        report["budget"] = [outcome.to_json() for outcome in outcomes]
    return outcomes


def render_budget(outcomes: tuple[Outcome, ...]) -> list[str]:
    """Returns the budget as a table, what was asked and got, behind an empty line; nothing without one."""
    from edgemm.cli._output import table

    marks = {True: click.style("kept", fg="green"), False: click.style("broken", fg="red")}
    missing = click.style("not kept", fg="red")
    rows = [
        [o.limit.text, *(("-", f"{missing}: {o.why}") if o.got is None else (o.got_text, marks[o.kept]))]
        for o in outcomes
    ]
    return ["", table(["budget", "got", ""], rows)] if rows else []


def end_if_broken(broken: Iterable[bool]) -> None:
    """Ends the command with exit code 2 where anything is broken."""
    if any(broken):
        click.get_current_context().exit(BROKEN)
