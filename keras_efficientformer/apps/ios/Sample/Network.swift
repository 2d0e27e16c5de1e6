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

/// How the model is run, as it is chosen on the screen.
struct Setup: Hashable, Sendable {
    var units = ComputeUnits.all
    var size = Model.sizes[0]
}

/// A loaded model. To be used on one queue.
protocol Network {
    init(_ setup: Setup) throws

    /// What it finds in a picture, which Vision turns upright and scales.
    func findings(in picture: VNImageRequestHandler) throws -> Findings
}

/// What was found in a picture, as the screen shows it.
struct Findings: Sendable {
    /// The most probable class, or the one of most pixels, first.
    let lines: [Line]
    var mask: Mask?

    struct Line: Sendable {
        let label: String
        /// The probability, or the share of the pixels.
        let share: Double
        var color: RGB?
    }
}

enum AppError: LocalizedError {
    case missingModel, differentModel, oldSystem, unreadablePhoto, noCamera

    var errorDescription: String? {
        switch self {
        case .missingModel: return "This app has no \(Model.name).mlpackage."
        case .differentModel: return "\(Model.name).mlpackage is not what Model.swift describes."
        case .oldSystem: return "A model of several image sizes needs iOS 18."
        case .unreadablePhoto: return "The photo cannot be read. Choose another."
        case .noCamera: return "There is no camera, or it is not allowed: see Settings > Privacy & Security > Camera."
        }
    }
}

/// The bundled model, after a check that it is the one that `Model` describes.
func loadModel(_ setup: Setup) throws -> MLModel {
    guard let package = Bundle.main.url(forResource: Model.name, withExtension: "mlmodelc") else {
        throw AppError.missingModel
    }
    let configuration = MLModelConfiguration()
    configuration.computeUnits = setup.units.value
    if let function = setup.size.function {
        guard #available(iOS 18, *) else { throw AppError.oldSystem }
        configuration.functionName = function
    }
    let model = try MLModel(contentsOf: package, configuration: configuration)
    let description = model.modelDescription
    let image = description.inputDescriptionsByName[Model.input]?.imageConstraint
    guard image?.pixelsWide == setup.size.width, image?.pixelsHigh == setup.size.height,
          description.outputDescriptionsByName[Model.output] != nil
    else { throw AppError.differentModel }
    return model
}
