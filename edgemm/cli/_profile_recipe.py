"""`edgemm profile`: what a bundle's own recipe says of profiling stands in for options that are not given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

_FILE = "recipe.json"
_PLAIN = ("warmup", "reset_every", "budget")


def with_recipe(file: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options with those of the bundle's `recipe.json` in the place of what is not given.

    Nothing is taken from a file that is no bundle, or where two builds are compared. What is taken is said on
    stderr.

    Raises:
        BundleError: The bundle has no readable manifest.
    """
    filled = dict(options)
    if options["no_recipe"] or options["compare"] is not None or not (file / _FILE).is_file():
        return filled
    from edgemm.bundle import read_manifest
    from edgemm.bundle.store import file_sha256

    manifest = read_manifest(file)
    if manifest.files.get(_FILE, {}).get("sha256") != file_sha256(file / _FILE):
        return filled  # what opens the bundle says that it is damaged
    recipe = json.loads((file / _FILE).read_text(encoding="utf-8"))
    section = recipe.get("profile") or {}
    taken: dict[str, Any] = {key: section[key] for key in _PLAIN if section.get(key) is not None}
    if options["runs"] is None and options["seconds"] is None:
        taken |= {key: section[key] for key in ("runs", "seconds") if section.get(key) is not None}
    rates = section.get("rates")
    if rates is None:
        known = manifest.io.modalities  # by the names that an app feeds, which `source` may give
        inputs = [(i.get("source") or n, i.get("rate")) for n, i in (recipe.get("inputs") or {}).items()]
        rates = {known[name]: rate for name, rate in inputs if rate and name in known}
    if rates:
        taken["rates"] = (",".join(f"{modality}={rate:g}" for modality, rate in rates.items()),)
    if section.get("cached"):
        taken["cached"] = tuple(section["cached"])
    taken = {key: value for key, value in taken.items() if options[key] in (None, ())}
    if taken:
        words = ", ".join(f"{key} {', '.join(v) if isinstance(v, tuple) else v}" for key, v in taken.items())
        click.echo(f"by the bundle's recipe (--no-recipe leaves it out): {words}", err=True)
    return filled | taken
