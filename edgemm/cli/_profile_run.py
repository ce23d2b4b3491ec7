"""`edgemm profile`: opens what is to be measured, makes its inputs, and has it measured."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgemm.profiling.session import Measurement, Plan
    from edgemm.runtime.cache import CacheMode
    from edgemm.runtime.fusion import FusionSession
    from edgemm.runtime.session import SessionOptions


def measure_file(file: Path, options: Mapping[str, Any]) -> Measurement:
    """Returns every measurement of one profile: the report of `docs/latency-report.md`, and the runs.

    Args:
        file: A bundle or an ONNX file.
        options: `data`, `runs`, `seconds`, `batch`, `dims`, `reset_every`, `target`, `variant`, `threads`,
            `warmup`, `rates`, `cached`, and those of `_profile_layers`: see the command.

    Raises:
        EdgemmError: The file does not open, or the data does not fit it.
    """
    from time import perf_counter

    from edgemm import __version__
    from edgemm.cli._profile_layers import further_measurements
    from edgemm.profiling.resources import ResourceWatch
    from edgemm.profiling.session import Measurement, profile_session, session_facts
    from edgemm.runtime.machine import describe_machine

    watch, machine = ResourceWatch(), describe_machine()
    start = perf_counter()
    session = open_file(file, options)
    load = perf_counter() - start
    with session:
        feeds, given = make_feeds(session, options)
        plan = replace(make_plan(options), reopen=partial(open_file, file, options, cache="marks"))
        if sys.stderr.isatty():
            click.echo(f"measuring {file}{_how_long(plan)} ...", err=True)
        found = profile_session(session, feeds, plan, watch)
        report = {
            **session_facts(session),
            "file": str(file),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "edgemm": __version__,
            "threads": options["threads"],
            "machine": machine.to_json(),
            "machine_summary": machine.summary(),
            **given,
            "reset_every": options["reset_every"],
            "load_ms": load * 1e3,
            "cold_start_ms": load * 1e3 + found.report["first_call_ms"],
            **found.report,
        }
        singles = partial(make_feeds, session, {**options, "batch": None})
        own = {**options, "variant": session.variant.name if file.is_dir() else None}
        reopen = partial(open_file, file, own, "off")
        report |= further_measurements(file, session, feeds, lambda: singles()[0], options, reopen)
    watch.close()
    return Measurement(report, found.runs)


def open_file(
    file: Path, options: Mapping[str, Any], cache: CacheMode = "off", extra: SessionOptions | None = None
) -> FusionSession:
    """Returns a session on what the options of the command name; `extra` says more of how it is opened.

    Raises:
        EdgemmError: It does not open.
    """
    from edgemm.runtime import open_session

    asked = {name: options[name] for name in ("target", "threads", "variant")}
    return open_session(file, cache=cache, options=extra, **asked)


def make_plan(options: Mapping[str, Any]) -> Plan:
    """Returns what the options of the command ask for.

    Raises:
        click.BadParameter: A rate that cannot be read.
    """
    from edgemm.profiling.session import Plan
    from edgemm.profiling.warmup import WarmupRule

    return Plan(
        runs=options["runs"],
        seconds=options["seconds"],
        warmup=WarmupRule(fixed=options["warmup"]),
        reset_every=options["reset_every"] or 0,
        rates=parse_rates(options["rates"]),
        cached=tuple(dict.fromkeys(name for text in options["cached"] for name in text.split(",") if name)),
        spread=options["data"] is not None,
    )


def parse_rates(texts: Iterable[str]) -> dict[str, float]:
    """Returns modality -> samples a second, from texts like `"camera=30,lidar=10"`.

    Raises:
        click.BadParameter: A text that is not of this form, or a modality that is given twice.
    """
    rates: dict[str, float] = {}
    for pair in (pair for text in texts for pair in text.split(",")):
        name, _, value = pair.partition("=")
        try:
            rate = float(value)
        except ValueError:
            rate = None
        if not name or rate is None:
            raise click.BadParameter(
                f"got '{pair}', expected MODALITY=HZ, for example camera=30,lidar=10.", param_hint="--rate"
            )
        if name in rates:
            raise click.BadParameter(f"'{name}' is given twice.", param_hint="--rate")
        rates[name] = rate
    return rates


def make_feeds(session: FusionSession, options: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Returns the feeds to cycle over, and what to say of them.

    Raises:
        click.UsageError: Options that contradict each other.
        DataError: The data does not fit the model.
    """
    from edgemm.cli._feeds import check_batch, chosen_sizes, data_feeds
    from edgemm.data import checked_sizes, open_samples, random_feed

    io = session.io
    sizes = dict(_dimension(text) for text in options["dims"])
    if io.batch in sizes:
        raise click.UsageError(f"--dim {io.batch}: this is the batch; set it with --batch.")
    batch = options["batch"] or (io.batch if isinstance(io.batch, int) else 1)
    if batch != io.batch:
        check_batch(io, batch)
    if options["data"] is None:
        known = chosen_sizes(io, batch, sizes, checked_sizes(session.manifest.info.get("dynamic", {})))
        feed = random_feed(io, known, batch=batch)
        assumed = [n for n in known if n not in sizes and n != io.batch]
        return [feed], {"inputs": "random", "samples": 0, "batch": batch, "dims": known, "assumed_dims": assumed}
    if sizes:
        raise click.UsageError("--dim is for random inputs; with --data the data has the sizes.")
    samples = open_samples(options["data"])
    feeds = data_feeds(io, samples, batch)
    used = min(len(feeds) * batch, len(samples))
    said = {"inputs": options["data"], "samples": used, "of_samples": len(samples), "batch": batch}
    return feeds, {**said, "dims": None, "assumed_dims": []}


def _dimension(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if not name or not size.isdigit() or int(size) < 1:
        raise click.BadParameter(f"got '{text}', expected NAME=SIZE with a size of 1 or more.", param_hint="--dim")
    return name, int(size)


def _how_long(plan: Plan) -> str:
    """Returns how long the paced mode takes, where that is long."""
    if not plan.rates or not all(0 < rate < math.inf for rate in plan.rates.values()):
        return ""
    period = 1 / max(plan.rates.values())
    seconds = plan.calls(period) * period
    return f", paced for {seconds:,.0f} s" if seconds > 5 else ""
