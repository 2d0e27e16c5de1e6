"""Throughput on this machine's CPU: our model on each Keras backend beside timm's, interleaved in one run.

Each contender is a process of its own that waits for its turn; a round gives every one of them one turn, so that what
else the machine does hits all alike. Prints medians and ratios to timm's default memory format.

    python benchmarks/throughput.py --output benchmarks/results/throughput.json
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich import print as rich_print
from rich.progress import track
from rich.table import Table

TESTS = Path(__file__).resolve().parents[1] / "tests" / "support"
CONTENDERS = ("timm", "timm channels_last", "keras tensorflow", "keras jax", "keras torch")
REFERENCE = "timm"
BATCH_SIZES = {"predict": 32, "train": 16}
SIDE = 224
ONE_TURN_SECONDS = 4.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each contender")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments.worker, arguments.threads)
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "threads": arguments.threads,
        "batch_sizes": BATCH_SIZES,
        "versions": {name: version(name) for name in ("keras", "tensorflow", "jax", "torch", "timm")},
        "images_per_second": {task: measure(task, arguments) for task in BATCH_SIZES},
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(report)
    return None


def measure(task, arguments):
    """{contender: images per second in each round}."""
    workers = {name: start(name, arguments.threads) for name in CONTENDERS}
    results = {name: [] for name in CONTENDERS}
    try:
        for name, worker in workers.items():
            ask(worker, task)  # builds and compiles
            print(f"{name} is ready to {task}", file=sys.stderr)
        for _ in track(range(arguments.rounds), description=task):
            for name, worker in workers.items():
                results[name].append(ask(worker, task))
    finally:
        for worker in workers.values():
            worker.kill()
    return results


def start(name, threads):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
    framework, _, backend = name.partition(" ")
    if framework == "keras":
        environment["KERAS_BACKEND"] = backend
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", name, "--threads", str(threads)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def ask(worker, task):
    worker.stdin.write(task + "\n")
    worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit(f"{worker.args} ended with {worker.wait()}")
    return float(answer)


def work(name, threads):
    framework, _, option = name.partition(" ")
    make = {"timm": timm_task, "keras": keras_task}[framework]
    tasks = {}
    for line in sys.stdin:
        task = line.strip()
        if task not in tasks:
            tasks[task] = make(task, option, threads)
            tasks[task]()
        print(images_per_second(tasks[task], BATCH_SIZES[task]), flush=True)


def images_per_second(step, batch_size):
    count, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < ONE_TURN_SECONDS or not count:
        step()
        count += 1
    return count * batch_size / seconds


def timm_task(task, option, threads):
    sys.path.insert(0, str(TESTS))
    import timm_reference
    import torch

    torch.set_num_threads(threads)
    layout = {"memory_format": torch.channels_last} if option else {}
    model = timm_reference.loud_model("l1").to(**layout)
    images = torch.randn(BATCH_SIZES[task], 3, SIDE, SIDE).to(**layout)
    labels = torch.randint(1000, (BATCH_SIZES[task],))
    if task == "predict":
        return lambda: torch.inference_mode()(model)(images)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def keras_task(task, option, threads):
    import keras
    import numpy as np

    from keras_efficientformer import EfficientFormerL1

    if option == "torch":
        import torch

        torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH_SIZES[task], SIDE, SIDE, 3), dtype="float32")
    labels = rng.integers(1000, size=BATCH_SIZES[task])
    model = EfficientFormerL1(weights=None, classifier_activation=None)
    if task == "predict":
        return lambda: model.predict(images, batch_size=len(images), verbose=0)
    model.compile(keras.optimizers.AdamW(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return lambda: model.train_on_batch(images, labels)


def print_table(report):
    title = f"EfficientFormer-L1, {SIDE}x{SIDE}, images per second on {report['cpu']}, {report['threads']} threads"
    table = Table("", *BATCH_SIZES, title=title)
    medians = {
        task: {name: statistics.median(values) for name, values in results.items()}
        for task, results in report["images_per_second"].items()
    }
    for name in CONTENDERS:
        cells = [f"{medians[t][name]:.1f} ({medians[t][name] / medians[t][REFERENCE]:.2f}x)" for t in BATCH_SIZES]
        table.add_row(name, *cells)
    rich_print(table)


def cpu_name():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
