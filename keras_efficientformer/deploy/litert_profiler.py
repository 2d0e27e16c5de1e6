"""LiteRT's own profiler, which its Python API does not have and its C API has; the wheel brings that library.

`tflite_benchmark.py` runs this file as a script: where a version's C API is another than the one written down here
(litert/c/litert_profiler.h and the headers beside it, LiteRT 2.3), only that process ends.
"""

import ctypes
import json
import sys
from pathlib import Path

RUNS = 10
REPEATS = 5
WARMUP = 3
CPU = 1  # kLiteRtHwAcceleratorCpu
# Larger than LiteRtRankedTensorType is, whose fields nobody needs to know here.
TENSOR_TYPE_BYTES = 1024
FIRST = ctypes.c_size_t(0)  # signature


def main(file: str, threads: str) -> None:
    """Prints, as JSON, the profiler's tables over `RUNS` inferences, `REPEATS` times."""
    profiler = Profiler(file, int(threads))
    print(json.dumps({"runs": RUNS, "tables": [profiler.tables() for _ in range(REPEATS)]}))


class Profiler:
    """A file opened through the C API."""

    def __init__(self, file: str, threads: int):
        import ai_edge_litert

        self._library = ctypes.CDLL(str(Path(ai_edge_litert.__file__).parent / "libLiteRt.so"))
        self._environment = self._make("LiteRtCreateEnvironment", 0, None)
        self._model = self._make("LiteRtCreateModelFromFile", self._environment, file.encode())
        self._options = self._make("LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", self._options, CPU)
        self._leave = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)  # Python frees the texts
        self._texts = [
            self._set(b"runtime_options_string", b"enable_profiling = true\n"),
            self._set(b"xnnpack", b"num_threads = %d\n" % threads),
        ]

    def tables(self) -> str:
        """What the profiler says of `RUNS` inferences.

        Of a newly compiled model: the profiler adds up, and resetting it does not reach what delegates have told it.
        """
        compiled = self._make("LiteRtCreateCompiledModel", self._environment, self._model, self._options)
        buffers = [*self._buffers(compiled, "Input"), *self._buffers(compiled, "Output")]
        profiler = self._make("LiteRtCompiledModelGetProfiler", compiled)
        for run in range(WARMUP + RUNS):
            if run == WARMUP:
                self._call("LiteRtStartProfiler", profiler)
            self._call("LiteRtRunCompiledModel", compiled, FIRST, *buffers)
        self._call("LiteRtStopProfiler", profiler)
        summary = ctypes.c_char_p()
        self._call("LiteRtGetProfileSummary", profiler, compiled, ctypes.byref(summary))
        self._library.LiteRtDestroyCompiledModel(compiled)  # or each repetition would hold its weights
        return (summary.value or b"").decode()

    def _call(self, name, *arguments):
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise SystemExit(f"{name} failed with status {status}")

    def _make(self, name, *arguments):
        made = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(made))
        return made

    def _set(self, name, toml):
        text = ctypes.create_string_buffer(toml)
        option = self._make("LiteRtCreateOpaqueOptions", name, text, self._leave)
        self._call("LiteRtAddOpaqueOptions", self._options, option)
        return text

    def _buffers(self, compiled, side):
        """Number and array of the inputs' or outputs' buffers."""
        signature = self._make("LiteRtGetModelSignature", self._model, FIRST)
        number = ctypes.c_size_t()
        self._call(f"LiteRtGetNumSignature{side}s", signature, ctypes.byref(number))
        made = (ctypes.c_void_p * number.value)()
        for index in range(number.value):
            position = ctypes.c_size_t(index)
            tensor = self._make(f"LiteRtGetSignature{side}TensorByIndex", signature, position)
            kind = ctypes.create_string_buffer(TENSOR_TYPE_BYTES)
            self._call("LiteRtGetRankedTensorType", tensor, kind)
            needs = self._make(f"LiteRtGetCompiledModel{side}BufferRequirements", compiled, FIRST, position)
            made[index] = self._make("LiteRtCreateManagedTensorBufferFromRequirements", self._environment, kind, needs)
        return number, made


if __name__ == "__main__":
    main(*sys.argv[1:])
