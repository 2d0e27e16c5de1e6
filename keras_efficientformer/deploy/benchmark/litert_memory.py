"""Measures the load time and peak memory of one .tflite file in a process of its own. Room: deploy/benchmark.

`computer.py` runs this file as a script. It imports nothing of this package, whose frameworks would be measured too.
"""

import json
import re
import sys
import time
from pathlib import Path

MEMORY_RUNS = 3


def main(file: str, threads: str) -> None:
    """Prints, as JSON, milliseconds of loading, and growth of the peak memory over it and some inferences.

    The memory is in 1e6 bytes, and null where there is no /proc.

    Args:
        file: path of the .tflite file.
        threads: of XNNPACK, an integer >= 1 as text.
    """
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    before = _megabytes("VmRSS")
    started = time.perf_counter()
    interpreter = Interpreter(model_path=file, num_threads=int(threads))
    interpreter.allocate_tensors()
    load_ms = 1000 * (time.perf_counter() - started)
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    for _ in range(MEMORY_RUNS):
        interpreter.invoke()
    after = _megabytes("VmHWM")
    print(json.dumps({"load_ms": load_ms, "memory_mb": None if before is None or after is None else after - before}))


def _megabytes(field: str) -> float | None:
    """A field of Linux' /proc, in 1e6 bytes. Not getrusage's, which starts with the peak of the process before it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = re.search(rf"^{field}:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else None


if __name__ == "__main__":
    main(*sys.argv[1:])
