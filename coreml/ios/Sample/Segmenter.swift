import CoreML
import ImageIO
import Vision

struct RGB: Sendable {
    let red, green, blue: UInt8

    /// - Parameter hex: "#rrggbb"; anything else is black.
    init(_ hex: String) {
        let value = Int(hex.dropFirst(), radix: 16) ?? 0
        (red, green, blue) = (UInt8(value >> 16 & 255), UInt8(value >> 8 & 255), UInt8(value & 255))
    }
}

/// How much of a photograph is of one class.
struct Share: Sendable {
    let label: String
    let color: RGB
    /// Of the pixels.
    let fraction: Double
}

struct Segmentation: Sendable {
    /// Of the classes that were found, the largest first.
    let shares: [Share]
    /// Of Vision's scaling and the prediction together.
    let milliseconds: Double
    /// The colour of each pixel's class, row by row.
    private let colors: [RGB]

    init(classes: [Int], legend: Legend, milliseconds: Double) {
        let palette = legend.colors.map(RGB.init)
        colors = classes.map { palette[$0] }
        shares = Dictionary(grouping: classes) { $0 }.map { number, pixels in
            Share(
                label: legend.labels[number], color: palette[number],
                fraction: Double(pixels.count) / Double(classes.count))
        }.sorted { $0.fraction > $1.fraction }
        self.milliseconds = milliseconds
    }

    /// A picture of the model's size, to be stretched over the whole photograph.
    func mask() -> CGImage? {
        let bytes: [UInt8] = colors.flatMap { [$0.red, $0.green, $0.blue, .max] }
        guard let provider = CGDataProvider(data: Data(bytes) as CFData) else { return nil }
        return CGImage(
            width: SegmentationModel.width, height: SegmentationModel.height, bitsPerComponent: 8, bitsPerPixel: 32,
            bytesPerRow: 4 * SegmentationModel.width, space: CGColorSpaceCreateDeviceRGB(),
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.noneSkipLast.rawValue), provider: provider,
            decode: nil, shouldInterpolate: false, intent: .defaultIntent)
    }
}

/// What the package says of its classes, in their order; colours are "#rrggbb".
struct Legend: Decodable {
    let labels: [String]
    let colors: [String]

    init(of model: MLModel) throws {
        let own = model.modelDescription.metadata[.creatorDefinedKey] as? [String: String]
        guard let text = own?[SegmentationModel.legend],
              let legend = try? JSONDecoder().decode(Legend.self, from: Data(text.utf8)),
              legend.labels.count == SegmentationModel.classes, legend.colors.count == SegmentationModel.classes
        else { throw ModelError.different(SegmentationModel.name) }
        self = legend
    }
}

/// The class of every pixel by Vision, which turns a photograph upright and stretches it to the model's input.
struct Segmenter {
    private let request: VNCoreMLRequest
    private let legend: Legend

    init(_ units: ComputeUnits) throws {
        let model = try openModel(SegmentationModel.name, units)
        let description = model.modelDescription
        let image = description.inputDescriptionsByName[SegmentationModel.input]?.imageConstraint
        let output = description.outputDescriptionsByName[SegmentationModel.output]?.multiArrayConstraint
        guard image?.pixelsWide == SegmentationModel.width, image?.pixelsHigh == SegmentationModel.height,
              output?.dataType == .int32
        else { throw ModelError.different(SegmentationModel.name) }
        legend = try Legend(of: model)
        request = VNCoreMLRequest(model: try VNCoreMLModel(for: model))
        request.imageCropAndScaleOption = .scaleFill // the mask then covers the whole photograph
    }

    /// - Parameter photo: the content of an image file.
    func segment(_ photo: Data) throws -> Segmentation {
        let handler = VNImageRequestHandler(data: photo, orientation: try orientation(of: photo))
        try handler.perform([request]) // the first prediction prepares memory: the second is timed
        let time = try ContinuousClock().measure { try handler.perform([request]) }
        guard let observation = request.results?.first as? VNCoreMLFeatureValueObservation,
              let classes = observation.featureValue.multiArrayValue
        else { throw ModelError.different(SegmentationModel.name) }
        return Segmentation(
            // A shaped array's scalars are row by row, however Core ML pads the rows of what it gives.
            classes: MLShapedArray<Int32>(converting: classes).scalars.map(Int.init), legend: legend,
            milliseconds: time / Duration.milliseconds(1))
    }
}

/// How an image file is to be turned upright, from its EXIF data, so that the mask lies as the photograph is shown.
private func orientation(of photo: Data) throws -> CGImagePropertyOrientation {
    guard let source = CGImageSourceCreateWithData(photo as CFData, nil),
          let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any]
    else { throw ModelError.unreadablePhoto }
    let value = properties[kCGImagePropertyOrientation] as? UInt32
    return value.flatMap(CGImagePropertyOrientation.init(rawValue:)) ?? .up
}
