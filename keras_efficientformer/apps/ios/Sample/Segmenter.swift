import CoreML
import Vision

struct RGB: Sendable {
    let red, green, blue: UInt8

    /// - Parameter hex: "#rrggbb"; anything else is black.
    init(_ hex: String) {
        let value = Int(hex.dropFirst(), radix: 16) ?? 0
        (red, green, blue) = (UInt8(value >> 16 & 255), UInt8(value >> 8 & 255), UInt8(value & 255))
    }
}

/// The color of each pixel's class, row by row, of the network's size: to be stretched over the whole picture.
struct Mask: Sendable {
    let colors: [RGB]
    let size: InputSize

    func image() -> CGImage? {
        let bytes: [UInt8] = colors.flatMap { [$0.red, $0.green, $0.blue, .max] }
        guard let provider = CGDataProvider(data: Data(bytes) as CFData) else { return nil }
        return CGImage(
            width: size.width, height: size.height, bitsPerComponent: 8, bitsPerPixel: 32,
            bytesPerRow: 4 * size.width, space: CGColorSpaceCreateDeviceRGB(),
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.noneSkipLast.rawValue), provider: provider,
            decode: nil, shouldInterpolate: false, intent: .defaultIntent)
    }
}

/// What the package says of its classes, in their order; colors are "#rrggbb".
struct Legend: Decodable {
    let labels: [String]
    let colors: [String]

    init(of model: MLModel) throws {
        let own = model.modelDescription.metadata[.creatorDefinedKey] as? [String: String]
        guard let text = own?[Model.legend],
              let legend = try? JSONDecoder().decode(Legend.self, from: Data(text.utf8)),
              legend.labels.count == Model.classes, legend.colors.count == Model.classes
        else { throw AppError.differentModel }
        self = legend
    }
}

/// The class of every pixel by Vision, which stretches a photo to the model's input.
struct Segmenter: Network {
    private let size: InputSize
    private let request: VNCoreMLRequest
    private let labels: [String]
    private let palette: [RGB]

    init(_ setup: Setup) throws {
        size = setup.size
        let model = try loadModel(setup)
        let legend = try Legend(of: model)
        (labels, palette) = (legend.labels, legend.colors.map(RGB.init))
        request = VNCoreMLRequest(model: try VNCoreMLModel(for: model))
        request.imageCropAndScaleOption = .scaleFill // the mask then covers the whole picture
    }

    func findings(in picture: VNImageRequestHandler) throws -> Findings {
        try picture.perform([request])
        guard let observation = request.results?.first as? VNCoreMLFeatureValueObservation,
              let output = observation.featureValue.multiArrayValue
        else { throw AppError.differentModel }
        // A shaped array's scalars are row by row, however Core ML pads the rows of what it gives.
        let classes = MLShapedArray<Int32>(converting: output).scalars.map(Int.init)
        let lines = Dictionary(grouping: classes) { $0 }.map { number, pixels in
            Findings.Line(
                label: labels[number], share: Double(pixels.count) / Double(classes.count), color: palette[number])
        }
        return Findings(
            lines: lines.sorted { $0.share > $1.share }, mask: Mask(colors: classes.map { palette[$0] }, size: size))
    }
}
