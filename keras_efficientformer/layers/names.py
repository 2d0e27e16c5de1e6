"""The names of a model's top-level layers, in one place. Room: layers.

Models are made with these names, and conversion, folding and training find the layers by them. Files of both formats
hold them, so they do not change.
"""

NORMALIZATION = "normalization"
STEM = "stem"
STAGES = ("stage1", "stage2", "stage3", "stage4")
NORM = "norm"
# Every model has these layers.
BODY_LAYERS = (STEM, *STAGES, NORM)

AVERAGE_POOL = "avg_pool"
MAX_POOL = "max_pool"
# The first classifier is trained on labels, the second on a teacher.
HEADS = ("head", "head_dist")
HEAD_AVERAGE = "head_average"
PREDICTIONS = ("predictions", "predictions_dist")
# What a segmentation model ends in.
MASKS = "masks"
