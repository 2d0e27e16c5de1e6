"""Converts checkpoint files to models and back, and checks every tensor. Room: conversion."""

from keras_efficientformer.conversion.bindings import architecture_of
from keras_efficientformer.conversion.checkpoint import (
    CheckpointInfo,
    adapt_channels,
    infer_variant,
    read_checkpoint,
    write_checkpoint,
)
from keras_efficientformer.conversion.formats import Checkpoint
from keras_efficientformer.conversion.state_dict import LoadReport, load_state_dict, source_of, to_state_dict
from keras_efficientformer.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointInfo",
    "LoadReport",
    "adapt_channels",
    "architecture_of",
    "infer_variant",
    "load_state_dict",
    "read_checkpoint",
    "source_of",
    "to_state_dict",
    "write_checkpoint",
]
