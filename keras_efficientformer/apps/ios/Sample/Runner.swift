import CoreML
import Foundation
import ImageIO
import Vision

/// What the screen shows of one answer.
struct Answer: Sendable {
    let findings: Findings
    let time: String
}

/// The model, loaded once for each choice of how it is run, and the queue that it is used on.
///
/// Safe to share, because all that can change is touched on `queue` alone.
final class Runner: @unchecked Sendable {
    /// Loading compiles the model for the Neural Engine: not on the thread that draws the screen.
    let queue = DispatchQueue(label: "model", qos: .userInitiated)
    /// How often a photo is answered for, so that its time is that of a warm model.
    private let runs = 6
    private var setup: Setup?
    private var network: Result<any Network, any Error> = .failure(AppError.missingModel)
    private var timing = Timing()

    /// - Parameter photo: the content of an image file.
    func answer(to photo: Data, by setup: Setup) async throws -> Answer {
        try await withCheckedThrowingContinuation { continuation in
            queue.async {
                continuation.resume(
                    with: Result {
                        let picture = VNImageRequestHandler(data: photo, orientation: try orientation(of: photo))
                        return try self.answer(to: picture, by: setup, runs: self.runs)
                    })
            }
        }
    }

    /// To be called on `queue`.
    func answer(to frame: CVPixelBuffer, _ orientation: CGImagePropertyOrientation, by setup: Setup) throws -> Answer {
        try answer(to: VNImageRequestHandler(cvPixelBuffer: frame, orientation: orientation), by: setup, runs: 1)
    }

    private func answer(to picture: VNImageRequestHandler, by setup: Setup, runs: Int) throws -> Answer {
        if setup != self.setup {
            (self.setup, timing) = (setup, Timing())
            network = Result { try load(setup) }
        }
        let loaded = try network.get()
        var findings = Findings(lines: [])
        for _ in 0..<runs {
            findings = try timing.measure { try loaded.findings(in: picture) }
        }
        return Answer(findings: findings, time: timing.text)
    }
}

private func load(_ setup: Setup) throws -> any Network {
    switch Model.task {
    case .classification: return try Classifier(setup)
    case .segmentation: return try Segmenter(setup)
    }
}

/// How an image file is to be turned upright, from its EXIF data.
private func orientation(of photo: Data) throws -> CGImagePropertyOrientation {
    guard let source = CGImageSourceCreateWithData(photo as CFData, nil),
          let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any]
    else { throw AppError.unreadablePhoto }
    let value = properties[kCGImagePropertyOrientation] as? UInt32
    return value.flatMap(CGImagePropertyOrientation.init(rawValue:)) ?? .up
}
