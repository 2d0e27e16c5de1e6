"""Converts a checkpoint, PyTorch's in any dialect or Keras', to Keras' or PyTorch's: `efficientformer convert`.

python weights/convert.py weights/efficientformer_l1_cifar10.safetensors model.keras
python weights/convert.py model.keras model.pth --dialect snap
"""

from efficientformer_command import main

if __name__ == "__main__":
    main("convert")
