"""Steps in processes of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from recipes.processes import StepError, run_module


def test_a_module_gives_its_stdout_and_runs_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"here": [1, 2]}')
    before = os.getcwd()
    assert json.loads(run_module("json.tool", "a.json", folder=tmp_path)) == {"here": [1, 2]}
    assert os.getcwd() == before


def test_a_module_that_fails_says_what_it_said_last(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(StepError, match="Expecting property name"):
        run_module("json.tool", "a.json", folder=tmp_path)
