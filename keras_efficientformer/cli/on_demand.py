"""Commands that are imported when they are called, so that help and a wrong word are answered at once. Room: cli."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup


class GroupOnDemand(TyperGroup):
    """A group that imports the command that is called, and no other."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if isinstance(command, TyperGroup) else imported(command), rest


def add_on_demand(group: typer.Typer, name: str, function: str, summary: str) -> None:
    """Adds the command `function`, as "package.module:function", of which help shows `summary` without importing it."""

    def load() -> Any:
        module, _, attribute = function.partition(":")
        alone = typer.Typer(add_completion=False)
        alone.command(name)(getattr(import_module(module), attribute))
        return typer.main.get_command(alone)

    group.command(name, help=summary)(load)


def imported(command: Any) -> Any:
    """The command itself in place of its summary; of a group with all of its commands, as documentation wants it."""
    if not isinstance(command, TyperGroup):
        return command.callback()
    command.commands = {name: imported(inner) for name, inner in command.commands.items()}
    return command
