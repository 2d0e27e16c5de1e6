import CoreML
import Vision

/// What Core ML may compute on, by Core ML's own names.
enum ComputeUnits: String, CaseIterable {
    case all, cpuAndNeuralEngine, cpuAndGPU, cpuOnly

    var value: MLComputeUnits {
        switch self {
        case .all: return .all
        case .cpuAndNeuralEngine: return .cpuAndNeuralEngine
        case .cpuAndGPU: return .cpuAndGPU
        case .cpuOnly: return .cpuOnly
        }
    }
}

struct Prediction: Sendable {
    let label: String
    let probability: Double
}

struct Classification: Sendable {
    /// The most probable first.
    let predictions: [Prediction]
    /// Of Vision's scaling and the prediction together.
    let milliseconds: Double
}

enum ModelError: LocalizedError {
    /// A model's name.
    case missing(String), different(String)
    case unreadablePhoto

    var errorDescription: String? {
        switch self {
        case .missing(let name):
            return "This app has no \(name).mlpackage. The README says how to export it."
        case .different(let name):
            return "\(name).mlpackage is not what Model.swift describes. Compare it with the package's report."
        case .unreadablePhoto:
            return "The photo cannot be read. Choose another."
        }
    }
}

/// A bundled model, by its package's name.
func openModel(_ name: String, _ units: ComputeUnits) throws -> MLModel {
    guard let package = Bundle.main.url(forResource: name, withExtension: "mlmodelc") else {
        throw ModelError.missing(name)
    }
    let configuration = MLModelConfiguration()
    configuration.computeUnits = units.value
    return try MLModel(contentsOf: package, configuration: configuration)
}

/// The bundled classifier, after a check that it is the one that `Model` describes.
func loadModel(_ units: ComputeUnits) throws -> MLModel {
    let model = try openModel(Model.name, units)
    let description = model.modelDescription
    let image = description.inputDescriptionsByName[Model.input]?.imageConstraint
    guard image?.pixelsWide == Model.width, image?.pixelsHigh == Model.height,
          description.predictedFeatureName == Model.label,
          description.predictedProbabilitiesName == Model.probabilities,
          description.classLabels?.count == Model.classes
    else { throw ModelError.different(Model.name) }
    return model
}

/// A photograph's classes by Vision, which turns it upright, cuts out the centre and scales it to the model's input.
struct Classifier {
    private let request: VNCoreMLRequest

    init(_ units: ComputeUnits) throws {
        request = VNCoreMLRequest(model: try VNCoreMLModel(for: loadModel(units)))
        request.imageCropAndScaleOption = .centerCrop
        let margin = (1 - Model.cropFraction) / 2
        request.regionOfInterest = CGRect(
            x: margin, y: margin, width: Model.cropFraction, height: Model.cropFraction)
    }

    /// - Parameter photo: the content of an image file.
    func classify(_ photo: Data, top: Int = 5) throws -> Classification {
        let handler = VNImageRequestHandler(data: photo)
        try handler.perform([request]) // the first prediction prepares memory: the second is timed
        let time = try ContinuousClock().measure { try handler.perform([request]) }
        let observations = request.results as? [VNClassificationObservation] ?? []
        return Classification(
            predictions: observations.prefix(top).map {
                Prediction(label: $0.identifier, probability: Double($0.confidence))
            },
            milliseconds: time / Duration.milliseconds(1))
    }
}
