import CoreML
import XCTest

@testable import Sample

/// How long the bundled model takes on this phone, at the first of its image sizes. What is timed is the prediction alone: an image of the model's size
/// in, the label out, without Vision.
final class LatencyTests: XCTestCase {
    private let warmUps = 20
    private let runs = 200

    /// Times every choice of compute units and attaches a report as benchmarks/devices/ holds them.
    func testLatency() throws {
        #if targetEnvironment(simulator)
            throw XCTSkip("A simulator computes on the Mac's CPU: run this on a phone.")
        #else
            let report: [String: Any] = [
                "device": machine(),
                "os": system(),
                "soc": NSNull(),
                "kind": "phone",
                "date": Date().formatted(.iso8601.year().month().day()),
                "command": "xcodebuild test -project Sample.xcodeproj -scheme Sample",
                "versions": ["Xcode": Bundle.main.object(forInfoDictionaryKey: "DTXcode") as? String ?? "unknown"],
                "results": try ComputeUnits.allCases.map(time),
            ]
            let json = try JSONSerialization.data(withJSONObject: report, options: [.prettyPrinted, .sortedKeys])
            let attachment = XCTAttachment(data: json, uniformTypeIdentifier: "public.json")
            attachment.name = "latency.json"
            attachment.lifetime = .keepAlways
            add(attachment)
            print(String(decoding: json, as: UTF8.self))
        #endif
    }

    /// The mean and the deviation that Xcode shows beside this line, and compares with a baseline that you set.
    func testPrediction() throws {
        let model = try loadModel(Setup())
        let image = try blackImage()
        _ = try model.prediction(from: image)
        measure { _ = try? model.prediction(from: image) }
    }

    private func time(_ units: ComputeUnits) throws -> [String: Any] {
        let clock = ContinuousClock()
        let image = try blackImage()
        let start = clock.now
        let model = try loadModel(Setup(units: units))
        let load = clock.now - start
        for _ in 0..<warmUps { _ = try model.prediction(from: image) }
        let samples = try (0..<runs).map { _ in
            try clock.measure { _ = try model.prediction(from: image) } / Duration.milliseconds(1)
        }.sorted()
        let parts = Model.name.split(separator: "_")
        return [
            "file": "\(Model.name).mlpackage",
            "model": parts.dropLast().joined(separator: "_"),
            "mode": String(parts.last ?? ""),
            "bytes": try bundledBytes(),
            "unit": units.rawValue,
            "threads": NSNull(),
            "runs": runs,
            "median_ms": percentile(samples, 0.5),
            "p90_ms": percentile(samples, 0.9),
            "mean_ms": samples.reduce(0, +) / Double(runs),
            "min_ms": samples[0],
            "load_ms": load / Duration.milliseconds(1),
            "memory_mb": NSNull(),
            "instructions": NSNull(),
            "note": "XCTest; bytes are the compiled model's",
        ]
    }

    /// Dense arithmetic takes as long on black as on a photograph.
    private func blackImage() throws -> MLFeatureProvider {
        var buffer: CVPixelBuffer?
        let size = Model.sizes[0]
        let options = [kCVPixelBufferIOSurfacePropertiesKey: [String: Any]()] as CFDictionary
        CVPixelBufferCreate(
            kCFAllocatorDefault, size.width, size.height, kCVPixelFormatType_32BGRA, options, &buffer)
        let image = MLFeatureValue(pixelBuffer: try XCTUnwrap(buffer))
        return try MLDictionaryFeatureProvider(dictionary: [Model.input: image])
    }

    /// Linear between the two nearest samples, as NumPy's.
    private func percentile(_ sorted: [Double], _ fraction: Double) -> Double {
        let position = fraction * Double(sorted.count - 1)
        let below = Int(position)
        let above = min(below + 1, sorted.count - 1)
        return sorted[below] + (position - Double(below)) * (sorted[above] - sorted[below])
    }

    private func bundledBytes() throws -> Int {
        let model = try XCTUnwrap(Bundle.main.url(forResource: Model.name, withExtension: "mlmodelc"))
        let files = FileManager.default.enumerator(at: model, includingPropertiesForKeys: [.fileSizeKey])
        return try XCTUnwrap(files).compactMap { $0 as? URL }.reduce(0) { bytes, file in
            try bytes + (file.resourceValues(forKeys: [.fileSizeKey]).fileSize ?? 0)
        }
    }

    /// Apple's identifier, such as "iPhone13,2", which is the iPhone 12.
    private func machine() -> String {
        var names = utsname()
        uname(&names)
        return withUnsafeBytes(of: &names.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }

    private func system() -> String {
        let version = ProcessInfo.processInfo.operatingSystemVersion
        return "iOS \(version.majorVersion).\(version.minorVersion).\(version.patchVersion)"
    }
}
