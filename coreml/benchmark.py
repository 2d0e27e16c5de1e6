"""Times a model with Core ML on a connected iPhone, or on this Mac: `efficientformer benchmark coreml`.

python coreml/benchmark.py l1 --team A1B2C3D4E5 --output benchmarks/devices
"""

from efficientformer_command import main

if __name__ == "__main__":
    main("benchmark", "coreml")
