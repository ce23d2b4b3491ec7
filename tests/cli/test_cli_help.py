"""The help texts, word for word: they are the manual that everybody reads.

After a deliberate change: `EDGEMM_UPDATE_GOLDEN=1 pytest tests/cli/test_cli_help.py`, and read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from edgemm.cli import cli

GOLDEN = Path(__file__).parent / "golden"
VERBS = ("inspect", "build", "run", "profile", "targets", "check", "doctor")


def help_text(verb: str) -> str:
    context = click.Context(cli, info_name="edgemm", terminal_width=88, help_option_names=["-h", "--help"])
    command = cli.get_command(context, verb)
    assert command is not None
    child = click.Context(
        command, parent=context, info_name=verb, terminal_width=88, help_option_names=["-h", "--help"]
    )
    return command.get_help(child) + "\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str) -> None:
    path, text = GOLDEN / f"help_{verb}.txt", help_text(verb)
    if os.environ.get("EDGEMM_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_says_what_it_does(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.help.endswith("."), parameter.name
    assert f"edgemm {verb}" in (command.epilog or "")


def test_help_in_a_process_of_its_own(edgemm_process) -> None:
    result = edgemm_process("profile", "--help")
    assert result.code == 0
    assert "Examples:" in result.out
    assert result.err == ""
