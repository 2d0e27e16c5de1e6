import Vision

/// A photo's classes by Vision, which cuts out the centre and scales it to the model's input.
struct Classifier: Network {
    private let request: VNCoreMLRequest

    init(_ setup: Setup) throws {
        let model = try loadModel(setup)
        guard model.modelDescription.classLabels?.count == Model.classes else { throw AppError.differentModel }
        request = VNCoreMLRequest(model: try VNCoreMLModel(for: model))
        request.imageCropAndScaleOption = .centerCrop
        let margin = (1 - Model.cropFraction) / 2
        request.regionOfInterest = CGRect(
            x: margin, y: margin, width: Model.cropFraction, height: Model.cropFraction)
    }

    func findings(in picture: VNImageRequestHandler) throws -> Findings {
        try picture.perform([request])
        let observations = request.results as? [VNClassificationObservation] ?? []
        return Findings(
            lines: observations.prefix(5).map {
                Findings.Line(label: $0.identifier, share: Double($0.confidence))
            })
    }
}
