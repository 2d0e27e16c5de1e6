"""Runs in an environment of litert-torch: timm's EfficientFormer-L1 as a float32 .tflite file, channels last as ours.

python export_with_litert_torch.py FILE
"""

import sys

import litert_torch
import timm
import torch

model = litert_torch.to_channel_last_io(timm.create_model("efficientformer_l1"), args=[0]).eval()
litert_torch.convert(model, (torch.zeros(1, 224, 224, 3),)).export(sys.argv[1])
