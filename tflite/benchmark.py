"""Times .tflite files on this computer, a phone or an emulated Arm CPU: `efficientformer benchmark tflite`.

python tflite/benchmark.py float32.tflite int8.tflite --profile
python tflite/benchmark.py int8.tflite --adb android_aarch64_benchmark_model --threads 4 --output benchmarks/devices
python tflite/benchmark.py int8.tflite --emulate cortex-a76
"""

from efficientformer_command import main

if __name__ == "__main__":
    main("benchmark", "tflite")
