from .checkpoints import from_checkpoint, load_state_dict, to_state_dict
from .semantic_fpn import SemanticFPN, paper_semantic_fpn

__all__ = ["SemanticFPN", "from_checkpoint", "load_state_dict", "paper_semantic_fpn", "to_state_dict"]
