"""What a user may import: these lists change only where the public interface is meant to change."""

import importlib
import inspect

import pytest

PUBLIC = {
    "keras_efficientformer": [
        "Attention",
        "AttentionDownsample",
        "AttentionV2",
        "BlockV2",
        "DownsampleV2",
        "EfficientFormer",
        "EfficientFormerL1",
        "EfficientFormerL3",
        "EfficientFormerL7",
        "EfficientFormerV2",
        "EfficientFormerV2L",
        "EfficientFormerV2S0",
        "EfficientFormerV2S1",
        "EfficientFormerV2S2",
        "LayerScale",
        "LocalGlobalQuery",
        "Meta3D",
        "Meta4D",
        "StochasticDepth",
        "TalkingHeads",
        "UnifiedFFN",
        "decode_predictions",
        "feature_pyramid",
        "from_checkpoint",
        "preprocess_input",
    ],
    "keras_efficientformer.apps": [
        "PhoneApp",
        "WebApp",
        "write_android_app",
        "write_ios_app",
        "write_web_app",
    ],
    "keras_efficientformer.conversion": [
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
    ],
    "keras_efficientformer.deploy": [
        "ComparisonReport",
        "ExportError",
        "ExportReport",
        "compare_modes",
        "export_coreml",
        "export_tflite",
        "plot_comparison",
        "save_export_page",
    ],
    "keras_efficientformer.hub": [
        "EfficientFormerBackbone",
        "EfficientFormerImageClassifier",
        "EfficientFormerImageClassifierPreprocessor",
        "EfficientFormerImageConverter",
    ],
    "keras_efficientformer.imagenet": [
        "ImageError",
        "decode_predictions",
        "imagenet_labels",
        "load_image",
        "preprocess_image",
        "preprocess_input",
        "read_labels",
        "resize_and_crop",
    ],
    "keras_efficientformer.layers": [
        "Attention",
        "AttentionDownsample",
        "AttentionV2",
        "BlockV2",
        "ConvMlp",
        "ConvNorm",
        "Downsample",
        "DownsampleV2",
        "LayerScale",
        "LocalGlobalQuery",
        "Meta3D",
        "Meta4D",
        "Mlp",
        "Pooling",
        "Stage",
        "StageV2",
        "Stem",
        "StemV2",
        "StochasticDepth",
        "TalkingHeads",
        "UnifiedFFN",
    ],
    "keras_efficientformer.segmentation": [
        "SemanticFPN",
        "facts_of",
        "from_checkpoint",
        "is_segmenter",
        "load_state_dict",
        "paper_semantic_fpn",
        "to_state_dict",
    ],
    "keras_efficientformer.sharing": ["Repository", "Upload", "UploadError", "push", "write_repository"],
    "keras_efficientformer.training": [
        "EvaluationReport",
        "FineTuneConfig",
        "FineTuneReport",
        "TrainingError",
        "evaluate",
        "finetune",
        "list_images",
        "prune_low_magnitude",
        "quantize_aware",
        "strip_pruning",
        "to_keras",
    ],
}


def public_names(module):
    """What `__all__` says; where there is none, the functions and classes that the module defines."""
    if hasattr(module, "__all__"):
        return module.__all__
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    )


@pytest.mark.parametrize(("name", "expected"), PUBLIC.items(), ids=PUBLIC)
def test_public_names(name, expected):
    module = importlib.import_module(name)
    assert public_names(module) == expected
    for public in expected:
        assert inspect.getdoc(getattr(module, public)), public
