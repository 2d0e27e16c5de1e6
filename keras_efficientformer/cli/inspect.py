"""The command `efficientformer inspect`: prints what is in a file, or which of its layers err. Room: cli."""

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Column, Table

from keras_efficientformer import conversion, models, segmentation
from keras_efficientformer.cli.options import (
    ANY_MODEL,
    Json,
    Size,
    check_inputs,
    open_keras,
    output,
    print_facts,
)
from keras_efficientformer.cli.quiet import import_coremltools_alone, import_keras_alone
from keras_efficientformer.conversion.dialects import is_of_segmentation
from keras_efficientformer.conversion.formats import read_tensors, suffix_of
from keras_efficientformer.conversion.keras_config import keras_layers
from keras_efficientformer.deploy.coreml.package import function_sizes, image_size, load_package
from keras_efficientformer.deploy.coreml.runtime import facts_of
from keras_efficientformer.deploy.file_facts import ENTRY, FileFacts
from keras_efficientformer.deploy.tflite.accelerators.gpu import GpuCheck, check_on_gpu
from keras_efficientformer.deploy.tflite.metadata import read_facts, weight_types
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel, check_survival
from keras_efficientformer.deploy.tflite.sizes.signatures import signature_sizes
from keras_efficientformer.files import size_of
from keras_efficientformer.layers.names import MASKS
from keras_efficientformer.reporting import finite_only

if TYPE_CHECKING:  # it imports coremltools
    from keras_efficientformer.deploy.coreml.lint import Finding

INT16_HARDWARE = "activations in int16 are for NPUs and DSPs: CPUs have slow kernels for them, GPUs none"


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=ANY_MODEL)],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The model that a .tflite file or .mlpackage was exported from: say which of its layers err most.",
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images to err on. Default: four seeded ones.")] = None,
    gpu: Annotated[
        bool,
        typer.Option("--gpu", help="Also run a .tflite file on this machine's GPU, and compare it with the CPU."),
    ] = False,
    size: Size = None,
    as_json: Json = False,
) -> None:
    """Say what is in a file; of a Core ML package also what may keep it off the Neural Engine."""
    check_inputs(model, against, images)
    if size is not None and against is None:
        raise typer.BadParameter("--size is of the model that --against names; without it all sizes are listed.")
    file = models.local_file(model)
    if gpu and file.suffix != ".tflite":
        raise typer.BadParameter(f"--gpu runs .tflite files. Received: {file.name}")
    if against is not None:
        import_keras_alone()
        # It imports Keras, which takes seconds.
        from keras_efficientformer.deploy.layer_errors import layer_errors

        errors = layer_errors(file, open_keras(against, size), images)
        print(errors.to_json(), end="") if as_json else output.print(errors)
        return
    if file.suffix == ".mlpackage":
        facts, findings = _inspect_package(file)
        print_facts(
            facts | ({"findings": list(map(dataclasses.asdict, findings))} if as_json else {}), as_json, file.name
        )
        if not as_json:
            output.print(_findings_table(findings))
        return
    facts = _inspect_tflite(file) if file.suffix == ".tflite" else _inspect_checkpoint(file)
    with file.open("rb") as content:
        facts |= {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}
    checks = _gpu_checks(file) if gpu else {}
    for name, found in checks.items():
        facts[name] = finite_only(dataclasses.asdict(found)) if as_json else found.verdict
    print_facts(facts, as_json, file.name)
    if not all(found.passes for found in checks.values()):
        raise SystemExit(1)


def _gpu_checks(file: Path) -> dict[str, GpuCheck]:
    """What the GPU makes of each input size of a .tflite file; "gpu" is the one that opens by default."""
    further = list(signature_sizes(file))[1:]
    return {"gpu": check_on_gpu(file)} | {f"gpu_{name}": check_on_gpu(file, signature=name) for name in further}


