"""The command `efficientformer convert`: writes a checkpoint in another format or dialect. Room: cli."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras_efficientformer import conversion, segmentation
from keras_efficientformer.cli.options import (
    Json,
    Model,
    Overwrite,
    Size,
    check_free,
    check_inputs,
    choice,
    open_keras,
    print_facts,
)
from keras_efficientformer.conversion.dialects import DIALECTS
from keras_efficientformer.conversion.formats import check_torch_for, suffix_of
from keras_efficientformer.files import finished_file

if TYPE_CHECKING:  # its import takes seconds
    import keras

SEGMENTATION_DIALECT = "snap"


def convert(
    source: Model,
    target: Annotated[Path, typer.Argument(help=".keras, .weights.h5, .safetensors, .pth, .pt or .bin")],
    dialect: Annotated[
        str | None,
        choice(DIALECTS, "Tensor names of a PyTorch target. Default: timm; of segmentation models snap."),
    ] = None,
    size: Size = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint: PyTorch's in any dialect, or Keras', to Keras' or PyTorch's in any dialect."""
    started = time.perf_counter()
    suffix = suffix_of(target)
    if suffix is None:
        raise typer.BadParameter(f"{target} should end in .keras, .weights.h5, .safetensors, .pth, .pt or .bin")
    check_inputs(source)
    check_torch_for(target)
    check_free(target, overwrite)
    model = open_keras(source, size)
    if suffix in (".keras", ".weights.h5"):
        with finished_file(target, overwrite) as partial:
            model.save(partial) if suffix == ".keras" else model.save_weights(partial)
    else:
        conversion.write_checkpoint(target, _state_dict(model, dialect), overwrite)
    print_facts(
        {
            "source": source,
            "target": str(target),
            "model": model.name,
            "input": list(model.inputs[0].shape[1:]),
            "output": [list(output.shape[1:]) for output in model.outputs],
            "parameters": model.count_params(),
            "bytes": target.stat().st_size,
            "seconds": round(time.perf_counter() - started, 2),
        },
        as_json,
        f"Converted to {target.name}",
    )


def _state_dict(model: "keras.Model", dialect: str | None) -> conversion.formats.StateDict:
    """The weights of a classifier, a backbone or a segmentation model under a dialect's names."""
    if not segmentation.is_segmenter(model):
        return conversion.to_state_dict(model, dialect or "timm")
    if dialect not in (None, SEGMENTATION_DIALECT):
        raise ValueError(
            f"{model.name} gives masks, and the dialect of such models is {SEGMENTATION_DIALECT}. Received: {dialect}; "
            "leave --dialect out."
        )
    return segmentation.to_state_dict(model)
