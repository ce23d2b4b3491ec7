"""The command line that benchmarks by fixture share: names in, a table as it grows, results kept as JSON."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fixtures import FIXTURES
from edgemm.pipeline.provenance import measured_here, tool_versions

Row = dict[str, Any]


def run(
    about: str | None, row: Callable[[str, float], Row], show: Callable[[Sequence[Row]], None], seconds: float
) -> None:
    """Measures the named fixtures and prints a table.

    Args:
        about: For `--help`.
        row: Measures a fixture; the second argument is the length of each latency measurement.
        show: Prints rows.
        seconds: Default of `--seconds`.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIXTURES))
    parser.add_argument("--seconds", type=float, default=seconds, help="length of each latency measurement")
    parser.add_argument("--json", type=Path, help="where to keep the results")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for name in options.names or FIXTURES:
        rows.append(row(name, options.seconds))
        show(rows[-1:])
    print()
    show(rows)
    if options.json:
        keep(options.json, rows)


def keep(file: Path, rows: Sequence[Row]) -> None:
    """Writes rows as JSON, with the date, the machine and the versions of what made them."""
    record = {**measured_here(0), "tools": tool_versions(), "fixtures": rows}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
