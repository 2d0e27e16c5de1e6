"""Gathers what an export's page shows, and writes it. Room: deploy."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer.deploy.layer_errors import LayerErrors, layer_errors
from keras_efficientformer.deploy.report import Difference, ExportReport, short
from keras_efficientformer.deploy.report_sidecar import sidecar_of
from keras_efficientformer.files import check_target, size_of
from keras_efficientformer.pages.pictures import svg
from keras_efficientformer.pages.render import require_page_tools, write_page


def save_export_page(
    report: ExportReport,
    path: str | os.PathLike[str],
    model: keras.Model | None = None,
    *,
    images: str | Path | np.ndarray | Iterable[Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the page of an export: one HTML file that needs nothing else.

    Args:
        report: what `export_tflite` or `export_coreml` returned; its file still lies where it was written.
        path: the HTML file.
        model: the Keras model that was exported. With it the file is run once more, every tensor kept, to say which
            layers err most; None leaves them out.
        images: as for `layer_errors`.
        overwrite: whether an existing page may be replaced.

    Raises:
        OSError: the exported file is gone; or the page exists, its folder is missing or cannot be written to.
        ValueError: as `layer_errors`.
        ImportError: Jinja2 or matplotlib is not installed.
    """
    file = Path(report.path)
    require_page_tools("coreml" if file.suffix == ".mlpackage" else "litert")
    check_target(path, overwrite)
    errors = None if model is None else layer_errors(file, model, images)
    write_page(
        "export.html",
        path,
        overwrite,
        title=file.name,
        verdict=report.verdict,
        is_same=all(difference.top1_agreement in (None, 1.0) for difference in report.all_differences),
        summary=report.facts(),
        differences=[_difference(output, found, report.limit) for output, found in report.named_differences()],
        layers=_layers(errors) if errors else [],
        layers_from=f"on {errors.images} images: {errors.images_from}" if errors else "",
        layers_picture=svg(lambda: _layers_figure(errors), "error of each layer") if errors else None,
        files=_files(file, *([Path(report.npu.path)] if report.npu else [])),
        operations=report.operations,
        most=max(report.operations.values(), default=1),
        labels=report.labels,
        versions=report.versions,
    )


def _difference(output: str, difference: Difference, limit: float) -> tuple[str, ...]:
    share = difference.top1_agreement
    numbers = (difference.max, difference.mean, difference.largest, difference.relative, limit)
    return (output, *map(short, numbers), "-" if share is None else f"{share:.1%}")


def _layers(errors: LayerErrors) -> list[tuple[str, ...]]:
    return [
        (
            layer.location,
            layer.operation,
            layer.stored_as,
            f"{layer.added:.2%}",
            f"{layer.error:.2%}",
            f"{layer.snr_db:.1f} dB",
        )
        for layer in errors.worst()
    ]


def _layers_figure(errors: LayerErrors) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    steps = [layer.step for layer in errors.layers]
    added = [100 * layer.added for layer in errors.layers]
    axes.bar(steps, added, color="tab:orange", width=0.8, label="added by the layer")
    axes.plot(steps, [100 * layer.error for layer in errors.layers], marker=".", label="error")
    axes.set(xlabel="layer, in the order of computation", ylabel="%", ylim=(0, None))
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _files(file: Path, *compiled: Path) -> list[tuple[str, str]]:
    """(name, size) of the file, of a package's parts, of the report beside it, and of what was compiled of it."""
    parts = sorted(part for part in file.rglob("*") if part.is_file()) if file.is_dir() else []
    found = [(file.name, file), *((str(part.relative_to(file)), part) for part in parts)]
    sidecar = sidecar_of(file)
    found += [(sidecar.name, sidecar)] if sidecar.exists() else []
    found += [(part.name, part) for part in compiled]
    return [(name, _size(size_of(part))) for name, part in found]


def _size(number: int) -> str:
    return f"{number / 1e6:.2f} MB" if number >= 1e5 else f"{number:,} bytes"