def _inspect_package(path: Path) -> tuple[dict[str, Any], "tuple[Finding, ...]"]:
    import_coremltools_alone()
    package = load_package(path)
    # These import coremltools, which not every installation has: `load_package` says so.
    from keras_efficientformer.deploy.coreml.int8.coverage import int8_counts
    from keras_efficientformer.deploy.coreml.lint import lint
    from keras_efficientformer.deploy.coreml.program import summary

    description = package.description
    names = {"inputs": description.input, "outputs": description.output}
    facts: dict[str, Any] = {end: [feature.name for feature in features] for end, features in names.items()}
    facts |= {"classes": len(package.labels) if package.labels else None} | package.metadata
    facts.pop(ENTRY, None)  # it is said in words
    if len(description.input) == 1:
        facts |= {"input_size": image_size(description.input[0])}
        facts |= _facts_in_words(facts_of(package), package.labels)
    facts |= _several("functions", sizes := function_sizes(path))
    facts |= dataclasses.asdict(summary(package.program, function=package.function))
    if counts := int8_counts(package.program, package.function):
        facts["computed_in_int8"] = counts
    facts["bytes"] = size_of(path)
    # The operations of all sizes have the same names, and what is found of one need be said once.
    findings = [finding for name in (package.function, *sizes) for finding in lint(package.program, name)]
    return facts, tuple({(finding.rule, finding.operation): finding for finding in reversed(findings)}.values())[::-1]


def _several(name: str, sizes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """The input sizes of a file that has several, by the names of its signatures or functions."""
    return {name: {key: list(size) for key, size in sizes.items()}} if len(sizes) > 1 else {}


def _facts_in_words(facts: FileFacts | None, labels: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The class names of an exported file, and what it takes."""
    if facts is None or not facts.mean:
        pixels = None
    elif facts.takes_raw_pixels:
        pixels = "raw, in 0..255"
    else:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (facts.mean, facts.std))
        pixels = f"(pixel - mean) / std of 0..255, mean {mean}, std {std}"
    labels = labels or (facts.labels if facts else None)
    return {"pixels": pixels, "labels": list(labels) if labels else None}


def _findings_table(findings: "tuple[Finding, ...]") -> Table:
    # It imports coremltools, which not every installation has.
    from keras_efficientformer.deploy.coreml.lint import RULES

    table = Table(
        "rule", Column("found"), Column("source", overflow="fold"), title="Neural Engine", title_justify="left"
    )
    for rule in RULES:
        found = [finding for finding in findings if finding.rule == rule.name]
        if found:
            first, rest = found[0], f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            text = f"{first.operation}: {first.message}{rest}. {rule.advice}"
            table.add_row(rule.name, text, rule.sources[0].url)
    if not findings:
        table.add_row("", f"nothing that {len(RULES)} rules know", "")
    return table


def _inspect_checkpoint(file: Path) -> dict[str, Any]:
    import_keras_alone()
    if suffix_of(file) == ".keras":
        tensors = read_tensors(file)
        if MASKS in [name for _, name in keras_layers(file)]:
            return _inspect_segmenter(file) | _inspect_tensors(tensors)
    checkpoint = conversion.read_checkpoint(file)
    if is_of_segmentation(checkpoint):
        return _inspect_segmenter(file) | _inspect_tensors(checkpoint)
    variant = conversion.infer_variant(checkpoint)
    info = dataclasses.asdict(variant)
    size, labels = variant.input_size, checkpoint.stated.labels
    return (
        info
        | {
            "input_size": list(size) if size else None,
            "labels": list(labels) if labels else None,
        }
        | _inspect_tensors(checkpoint)
    )


def _inspect_segmenter(file: Path) -> dict[str, Any]:
    """What a segmentation model is, of a .keras file or a checkpoint."""
    return segmentation.facts_of(open_keras(str(file), None))


def _inspect_tensors(checkpoint: conversion.Checkpoint) -> dict[str, Any]:
    floats = [tensor for tensor in checkpoint.values() if tensor.dtype.kind not in "iub"]
    return {
        "wrappers": list(checkpoint.wrappers),
        "tensors": len(checkpoint),
        "values": sum(tensor.size for tensor in floats),
        "dtypes": sorted({tensor.dtype.name for tensor in checkpoint.values()}),
        "finite": all(bool(np.isfinite(tensor).all()) for tensor in floats),
    }


def _inspect_tflite(file: Path) -> dict[str, Any]:
    check_survival(file)
    model = LiteRTModel(file)
    inputs, outputs = ([dataclasses.asdict(tensor) for tensor in ends] for ends in (model.inputs, model.outputs))
    ends = {"input_size": list(model.input_shape[:2]), "inputs": inputs, "outputs": outputs}
    ends |= _several("signatures", signature_sizes(file))
    facts = (
        ends | _facts_in_words(read_facts(file)) | {"operations": model.operations(), "constants": weight_types(file)}
    )
    return facts | ({"hardware": INT16_HARDWARE} if "int16" in model.dtypes() else {})
