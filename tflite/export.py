"""Exports a model as a TFLite file for Android, run and compared with Keras: `efficientformer export tflite`.

python tflite/export.py weights/efficientformer_l1_cifar10.safetensors . --labels weights/cifar10_labels.txt
"""

from efficientformer_command import main

if __name__ == "__main__":
    main("export", "tflite")
