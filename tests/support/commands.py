"""The command's own account of itself, for tests of documents that name commands."""

import typer

from keras_efficientformer import cli
from keras_efficientformer.cli.on_demand import imported


def command_options(words: list[str]) -> set[str]:
    """The options of the command that these words begin with."""
    command = imported(typer.main.get_command(cli.app))
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    assert not hasattr(command, "commands"), f"no command: {words}"
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
