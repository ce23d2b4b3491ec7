"""Groups of verbs that are loaded when they are called."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import click

from edgemm.errors import did_you_mean


class LazyGroup(click.Group):
    """Loads a verb's module when it is called, so that `--help` needs no optional package."""

    def __init__(
        self, *args: Any, verbs: Mapping[str, str], guess: Callable[[str], str] | None = None, **named: Any
    ) -> None:
        """Begins a group.

        Args:
            *args: As `click.Group`.
            verbs: Verb -> `"module:attribute"`, in the order in which they are listed.
            guess: What was meant by something that is no verb, as a hint; `""` or None for the closest verb.
            **named: As `click.Group`.
        """
        super().__init__(*args, **named)
        self._verbs = verbs
        self._guess = guess

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the verbs in order."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command called `cmd_name`, or None."""
        if cmd_name not in self._verbs:
            return None
        module, _, attribute = self._verbs[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Resolves the verb; a mistyped one is answered with the closest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            hint = self._guess(args[0]) if self._guess is not None else ""
            hint = hint or did_you_mean(args[0], self._verbs, f"verbs: {', '.join(self._verbs)}")
            raise click.UsageError(f"no verb '{args[0]}'. {hint}", ctx=ctx) from error
