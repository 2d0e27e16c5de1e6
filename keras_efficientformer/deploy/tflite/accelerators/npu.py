"""Compiles .tflite files for NPUs with LiteRT, and runs what runs here. Room: deploy/tflite/accelerators."""

import collections
import contextlib
import io
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from keras_efficientformer.deploy.report import NPUReport
from keras_efficientformer.deploy.report_sidecar import content_hash
from keras_efficientformer.deploy.tflite.accelerators.compiled_model import library_path, run_compiled
from keras_efficientformer.deploy.tflite.accelerators.npu_targets import NPUTarget
from keras_efficientformer.deploy.tflite.runtime import filled_batches
from keras_efficientformer.errors import ExportError

# OpenVINO computes float32 files in bfloat16 where a CPU can. A comparison with Keras shows an error of the compiler
# only without that: this is the last of oneDNN's instruction sets that has no bfloat16, and older CPUs ignore it. What
# was compiled with some instructions for integers need not load with others, so both are done alike.
WITHOUT_BFLOAT16 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
# The compiler's words that an error repeats.
WORDS_SHOWN = 500


def compile_file(file: Path, output: Path, target: NPUTarget) -> NPUReport:
    """Compiles a .tflite file for an NPU.

    Args:
        file: the file.
        output: where the compiled file goes.
        target: the NPU.

    Returns:
        The report, without differences.

    Raises:
        ExportError: the compiler takes none of the file's operations, or fails.
    """
    from ai_edge_litert.aot.aot_compile import aot_compile
    from ai_edge_litert.aot.core.aot_types import CompilationConfig

    config = CompilationConfig(target.litert, **target.options)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _variables(WITHOUT_BFLOAT16), _silence():
                result = aot_compile(str(file), output_dir=folder, config=[config], keep_going=False)
        except (ValueError, FileNotFoundError) as error:
            raise ExportError(f"{file.name} was not compiled for {target.name}: {_reason(error)}") from error
        (model,) = result.models
        shutil.copyfile(model.path, output)
    _copy_archive(file, output)
    (taken,) = model.partition_stats.subgraph_stats
    return NPUReport(
        target=target.name,
        path=str(output),
        size=output.stat().st_size,
        sha256=content_hash(output),
        operations=taken.num_total_ops,
        taken=taken.num_ops_offloaded,
        partitions=taken.num_partitions_offloaded,
        left=left_operations(output),
    )


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Has processes that are started in the block find these environment variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps what LiteRT prints, how far it is, to itself."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def left_operations(file: Path) -> dict[str, int]:
    """How many operations of each kind a compiled file leaves to the CPU, most frequent first."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(file.read_bytes()))
    kinds = (flatbuffer_utils.opcode_to_name(model, op.opcodeIndex) for op in model.subgraphs[0].operators)
    # Each partition is one operation of LiteRT's own.
    return dict(collections.Counter(kind for kind in kinds if kind != "CUSTOM").most_common())


def _copy_archive(file: Path, output: Path) -> None:
    """Appends the archive at the end of a file, its labels, to the compiled one: LiteRT's compiler drops it."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(output, "a") as copy:
            for entry in archive.infolist():
                copy.writestr(entry, archive.read(entry))


def run_file(file: Path, images: np.ndarray, batch_size: int, target: NPUTarget) -> dict[str, np.ndarray]:
    """Runs a compiled file on this computer, in a process that finds the libraries which it needs.

    Args:
        file: what `compile_file` wrote.
        images: array (number, height, width, channels) as the file's input stores them.
        batch_size: the file's.
        target: the NPU; its `libraries` are known.

    Returns:
        {output: array (number, ...)} as the file stores them.

    Raises:
        ExportError: it does not run.
    """
    shape = (batch_size, *images.shape[1:])
    batches = np.stack([batch for batch, _ in filled_batches(images, shape, images.dtype.name)])
    assert target.libraries is not None
    run = run_compiled(file, batches, "NPU,CPU", {**library_path(target.libraries), **WITHOUT_BFLOAT16})
    if run.found in ("crash", "refused"):
        raise ExportError(f"{file.name}, compiled for {target.name}, does not run: {_errors_in(run.log)}")
    return {name: values.reshape(-1, *values.shape[2:])[: len(images)] for name, values in run.outputs.items()}


def _reason(error: Exception) -> str:
    """What the compiler said before LiteRT raised this; its log, which LiteRT leaves behind, is removed."""
    place = re.search(r"See (.+) for details", str(error))
    if not place:
        return str(error)
    log = Path(place[1])
    text = log.read_text(errors="replace")
    log.unlink()
    none = re.search(r"selected 0 ops, from a total of (\d+) ops", text)
    return f"the compiler takes none of its {none[1]} operations." if none else _errors_in(text)


def _errors_in(log: str) -> str:
    """The errors in LiteRT's log, each with the lines that belong to it; else its end."""
    parts = re.split(r"^(?=(?:INFO|WARNING|ERROR|VERBOSE): |\[LITERT)", log, flags=re.MULTILINE)
    found = [part for part in parts if "ERROR" in part or "Traceback" in part] or parts[-1:]
    words = " ".join(" ".join(found).split())
    return words if len(words) <= WORDS_SHOWN else f"... {words[-WORDS_SHOWN:]}"
