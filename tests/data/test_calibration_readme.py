"""calibration/README.md is true: its description files are read, its settings are those that there are."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from edgemm.cli import cli
from edgemm.data.readers import FORMS
from edgemm.data.readers.description import PLACE_OF, read_description
from edgemm.data.readers.rules import PLACES, Rule

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "calibration" / "README.md").read_text()
BLOCKS = re.findall(r"((?:^    .*\n)+)", README, re.MULTILINE)
DESCRIPTIONS = [yaml.safe_load(block) for block in BLOCKS if block.startswith("    source:")]


def test_there_are_description_files_to_read():
    assert len(DESCRIPTIONS) >= 5


@pytest.mark.parametrize("content", DESCRIPTIONS, ids=lambda content: content["source"])
def test_description_files_are_read(content, tmp_path):
    (tmp_path / content["source"]).touch()
    places = {key for rule in content["inputs"].values() for key in rule if key in PLACES}
    content = {"form": next(form for form, place in PLACE_OF.items() if {place} == places), **content}
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(content))
    description = read_description(tmp_path / "d.yaml")
    assert set(description.inputs) == set(content["inputs"])
    assert (description.align is not None) == ("align" in content)


def test_settings_are_those_of_a_rule():
    rows = re.findall(r"^\| (`.*?) \|", README.split("## .npz")[0], re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    assert named == {f.name for f in fields(Rule) if f.name not in ("name", "at")} | set(PLACES)


def test_every_form_is_opened_and_has_places():
    import importlib

    assert set(FORMS) == set(PLACE_OF)
    for target in FORMS.values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_verbs_and_links():
    calib = cli.get_command(None, "calib")
    for verb in re.findall(r"edgemm calib (\w+)", README):
        assert verb in calib.commands
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / "calibration" / target).exists()
