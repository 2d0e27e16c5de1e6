import PhotosUI
import SwiftUI

enum Kind: String, CaseIterable {
    case classification, segmentation
}

/// The screen. The photo picker asks the user itself, so this app asks for no permission.
struct ContentView: View {
    @State private var item: PhotosPickerItem?
    @State private var kind = Kind.classification
    @State private var units = ComputeUnits.all
    @State private var photo: UIImage?
    @State private var classification: Classification?
    @State private var segmentation: Segmentation?
    @State private var problem: String?

    var body: some View {
        List {
            PhotosPicker("Choose a photo", selection: $item, matching: .images)
            Picker("Model", selection: $kind) {
                ForEach(Kind.allCases, id: \.self) { Text($0.rawValue) }
            }
            Picker("Compute units", selection: $units) {
                ForEach(ComputeUnits.allCases, id: \.self) { Text($0.rawValue) }
            }
            if let photo {
                Image(uiImage: photo).resizable().scaledToFit().overlay {
                    if let mask = segmentation?.mask() {
                        Image(decorative: mask, scale: 1).resizable().interpolation(.none).opacity(0.6)
                    }
                }
            }
            if let problem {
                Text(problem).foregroundColor(.red)
            }
            if let classification {
                Section("\(classification.milliseconds, specifier: "%.2f") ms") {
                    ForEach(Array(classification.predictions.enumerated()), id: \.offset) { _, prediction in
                        LabeledContent(
                            prediction.label, value: prediction.probability,
                            format: .percent.precision(.fractionLength(1)))
                    }
                }
            }
            if let segmentation {
                Section("\(segmentation.milliseconds, specifier: "%.2f") ms") {
                    ForEach(Array(segmentation.shares.enumerated()), id: \.offset) { _, share in
                        LabeledContent {
                            Text(share.fraction, format: .percent.precision(.fractionLength(1)))
                        } label: {
                            Label {
                                Text(share.label)
                            } icon: {
                                Image(systemName: "square.fill").foregroundColor(Color(share.color))
                            }
                        }
                    }
                }
            }
        }
        .task(id: Job(item: item, kind: kind, units: units)) { await answer() }
    }

    private struct Job: Equatable {
        let item: PhotosPickerItem?
        let kind: Kind
        let units: ComputeUnits
    }

    @MainActor
    private func answer() async {
        guard let item else { return }
        (classification, segmentation, problem) = (nil, nil, nil)
        do {
            guard let data = try await item.loadTransferable(type: Data.self) else { throw ModelError.unreadablePhoto }
            photo = UIImage(data: data)
            // Loading compiles the model for the Neural Engine: not on the thread that draws the screen.
            switch kind {
            case .classification:
                let result = try await Task.detached { [units] in try Classifier(units).classify(data) }.value
                if !Task.isCancelled { classification = result }
            case .segmentation:
                let result = try await Task.detached { [units] in try Segmenter(units).segment(data) }.value
                if !Task.isCancelled { segmentation = result }
            }
        } catch {
            if !Task.isCancelled { problem = error.localizedDescription }
        }
    }
}

extension Color {
    init(_ color: RGB) {
        self.init(red: Double(color.red) / 255, green: Double(color.green) / 255, blue: Double(color.blue) / 255)
    }
}
