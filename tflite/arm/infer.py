"""Runs a .tflite file on the emulated CPU: each input once, the last one between marks for the counting plugin.

infer.py MODEL INPUTS.npy OUTPUTS.npz MAPS: inputs (number, *shape of the input tensor, with its batch), in its dtype;
outputs (number, ...) by name, as stored; MAPS gets the process' memory map, which tells addresses of libraries.
"""

import contextlib
import os
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter

COUNTING = 77


def mark(point):
    with contextlib.suppress(OSError):
        os.getpriority(COUNTING, point)


model, inputs_file, outputs_file, maps = sys.argv[1:]
interpreter = Interpreter(model_path=model, num_threads=1)
interpreter.allocate_tensors()
(image,) = interpreter.get_input_details()
results: dict[str, list[np.ndarray]] = {detail["name"]: [] for detail in interpreter.get_output_details()}
inputs = np.load(inputs_file)
for number, value in enumerate(inputs, start=1):
    interpreter.set_tensor(image["index"], value)
    if number == len(inputs):
        mark(0)
    interpreter.invoke()
    if number == len(inputs):
        mark(1)
    for detail in interpreter.get_output_details():
        results[detail["name"]].append(interpreter.get_tensor(detail["index"]))
with open("/proc/self/maps") as source, open(maps, "w") as target:
    target.write(source.read())
np.savez(outputs_file, **results)  # type: ignore[arg-type]  # no output is called allow_pickle
