"""What every verb shares: how the command line ends, and what it says when it is called wrongly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from edgemm import __version__
from edgemm.cli import VERBS, cli, main
from edgemm.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
Edgemm = Callable[..., Any]


def test_version(edgemm: Edgemm) -> None:
    result = edgemm("--version")
    assert (result.code, result.err) == (0, "")
    assert result.out.split()[-1] == __version__


def test_every_verb_has_its_file() -> None:
    for name, reference in VERBS.items():
        assert reference == f"edgemm.cli.{name}:{name}"
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("convret", "convert"), ("insepct", "inspect"), ("Profile", "profile"), ("docter", "doctor")],
)
def test_mistyped_verb(edgemm: Edgemm, typed: str, meant: str) -> None:
    result = edgemm(typed)
    assert (result.code, result.out) == (2, "")
    assert f"no verb '{typed}'. did you mean '{meant}'?" in result.err


def test_unknown_verb_lists_them(edgemm: Edgemm) -> None:
    result = edgemm("xyzzy")
    assert result.code == 2
    assert f"no verb 'xyzzy'. verbs: {', '.join(VERBS)}" in result.err


@pytest.mark.parametrize("verb", [v for v in VERBS if v != "doctor"])
def test_mistyped_option(edgemm: Edgemm, verb: str) -> None:
    result = edgemm(verb, "--jsno", "x")
    assert (result.code, result.out) == (2, "")
    assert "No such option '--jsno'" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("verb", ["convert", "inspect", "run", "profile"])
def test_missing_file_is_an_error_not_a_traceback(
    edgemm: Edgemm, npz: Callable[..., Path], verb: str, tmp_path: Path
) -> None:
    options = ["--data", npz(x=np.zeros(3)), "-o", tmp_path / "y.npz"] if verb == "run" else []
    result = edgemm(verb, tmp_path / "gone.onnx", *options)
    assert (result.code, result.out) == (1, "")
    error, hint = result.err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert "gone.onnx" in error
    assert hint.startswith("hint:  ")


def ended(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int | str | None:
    """Returns the exit code of a `doctor` that raises `error`."""

    def fail(**_: Any) -> None:
        raise error

    command = cli.get_command(click.Context(cli), "doctor")
    assert command is not None
    monkeypatch.setattr(command, "callback", fail)
    with pytest.raises(SystemExit) as caught:
        main(["doctor"])
    return caught.value.code


def test_edgemm_error_is_text_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, DataError("x.npz: no samples.", hint="record some")) == 1
    assert capsys.readouterr() == ("", "error: x.npz: no samples.\nhint:  record some\n")


def test_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.strip() == "interrupted; nothing was written."


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        ended(monkeypatch, ZeroDivisionError("a bug"))


def test_closed_pipe_is_quiet(fusion_bundle: Path) -> None:
    shell = f"{sys.executable} -m edgemm inspect {fusion_bundle} --json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", shell],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "1"}
