from .checkpoints import from_checkpoint, load_state_dict, to_state_dict
from .decoder import facts_of, is_segmenter
from .semantic_fpn import SemanticFPN, paper_semantic_fpn

__all__ = [
    "SemanticFPN",
    "facts_of",
    "from_checkpoint",
    "is_segmenter",
    "load_state_dict",
    "paper_semantic_fpn",
    "to_state_dict",
]
