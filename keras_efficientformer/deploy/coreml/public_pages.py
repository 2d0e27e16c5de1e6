"""The public pages that the rules of the Neural Engine's lint come from. Room: deploy/coreml."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublicPage:
    """A public page that a rule comes from."""

    title: str
    url: str


CORE_AI_RULES = PublicPage(
    "Apple, Core AI models: Neural Engine rules (neural_engine_rules.md of the skill model-authoring)",
    "https://github.com/apple/coreai-models",
)
TRANSFORMERS = PublicPage(
    "Apple Machine Learning Research: Deploying Transformers on the Apple Neural Engine",
    "https://machinelearning.apple.com/research/neural-engine-transformers",
)
TYPED_EXECUTION = PublicPage(
    "Apple, Core ML Tools guide: Typed Execution Workflow Example",
    "https://apple.github.io/coremltools/docs-guides/source/typed-execution-example.html",
)
FLEXIBLE_SHAPES = PublicPage(
    "Apple Developer Forums, an Apple engineer's answer: Dynamic coreml model inference is significantly slower",
    "https://developer.apple.com/forums/thread/724930",
)
RECURRENT = PublicPage(
    "coremltools issue 1780, a maintainer's answer: Tensorflow to CoreML running only on CPU",
    "https://github.com/apple/coremltools/issues/1780",
)
GRID_SAMPLE = PublicPage(
    "coremltools issue 1875: coreML grid sample does not runs on GPU or ANE",
    "https://github.com/apple/coremltools/issues/1875",
)
GATHER_PLAN = PublicPage(
    "Compute plan of a Whisper text decoder",
    "https://huggingface.co/SingularityUS/atc-whisperkit/blob/main/small/TextDecoder.mlcomputeplan.json",
)
UNSUPPORTED_LAYERS = PublicPage(
    "Matthijs Hollemans, neural-engine: Which Core ML layers are not supported by the ANE?",
    "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md",
)
MOBILENET_LOG = PublicPage(
    "neural-engine issue 2, messages of Core ML's log: Issues discovered while running MobileNet V3",
    "https://github.com/hollance/neural-engine/issues/2",
)
YOLO = PublicPage(
    "YOLOv5 issue 2526: Optimize model for iOS Neural Engine",
    "https://github.com/ultralytics/yolov5/issues/2526",
)
WIDTH_PROBE = PublicPage(
    "rustane issue 13: ANE compile fails, input spatial width exceeds 16,384 limit",
    "https://github.com/ncdrone/rustane/issues/13",
)
ATTENTION_PLANS = PublicPage(
    "Vx issue 437, compute plans of scaled_dot_product_attention",
    "https://github.com/vx-lang/Vx/issues/437",
)

ACTIVATIONS_IN_INT8 = PublicPage(
    "Apple, Core ML Tools guide: Performance of quantization",
    "https://apple.github.io/coremltools/docs-guides/source/opt-quantization-perf.html",
)
