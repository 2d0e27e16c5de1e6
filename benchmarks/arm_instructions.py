"""Instructions of one inference on an emulated Cortex-A76: our .tflite files beside plain conversions.

Plain is what TensorFlow's converter makes of the same Keras model, frozen, with a batch of one: float32, and int8 by
its own full-integer quantization after training. 224x224, random weights, one thread. tflite/arm/setup.sh sets the
emulator up; converting L7 takes some 8 GB of memory.

    python benchmarks/arm_instructions.py --output benchmarks/results/arm_instructions.json
"""

import argparse
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from random_networks import random_network
from rich import print as rich_print
from rich.progress import Progress
from rich.table import Table

from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.benchmark.arm_emulator import ArmEmulator
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.images import seeded_images
from keras_efficientformer.reporting import versions_of
from keras_efficientformer.variants import VARIANTS

CPU = "cortex-a76"
OURS = {"float32": "none", "float16": "float16", "dynamic": "dynamic", "int8": "int8"}
KINDS = ("plain float32", "plain int8", *OURS)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    emulator = ArmEmulator(CPU)
    rows = {variant: {} for variant in arguments.variants}
    # TensorFlow keeps the memory of a conversion: each gets a process of its own, one after the other.
    processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as folder, Progress() as progress, processes:
        task = progress.add_task("", total=len(rows) * len(KINDS))
        for variant, row in rows.items():
            for kind in KINDS:
                progress.update(task, description=f"{variant}, {kind}")
                file = Path(folder, f"{variant}_{kind.replace(' ', '_')}.tflite")
                processes.submit(write_file, variant, kind, file).result()
                row[kind] = round(sum(cost.amount for cost in emulator.count(file)), 3)
                progress.advance(task)
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": CPU,
        "versions": versions_of("keras-efficientformer", "tensorflow", "litert-quantizer") | emulator.versions(),
        "million_instructions": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(rows)


def write_file(variant, kind, file):
    model = random_network(variant)
    images = seeded_images((224, 224, 3))
    if kind in OURS:
        # Random weights: what is measured is the work.
        export_tflite(model, file, quantize=OURS[kind], calibration=images, max_difference=float("inf"))
    else:
        file.write_bytes(convert_plainly(model, kind.removeprefix("plain "), preprocess_input(images)))


def convert_plainly(model, mode, images):
    """The .tflite file that https://ai.google.dev/edge/litert/conversion/tensorflow/convert_tf describes, as bytes.

    Modes: "float32"; "float16" and "dynamic", of the weights; "int8", throughout, calibrated on normalised images.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    image = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)
    function = tf.function(lambda image: model(image, training=False)).get_concrete_function(image)
    # Without it the variables of a Keras 3 model stay variables in the file.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([convert_variables_to_constants_v2(function)], model)
    converter.optimizations = [] if mode == "float32" else [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode == "int8":
        converter.representative_dataset = lambda: ([image[None]] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def print_table(rows):
    table = Table("network", *KINDS, "float32 lead", "int8 lead", title="million instructions")
    for variant, row in rows.items():
        leads = (1 - row[kind] / row[f"plain {kind}"] for kind in ("float32", "int8"))
        table.add_row(variant, *(f"{row[kind]:,.1f}" for kind in KINDS), *(f"{lead:.1%}" for lead in leads))
    rich_print(table)


if __name__ == "__main__":
    main()
