"""The command `efficientformer`: arguments in, one call of the library, one printed report out.

Exit codes: 0 done, 1 the file or image is not fit or the result not good enough, 2 wrong usage, 130 an interrupt.
Reports go to standard output, as a table or with --json as JSON; progress and errors go to standard error. A command is
imported when it is called, and what takes seconds to import by the library when it is needed, never here. Room: cli.
"""

import sys
from typing import Annotated

import typer
from rich.text import Text

import keras_efficientformer
from keras_efficientformer.backend_choice import missing_backend
from keras_efficientformer.cli.on_demand import GroupOnDemand, add_on_demand
from keras_efficientformer.errors import ExportError
from keras_efficientformer.files import Interrupts

# {command: (where its function stands, its summary)}; a command of two words stands in a group.
COMMANDS = {
    "convert": (
        "convert:convert",
        "Convert a checkpoint: PyTorch's in any dialect, or Keras', to Keras' or PyTorch's in any dialect.",
    ),
    "predict": ("photographs.predict:predict", "Classify photographs, or their pixels."),
    "embed": (
        "photographs.embed:embed",
        "Write the embeddings of photographs, or find the most similar ones among written ones.",
    ),
    "inspect": (
        "inspect:inspect",
        "Say what is in a file; of a Core ML package also what may keep it off the Neural Engine.",
    ),
    "finetune": ("finetune:finetune", "Fine-tune a model on a folder of images."),
    "evaluate": ("evaluate:evaluate", "Measure a model's accuracy and speed on a folder of images."),
    "compare": (
        "measurements.compare:compare",
        "Export a model in many modes, measure each on images, and say which to take. An interrupted one goes on.",
    ),
    "push": (
        "push:push",
        "Publish a model on the Hugging Face hub: weights that timm reads too, .keras, checked exports and a card.",
    ),
    "export tflite": ("export_tflite:export_tflite_command", "Write a TFLite file for Android."),
    "export coreml": ("export_coreml:export_coreml_command", "Write a Core ML package for iOS."),
    "benchmark tflite": (
        "measurements.benchmark_tflite:benchmark_tflite_command",
        "Time .tflite files: on this computer, with --adb on a phone, with --emulate in instructions of an Arm CPU.",
    ),
    "benchmark coreml": (
        "measurements.benchmark_coreml:benchmark_coreml_command",
        "Time a model and MobileNetV2 with Core ML on an iPhone connected to this Mac, or on this Mac.",
    ),
    "app android": (
        "apps.android:android_command",
        "Write a project for Android Studio: an app that classifies or segments photos and what the camera sees.",
    ),
    "app ios": (
        "apps.ios:ios_command",
        "Write a project for Xcode: an app that classifies or segments photos and what the camera sees.",
    ),
    "app web": (
        "apps.web:web_command",
        "Write a page that classifies or segments photos, folders and the camera's pictures in a browser, offline.",
    ),
}
GROUPS = {
    "export": "Write a file for phones, run it and compare it with the Keras model.",
    "benchmark": "Time a model here, on phones or on an emulated CPU.",
    "app": "Write an app around a model.",
}

# As shells call the end by Ctrl-C: 128 and the signal's number.
INTERRUPTED = 130

app = typer.Typer(cls=GroupOnDemand, no_args_is_help=True, pretty_exceptions_enable=False)


def _add_commands() -> None:
    groups = {name: typer.Typer(cls=GroupOnDemand, help=text, no_args_is_help=True) for name, text in GROUPS.items()}
    for words, (function, summary) in COMMANDS.items():
        group, _, name = words.rpartition(" ")
        add_on_demand(groups[group] if group else app, name, f"keras_efficientformer.cli.{function}", summary)
    for group, commands in groups.items():
        app.add_typer(commands, name=group)


_add_commands()


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
        with Interrupts():
            app([*command, *sys.argv[1:]])
    except KeyboardInterrupt:  # one that a library has swallowed; others typer ends itself, with the same code
        raise SystemExit(INTERRUPTED) from None
    except (ValueError, OSError, ImportError, ExportError) as error:
        # Where nothing fails, help need not wait for what this brings.
        from keras_efficientformer.cli.options import errors

        message = (isinstance(error, ImportError) and missing_backend(error)) or error
        # The message is not read as markup, because paths and shapes are full of brackets.
        errors.print(Text.assemble(("error: ", "bold red"), str(message)), soft_wrap=True)
        raise SystemExit(1) from None
