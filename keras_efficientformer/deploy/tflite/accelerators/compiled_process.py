"""Runs a .tflite file on an accelerator with LiteRT's CompiledModel, as a script. Room: deploy/tflite/accelerators.

`compiled_model.py` runs it in a process of its own.
"""

import contextlib
import functools
import json
import math
import operator
import sys
import time
from pathlib import Path
from typing import Any

READS = 20


def main(file: str, folder: str, units: str, float32: str, warmup: str, runs: str, signature: str) -> None:
    """Reads `inputs.npy` in the folder, writes `outputs.npz`, and prints what there is to say of the run as JSON.

    Args:
        file: path of the .tflite file, with one input.
        folder: `inputs.npy` in it is an array (number, *shape of the input with its batch); `outputs.npz` gets
            {name of an output: array (number, *shape of the output)}, as the file stores them.
        units: names of `HardwareAccelerator`, "GPU" or "NPU,CPU"; on "GPU" alone the CPU helps where that cannot be.
        float32: "1" where a GPU's float16 arithmetic is forbidden, else "0".
        warmup, runs: numbers of runs of the first input before those that are timed, and of those; "0" for neither.
        signature: of the network that is run; "" for the file's first.
    """
    import numpy as np

    started = time.perf_counter()
    found, model = _open(file, units, bool(int(float32)))
    if model is None:
        print(json.dumps({"found": "refused", "message": found}))
        return
    load_ms = 1000 * (time.perf_counter() - started)

    index = model.get_signature_index(signature) if signature else 0
    key = model.get_signature_by_index(index)["key"]
    described = model.get_output_tensor_details(key)
    # A signature may call an output otherwise than the tensor is called.
    details = [described[name] for name in model.get_signature_by_index(index)["outputs"]]
    buffers = model.create_input_buffers(index), model.create_output_buffers(index)

    def infer(batch: np.ndarray) -> list[np.ndarray]:
        buffers[0][0].write(batch)
        model.run_by_index(index, *buffers)
        return [_values(buffer, detail) for buffer, detail in zip(buffers[1], details, strict=True)]

    inputs = np.load(Path(folder) / "inputs.npy")
    outputs = zip(*[infer(batch) for batch in inputs], strict=True)
    arrays: dict[str, Any] = {detail["name"]: np.stack(values) for detail, values in zip(details, outputs, strict=True)}
    np.savez(Path(folder) / "outputs.npz", **arrays)
    milliseconds = []
    for _ in range(int(warmup) + int(runs)):
        started = time.perf_counter()
        infer(inputs[0])
        milliseconds.append(1000 * (time.perf_counter() - started))
    print(json.dumps({"found": found, "load_ms": load_ms, "milliseconds": milliseconds[int(warmup) :]}))


def _values(buffer: Any, detail: dict[str, Any]) -> Any:
    """What is in an output's buffer, an array of its shape, when it is there.

    LiteRT waits for some seconds only, in which a driver that computes on the CPU may still be compiling.
    """
    import numpy as np

    def read() -> Any:
        values = buffer.read(math.prod(detail["shape"]), np.dtype(detail["dtype"]).type)
        return values.reshape(detail["shape"])

    for _ in range(READS):
        with contextlib.suppress(RuntimeError):
            return read()
    return read()


def _open(file: str, units: str, float32: bool) -> tuple[str, Any]:
    """("whole", model on these units alone), ("partial", one with the CPU's help), or (why there is none, None)."""
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.gpu_options import GpuOptions
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator
    from ai_edge_litert.options import Options

    alone = functools.reduce(operator.or_, (HardwareAccelerator[unit] for unit in units.split(",")))
    message = ""
    for found, accelerators in {"whole": alone, "partial": alone | HardwareAccelerator.CPU}.items():
        options = Options(hardware_accelerators=accelerators, gpu_options=GpuOptions(enforce_f32=float32))
        try:
            return found, CompiledModel.from_file(file, options=options)
        except RuntimeError as error:
            message = str(error)
    return message, None


if __name__ == "__main__":
    main(*sys.argv[1:])
