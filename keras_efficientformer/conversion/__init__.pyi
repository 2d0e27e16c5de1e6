from .bindings import architecture_of
from .checkpoint import (
    CheckpointInfo,
    adapt_channels,
    infer_variant,
    read_checkpoint,
    write_checkpoint,
)
from .formats import Checkpoint, CheckpointError
from .state_dict import LoadReport, load_state_dict, source_of, to_state_dict

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
