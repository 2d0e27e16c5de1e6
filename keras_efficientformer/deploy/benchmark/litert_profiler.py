"""Times the operations of one .tflite file with LiteRT's profiler, through its C API. Room: deploy/benchmark.

LiteRT's Python API does not have the profiler; the wheel brings the library that has it. `computer.py` runs this file
as a script: where a version's C API is another than the one written down here (litert/c/litert_profiler.h and the
headers beside it, LiteRT 2.3), only that process ends.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

PROFILED_RUNS = 10
REPEATS = 5
WARMUP = 3
# This is kLiteRtHwAcceleratorCpu in the C API's headers.
CPU_ACCELERATOR = 1
# LiteRtRankedTensorType is smaller than this, and its fields are not needed here.
TENSOR_TYPE_BYTES = 1024
FIRST_SIGNATURE = ctypes.c_size_t(0)


def main(file: str, threads: str) -> None:
    """Prints, as JSON, the profiler's tables over `PROFILED_RUNS` inferences, `REPEATS` times.

    Args:
        file: path of the .tflite file.
        threads: of XNNPACK, an integer >= 1 as text.
    """
    profiler = Profiler(file, int(threads))
    print(json.dumps({"runs": PROFILED_RUNS, "tables": [profiler.tables() for _ in range(REPEATS)]}))


class Profiler:
    """A .tflite file opened through LiteRT's C API, with its profiler on.

    Args:
        file: path of the file.
        threads: of XNNPACK, >= 1.

    Raises:
        SystemExit: a function of the C API fails; the message names it.
    """

    def __init__(self, file: str, threads: int) -> None:
        import ai_edge_litert

        self._library = ctypes.CDLL(str(Path(ai_edge_litert.__file__).parent / "libLiteRt.so"))
        self._environment = self._make("LiteRtCreateEnvironment", 0, None)
        self._model = self._make("LiteRtCreateModelFromFile", self._environment, file.encode())
        self._options = self._make("LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", self._options, CPU_ACCELERATOR)
        # LiteRT calls this to free the options' texts, and it does nothing, for Python frees them.
        self._leave = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
        self._texts = [
            self._set(b"runtime_options_string", b"enable_profiling = true\n"),
            self._set(b"xnnpack", b"num_threads = %d\n" % threads),
        ]

    def tables(self) -> str:
        """What the profiler prints of `PROFILED_RUNS` inferences.

        Of a newly compiled model: the profiler adds up, and resetting it does not reach what delegates have told it.
        """
        compiled = self._make("LiteRtCreateCompiledModel", self._environment, self._model, self._options)
        buffers = [*self._buffers(compiled, "Input"), *self._buffers(compiled, "Output")]
        profiler = self._make("LiteRtCompiledModelGetProfiler", compiled)
        for run in range(WARMUP + PROFILED_RUNS):
            if run == WARMUP:
                self._call("LiteRtStartProfiler", profiler)
            self._call("LiteRtRunCompiledModel", compiled, FIRST_SIGNATURE, *buffers)
        self._call("LiteRtStopProfiler", profiler)
        summary = ctypes.c_char_p()
        self._call("LiteRtGetProfileSummary", profiler, compiled, ctypes.byref(summary))
        self._library.LiteRtDestroyCompiledModel(compiled)  # else each repetition would hold its weights
        return (summary.value or b"").decode()

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise SystemExit(f"{name} failed with status {status}")

    def _make(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """What a function of the C API makes, which it puts where its last argument points."""
        made = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(made))
        return made

    def _set(self, name: bytes, toml: bytes) -> ctypes.Array[ctypes.c_char]:
        """Sets options of one component; the text that is returned must live as long as they do."""
        text = ctypes.create_string_buffer(toml)
        option = self._make("LiteRtCreateOpaqueOptions", name, text, self._leave)
        self._call("LiteRtAddOpaqueOptions", self._options, option)
        return text

    def _buffers(self, compiled: ctypes.c_void_p, side: str) -> tuple[ctypes.c_size_t, ctypes.Array[ctypes.c_void_p]]:
        """Number and array of the buffers of a side, "Input" or "Output"."""
        signature = self._make("LiteRtGetModelSignature", self._model, FIRST_SIGNATURE)
        number = ctypes.c_size_t()
        self._call(f"LiteRtGetNumSignature{side}s", signature, ctypes.byref(number))
        made = (ctypes.c_void_p * number.value)()
        for index in range(number.value):
            position = ctypes.c_size_t(index)
            tensor = self._make(f"LiteRtGetSignature{side}TensorByIndex", signature, position)
            kind = ctypes.create_string_buffer(TENSOR_TYPE_BYTES)
            self._call("LiteRtGetRankedTensorType", tensor, kind)
            get_needs = f"LiteRtGetCompiledModel{side}BufferRequirements"
            needs = self._make(get_needs, compiled, FIRST_SIGNATURE, position)
            made[index] = self._make("LiteRtCreateManagedTensorBufferFromRequirements", self._environment, kind, needs)
        return number, made


if __name__ == "__main__":
    main(*sys.argv[1:])
