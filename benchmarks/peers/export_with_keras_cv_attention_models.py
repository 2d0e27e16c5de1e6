"""Runs in an environment of keras_cv_attention_models: EfficientFormer-L1 as a float32 .tflite file.

    python export_with_keras_cv_attention_models.py FILE

As its README converts this model ("TFLite Conversion"), with its own function for a static batch, which is faster.
"""

import os
import sys
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # it knows no Keras 3

import tensorflow as tf
from keras_cv_attention_models import efficientformer, model_surgery

model = efficientformer.EfficientFormerL1(pretrained=None)
model = model_surgery.convert_dense_to_conv(model)
model = model_surgery.convert_to_fixed_batch_size(model)
Path(sys.argv[1]).write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
