"""Writes the table of recipes in `recipes/README.md` out of what the recipes say and what was measured of them.

python -m recipes.catalogue            # after `python -m recipes.make`
python -m recipes.catalogue --check    # exit code 1 if the table is not what it would write
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from recipes.datasets.cache import replacing
from recipes.prepare import RECIPES, VERSION

PAGE, RESULTS = RECIPES / "README.md", RECIPES / "results"
BEGIN, END = "<!-- catalogue: `python -m recipes.catalogue` writes this -->", "<!-- end of the catalogue -->"
COLUMNS = ("recipe", "task", "modalities", "fusion", "data", "float", "edge", "latency", "size", "command")
BLANK = """\
A model that answers as well with one modality blank needs no fusion. Float, on the evaluation split; whole
numbers, such as the ids of words, have no blank:"""
PERCENT = frozenset({"accuracy", "f1_macro", "auroc", "agreement"})
"""Metrics that are shares; those of the recipes' own say so by lying from 0 to 1."""


def catalogue(recipes: Path = RECIPES, results: Path = RESULTS) -> str:
    """Returns the table in Markdown, a row per recipe by name; what was not measured is a dash.

    Raises:
        ValueError: A recipe has no `about`, or a record is of another way of training.
    """
    rows = [_row(file, _record(results / f"{file.stem}.json")) for file in sorted(recipes.glob("*.yaml"))]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def page_part() -> str:
    """Returns everything between the marks of `recipes/README.md`."""
    return f"{catalogue()}\n{BLANK}\n\n{blanks()}"


def blanks(results: Path = RESULTS) -> str:
    """Returns what the float models score with one modality blank, a row per recipe: does it need its fusion?"""
    lines = ["| recipe | both | one modality blank |", "| --- | --- | --- |"]
    for file in sorted(results.glob("*.json")):
        if (record := _record(file)) and record.get("blank"):
            metric, say = _metric(record), _say(record)
            blank = ", ".join(f"{name} {say(score)}" for name, score in record["blank"].items())
            lines.append(f"| `{record['recipe']}` | {metric} {say(record['accuracy']['float'])} | {blank} |")
    return "\n".join(lines) + "\n"


def _record(file: Path) -> Mapping[str, Any] | None:
    if not file.exists():
        return None
    record: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if record["trained"] != VERSION:
        raise ValueError(f"{file} is of a quick run or of other data ({record['trained']}): make it as it is.")
    return record


def _row(file: Path, record: Mapping[str, Any] | None) -> Sequence[str]:
    fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    about = fields.get("about")
    if not about:
        raise ValueError(f"{file} has no section `about`: say task, fusion and data.")
    data = f"**synthetic**: {about['data']}" if about.get("synthetic") else about["data"]
    measured = ("–",) * 4 if record is None else _measured(record)
    named = ", ".join(record["modalities"] if record else _modalities(fields))
    words = (f"[`{file.stem}`]({file.name})", about["task"], named, about["fusion"], data)
    return (*(w.replace("|", "/") for w in words), *measured, f"`python -m recipes.make {file.stem}`")


def _modalities(fields: Mapping[str, Any]) -> list[str]:
    return sorted({section["modality"] for section in fields.get("inputs", {}).values() if "modality" in section})


def _measured(record: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Returns the float model's score with the metric's name, what ships, and both ratios."""
    say = _say(record)
    before, after = (say(record["accuracy"][key]) for key in ("float", "variant"))
    also = "".join(f", {name} {value:.3g}" for name, value in record["also"].items())
    ratio = record["latency"]["ratio"]
    return (
        f"{_metric(record)} {before}",
        f"{after} {record['ships']['precision']}{also}",
        "–" if ratio is None else f"{ratio:.2f}",
        f"{record['size']['ratio']:.2f}",
    )


def _metric(record: Mapping[str, Any]) -> str:
    return str(record["metric"].rpartition(":")[2])


def _say(record: Mapping[str, Any]) -> Callable[[float], str]:
    """Returns what writes a score of this record: as a share of 100 where it is one."""
    scores = (record["accuracy"][key] for key in ("float", "variant"))
    share = _metric(record) in PERCENT or all(0 <= score <= 1 for score in scores)
    return (lambda score: f"{score:.1%}") if share else (lambda score: f"{score:.3g}")


def with_catalogue(page: str, table: str) -> str:
    """Returns the page with the table between its two marks.

    Raises:
        ValueError: A mark is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks one of the lines {BEGIN} and {END}.")
    return f"{before}{begin}\n\n{table}\n{end}{after}"


def main(words: Sequence[str] | None = None) -> int:
    """Writes the table, or says whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(words)
    page = PAGE.read_text(encoding="utf-8")
    wanted = with_catalogue(page, page_part())
    if page == wanted:
        return 0
    if options.check:
        print("the catalogue in recipes/README.md is old: python -m recipes.catalogue", file=sys.stderr)
        return 1
    with replacing(PAGE) as temporary:
        temporary.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
