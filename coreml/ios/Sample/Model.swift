import CoreGraphics

/// All that this app knows of its classifier, as the exporter's report says it.
///
/// For a model of your own change these lines: its report, the .json file beside the package, has the values.
enum Model {
    static let name = "efficientformer_l1_224_float16"

    /// An RGB image, as it is: the normalisation is inside the model.
    static let input = "image"
    static let width = 224
    static let height = 224

    static let label = "classLabel"
    static let probabilities = "classLabel_probs"
    static let classes = 1000

    /// The share of a photograph's short side that the network sees, as in training.
    static let cropFraction: CGFloat = 0.95
}

/// All that this app knows of its segmenter, as the exporter's report says it; to be changed likewise.
enum SegmentationModel {
    static let name = "efficientformer_l1_semantic_fpn_256_float16"

    /// An RGB image, as it is, of the whole photograph, stretched to this shape.
    static let input = "image"
    static let width = 256
    static let height = 256

    /// The number of each pixel's class, int32 (1, height, width).
    static let output = "classes"
    static let classes = 21

    /// Where the package's own metadata holds the classes' labels and colours, for Xcode too.
    static let legend = "com.apple.coreml.model.preview.parameters"
}
