import CoreGraphics

/// What a model finds in a photo: its classes, or a class for every pixel.
enum ModelTask {
    case classification, segmentation
}

/// A size of images that the package takes, in pixels, and its function for them; nil where it has one size.
struct InputSize: Hashable, Sendable {
    let function: String?
    let width, height: Int
}

/// All that this app knows of its model: `efficientformer app ios` writes these lines from the package.
enum Model {
    static let name = "efficientformer_l1_224_float16"
    static let task = ModelTask.classification

    /// An RGB image, as it is: the normalisation is inside the model.
    static let input = "image"

    /// Of several, between which the user chooses, the first is what opens by default.
    static let sizes = [InputSize(function: nil, width: 224, height: 224)]

    /// The share of a photo's short side that the network sees, as in training; 1 of a segmenter.
    static let cropFraction: CGFloat = 0.95

    /// The probabilities by name of class; of a segmenter the number of each pixel's class, int32 (1, height, width).
    static let output = "classLabel_probs"
    static let classes = 1000

    /// Where the package of a segmenter has the names and colors of its classes, for Xcode too.
    static let legend = "com.apple.coreml.model.preview.parameters"
}
