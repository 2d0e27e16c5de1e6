"""Exports a model as a Core ML package for iOS, run and compared with Keras: `efficientformer export coreml`.

python coreml/export.py weights/efficientformer_l1_cifar10.safetensors . --labels weights/cifar10_labels.txt
"""

from efficientformer_command import main

if __name__ == "__main__":
    main("export", "coreml")
