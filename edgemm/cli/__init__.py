"""The command line: one file per verb, loaded when the verb is called."""

from __future__ import annotations

import logging
import sys
import warnings

import click

from edgemm import __version__
from edgemm.cli._lazy import LazyGroup
from edgemm.errors import EdgemmError

VERBS = {
    "convert": "edgemm.cli.convert:convert",
    "plan": "edgemm.cli.plan:plan",
    "recipe": "edgemm.cli.recipe:recipe",
    "calib": "edgemm.cli.calib:calib",
    "inspect": "edgemm.cli.inspect:inspect",
    "build": "edgemm.cli.build:build",
    "run": "edgemm.cli.run:run",
    "compare": "edgemm.cli.compare:compare",
    "profile": "edgemm.cli.profile:profile",
    "targets": "edgemm.cli.targets:targets",
    "check": "edgemm.cli.check:check",
    "doctor": "edgemm.cli.doctor:doctor",
}


EPILOG = """\b
A working day:
  edgemm convert model.pt2 --calib calib.npz --eval eval.npz --label label
  edgemm inspect model.edgemm
  edgemm run model.edgemm --data eval.npz -o outputs.npz
  edgemm compare model.onnx model.edgemm --data eval.npz
  edgemm profile model.edgemm
"""


@click.group(
    cls=LazyGroup,
    verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
@click.version_option(__version__, prog_name="edgemm")
def cli() -> None:
    """Take a trained multimodal fusion model to the edge."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; an EdgemmError becomes text on stderr and exit code 1, Ctrl-C exit code 130.

    A reader that closes the pipe early ends it quietly with exit code 1; click sees to that.
    """
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what torch warns of, edgemm checks; -W shows them
    try:
        code = cli.main(args=argv, prog_name="edgemm", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; nothing was written.", err=True)
        code = 130
    except EdgemmError as error:
        click.echo(f"error: {error}", err=True)
        click.echo(f"hint:  {error.hint}", err=True)
        code = 1
    except MemoryError as error:
        click.echo(f"error: out of memory: {str(error) or 'no more to be had'}", err=True)
        click.echo("hint:  use a smaller batch, fewer samples at once, or a machine with more", err=True)
        code = 1
    sys.exit(code or 0)
