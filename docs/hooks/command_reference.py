"""The command's own help as Markdown."""

import re

import typer
from typer.cli import get_docs_for_click

# Its import tells the package that Keras is not needed: the site is built where no backend is installed.
import efficientformer_command  # noqa: F401
from keras_efficientformer import cli
from keras_efficientformer.cli.on_demand import imported


def command_reference() -> str:
    """Each command of `efficientformer` under a heading, with its arguments and options."""
    command = imported(typer.main.get_command(cli.app))
    context = typer.Context(command, info_name="efficientformer")
    text = get_docs_for_click(obj=command, ctx=context, name="efficientformer")
    # The page's title stands above, and its table of contents lists the commands.
    text = re.sub(r"^# .*\n|\*\*Commands\*\*:\n\n(?:\* .*\n)+", "", text, flags=re.MULTILINE)
    return text.replace("```console\n$ ", "```sh\n")
