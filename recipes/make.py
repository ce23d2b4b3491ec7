"""Trains, converts and scores the recipes of this folder; what is done already is not done again.

    python -m recipes.make                     # all of them; the weakest row comes first in the closing table
    python -m recipes.make imu av_digits       # these
    python -m recipes.make all --quick         # a few training steps each, to see that they run
    python -m recipes.make bilinear --data-root ~/data   # with your own CIFAR-10 and IMDb

A recipe is done again when its training script, its model, the code of its data or its YAML has changed. Every
step is a process of its own, so a recipe that fails takes none of the others with it. Trainings go side by side;
conversions measure, and go one after the other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recipes.datasets.cache import replacing
from recipes.prepare import (
    DATA,
    RECIPES,
    USUAL,
    Way,
    is_prepared,
    read_recipe,
    recipe_at,
    recipe_names,
    trained_in,
    training_digest,
)
from recipes.processes import StepError, run_module

RESULTS = RECIPES / "results"
SIDE_BY_SIDE = 4
"""Trainings at once, at most: each takes a gigabyte or more."""

console = Console(stderr=True, highlight=False)

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """Where a recipe is made.

    Attributes:
        name: Of the recipe.
        folder: Folder of the recipes' models, data and bundles.
        results: Folder of the records.
        way: How it is trained.
    """

    name: str
    folder: Path
    results: Path
    way: Way = USUAL

    @property
    def place(self) -> Path:
        """Folder of the model, its data and its bundle."""
        return self.folder / self.name

    @property
    def bundle(self) -> Path:
        """The converted model."""
        return self.place / f"{self.name}.edgemm"

    @property
    def record(self) -> Path:
        """What was measured, as JSON."""
        return self.results / f"{self.name}.json"

    def digest(self) -> str:
        """Returns a digest of everything that decides what comes out: code of the training, and the YAML."""
        fields = {key: value for key, value in read_recipe(self.name).items() if key != "about"}
        text = f"{training_digest(self.name)} {json.dumps(fields, sort_keys=True)} {self.way.mark}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def finished(self) -> Record | None:
        """Returns the record if this machine made it of what is there now."""
        made = self.place / "converted"
        if not (is_prepared(self.name, self.place, self.way) and self.bundle.exists() and made.exists()):
            return None
        if made.read_text() != self.digest() or not self.record.exists():
            return None
        record: Record = json.loads(self.record.read_text())
        return record if record["inputs"] == self.digest() else None


def train(work: Work, threads: int) -> None:
    """Makes the model and the data of a recipe, unless they are there.

    Raises:
        StepError: The training script fails.
    """
    quick = ("--quick",) if work.way.quick else ()
    own = ("--data-root", str(work.way.data_root)) if work.way.data_root else ()
    words = (work.name, "--folder", str(work.folder), "--threads", str(threads), *quick, *own)
    run_module("recipes.prepare", *words, folder=RECIPES.parent)


def make(work: Work) -> Record:
    """Returns what was measured of a trained recipe, after converting and scoring it.

    Raises:
        StepError: A step fails; the record of an earlier time stays as it is.
    """
    digest = work.digest()
    start = time.perf_counter()
    with console.status(f"{work.name}: converting"):
        recipe = str(recipe_at(work.name, work.place))
        words = ("convert", recipe, "-o", str(work.bundle), "--json", "--force")
        result = json.loads(run_module("edgemm", *words, folder=RECIPES.parent))
    record = {"recipe": work.name, "inputs": digest, "trained": work.way.mark, **summary(result)}
    record["also"] = _also(work)
    record["seconds"] = {
        "train": trained_in(work.place),
        "convert": round(time.perf_counter() - start, 1),
    }
    record |= _made_by()
    with replacing(work.record) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    (work.place / "converted").write_text(digest)
    return record


def summary(result: Record) -> Record:
    """Returns the small part of what `edgemm convert --json` prints that the catalogue is made of."""
    shipped = next(v for v in result["variants"] if v["refused"] is None)
    accuracy, latency = shipped["accuracy"], shipped["latency"] or {}
    before, after = result["float_size_bytes"], shipped["size_bytes"]
    return {
        "modalities": sorted({i["modality"] for i in result["inputs"] if i.get("modality")}),
        "parameters": sum(stage["parameters"] for stage in result["stages"]),
        "metric": accuracy["metric"],
        "samples": accuracy["samples"],
        "accuracy": {key: _short(accuracy[key]) for key in ("float", "variant", "drop", "budget")},
        "blank": {name: _short(found["float"]) for name, found in accuracy.get("blank", {}).items()},
        "latency": {key: _short(latency.get(key)) for key in ("float_ms", "variant_ms", "ratio")},
        "size": {"float_bytes": before, "edge_bytes": after, "ratio": _short(after / before)},
        "ships": {key: shipped[key] for key in ("name", "precision", "layout", "decisions")},
        "refused": {v["name"]: v["refused"] for v in result["variants"] if v["refused"]},
    }


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


def _also(work: Work) -> dict[str, float | None]:
    """Returns what training noted of the float model in `also.json`, and the metrics of the script's `ALSO`.

    Those of `ALSO` are of what ships, on the evaluation samples.
    """
    noted = work.place / "also.json"
    scores = (
        {name: _short(score) for name, score in json.loads(noted.read_text()).items()} if noted.exists() else {}
    )
    script = (RECIPES / "training" / f"{work.name}.py").read_text(encoding="utf-8")
    if not re.search(r"^ALSO\b", script, re.MULTILINE):
        return scores
    from importlib import import_module

    from edgemm.data import open_samples
    from edgemm.errors import EdgemmError
    from edgemm.metrics import evaluate, metric
    from edgemm.runtime import open_session

    fields = read_recipe(work.name)
    samples, label = open_samples(str(work.place / "eval.npz")), fields["data"].get("label")
    with open_session(work.bundle, cache="off") as session:
        for name in import_module(f"recipes.training.{work.name}").ALSO:
            chosen = metric(str(RECIPES / name) if ".py:" in name else name)
            output = fields["evaluate"].get("output")
            try:
                score = evaluate(session.run, session.io, samples, chosen, label=label, output=output, batch=1)
            except EdgemmError as error:
                raise StepError(f"{name} of ALSO: {error}") from error
            scores[name.rpartition(":")[2]] = _short(score)
    return scores


def _made_by() -> Record:
    from edgemm.pipeline.provenance import measured_here, tool_versions

    measured = measured_here(0)
    return {"created": measured["created"], "machine": measured["machine"], "tools": tool_versions()}


def weakest_first(records: Iterable[Record]) -> list[Record]:
    """Returns failures, then the records by how much slower than hoped they are; no latency is last."""

    def rank(record: Record) -> tuple[bool, float, float]:
        if "error" in record:
            return (False, 0.0, 0.0)
        lost = record["accuracy"]["drop"] > record["accuracy"]["budget"]
        return (True, -float(lost), -(record["latency"]["ratio"] or 0.0))

    return sorted(records, key=rank)


def train_all(works: Sequence[Work]) -> dict[Work, str]:
    """Trains what is not trained, side by side, each with its share of the cores; returns why some failed."""
    waiting = [w for w in works if not is_prepared(w.name, w.place, w.way)]
    if not waiting:
        return {}
    cores = os.cpu_count() or 1
    jobs = min(len(waiting), cores, SIDE_BY_SIDE)
    failed = {}
    with console.status("training"), ThreadPoolExecutor(jobs) as pool:
        try:
            futures = {pool.submit(train, work, min(2, cores // jobs)): work for work in waiting}
            for number, future in enumerate(as_completed(futures), 1):
                work = futures[future]
                try:
                    future.result()
                    said = f"{trained_in(work.place):.0f} s"
                except StepError as error:
                    failed[work] = str(error)
                    said = "failed"
                console.print(f"trained {number}/{len(waiting)} [bold]{work.name}[/]: {said}", soft_wrap=True)
        finally:
            pool.shutdown(cancel_futures=True)
    return failed


def make_all(works: Sequence[Work], *, again: bool = False) -> list[Record]:
    """Returns a record per recipe; one that fails has `error` and ends none of the others.

    Args:
        works: What to make, in order. Trainings go side by side, conversions, which measure, one after the other.
        again: Convert and score what is done as well.
    """
    done = {} if again else {w: record for w in works if (record := w.finished()) is not None}
    failed = train_all([w for w in works if w not in done])
    records = []
    for number, work in enumerate(works, 1):
        start = time.perf_counter()
        record, said = done.get(work), "done before"
        if record is None:
            try:
                if work in failed:
                    raise StepError(failed[work])
                record = make(work)
                said = f"{time.perf_counter() - start:.0f} s"
            except StepError as error:
                record, said = {"recipe": work.name, "error": str(error)}, f"[red]failed[/]: {error}"
        records.append(record)
        console.print(f"{number}/{len(works)} [bold]{work.name}[/]: {said}", soft_wrap=True)
    return records


def show(records: Sequence[Record]) -> Table:
    """Returns the closing table."""
    table = Table(box=None, pad_edge=False)
    columns = ("recipe", "metric", "float", "edge", "ms float", "ms edge", "ratio", "size", "train s", "convert s")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    for record in records:
        if "error" in record:
            table.add_row(record["recipe"], "failed")
            continue
        accuracy, latency, took = record["accuracy"], record["latency"], record["seconds"]
        numbers = (accuracy["float"], accuracy["variant"], latency["float_ms"], latency["variant_ms"])
        cells = (*numbers, latency["ratio"], record["size"]["ratio"])
        table.add_row(
            record["recipe"],
            record["metric"].rpartition(":")[2],
            *("" if cell is None else f"{cell:.4g}" for cell in cells),
            *("" if s is None else f"{s:.0f}" for s in (took["train"], took["convert"])),
        )
    return table


def main(words: Sequence[str] | None = None) -> int:
    """Makes the named recipes; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default="all", choices=["all", *recipe_names()], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="train a few steps on a few samples")
    parser.add_argument("--data-root", type=Path, help="folder with your own copy of the data, where one is read")
    parser.add_argument("--folder", type=Path, help="models, data and bundles (default: .cache/edgemm/fixtures)")
    parser.add_argument("--results", type=Path, help="records (default: recipes/results, or FOLDER/results)")
    parser.add_argument("--again", action="store_true", help="convert and score what is done, too")
    parser.add_argument("--json", action="store_true", help="the records on stdout instead of a table")
    options = parser.parse_args(words)
    warnings.simplefilter("ignore")
    way = Way(options.quick, options.data_root and options.data_root.resolve())
    folder = (options.folder or (DATA if way.is_usual else DATA.parent / "other")).resolve()
    usual = RESULTS if way.is_usual and folder == DATA.resolve() else folder / "results"
    results = (options.results or usual).resolve()
    names = recipe_names() if "all" in options.names else list(dict.fromkeys(options.names))
    start = time.perf_counter()
    works = [Work(name, folder, results, way) for name in names]
    records = weakest_first(make_all(works, again=options.again))
    if options.json:
        print(json.dumps(records, indent=1))
    else:
        Console(width=120).print(show(records))
    for record in records:
        if "error" in record:
            console.print(f"{record['recipe']}: {record['error']}", soft_wrap=True)
    minutes = (time.perf_counter() - start) / 60
    console.print(f"{len(names)} recipes in {minutes:.1f} minutes")
    return int(any("error" in record for record in records))


if __name__ == "__main__":
    sys.exit(main())
