"""The command `efficientformer`: arguments in, one call of the library, one printed report out.

Exit codes: 0 done, 1 the file or image is not fit or the result not good enough, 2 wrong usage. Reports go to standard
output, as a table or with --json as JSON; progress and errors go to standard error. What takes seconds to import is
imported by the library when a command calls it, never here. Room: cli.
"""

import sys
from typing import Annotated

import typer
from rich.text import Text

import keras_efficientformer
from keras_efficientformer.backend_choice import missing_backend
from keras_efficientformer.cli.apps.android import android_command
from keras_efficientformer.cli.apps.ios import ios_command
from keras_efficientformer.cli.apps.web import web_command
from keras_efficientformer.cli.convert import convert
from keras_efficientformer.cli.evaluate import evaluate
from keras_efficientformer.cli.export_coreml import export_coreml_command
from keras_efficientformer.cli.export_tflite import export_tflite_command
from keras_efficientformer.cli.finetune import finetune
from keras_efficientformer.cli.inspect import inspect
from keras_efficientformer.cli.measurements.benchmark_coreml import benchmark_coreml_command
from keras_efficientformer.cli.measurements.benchmark_tflite import benchmark_tflite_command
from keras_efficientformer.cli.measurements.compare import compare
from keras_efficientformer.cli.options import errors
from keras_efficientformer.cli.photographs.embed import embed
from keras_efficientformer.cli.photographs.predict import predict
from keras_efficientformer.cli.push import push
from keras_efficientformer.errors import ExportError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
export = typer.Typer(help="Write a file for phones, run it and compare it with the Keras model.", no_args_is_help=True)
export.command("tflite")(export_tflite_command)
export.command("coreml")(export_coreml_command)
benchmark = typer.Typer(help="Time a model here, on phones or on an emulated CPU.", no_args_is_help=True)
benchmark.command("tflite")(benchmark_tflite_command)
benchmark.command("coreml")(benchmark_coreml_command)
applications = typer.Typer(help="Write an app around a model.", no_args_is_help=True)
applications.command("android")(android_command)
applications.command("ios")(ios_command)
applications.command("web")(web_command)
for command in (convert, predict, embed, inspect, finetune, evaluate, compare, push):
    app.command()(command)
app.add_typer(export, name="export")
app.add_typer(benchmark, name="benchmark")
app.add_typer(applications, name="app")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(keras_efficientformer.__version__)
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the libraries log; at any place.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """EfficientFormer and EfficientFormerV2: convert checkpoints, classify, fine-tune, and export for phones."""


def main(*command: str) -> None:
    """Runs the command line, or one of its commands with the arguments of this process.

    Failures that a user can mend are one line, without a traceback.
    """
    try:
        app([*command, *sys.argv[1:]])
    except (ValueError, OSError, ImportError, ExportError) as error:
        message = (isinstance(error, ImportError) and missing_backend(error)) or error
        # The message is not read as markup, because paths and shapes are full of brackets.
        errors.print(Text.assemble(("error: ", "bold red"), str(message)), soft_wrap=True)
        raise SystemExit(1) from None
