import PhotosUI
import SwiftUI

/// The screen. The photo picker asks the user itself, so this app asks for no permission.
struct ContentView: View {
    @State private var item: PhotosPickerItem?
    @State private var units = ComputeUnits.all
    @State private var photo: UIImage?
    @State private var classification: Classification?
    @State private var problem: String?

    var body: some View {
        List {
            PhotosPicker("Choose a photo", selection: $item, matching: .images)
            Picker("Compute units", selection: $units) {
                ForEach(ComputeUnits.allCases, id: \.self) { Text($0.rawValue) }
            }
            if let photo {
                Image(uiImage: photo).resizable().scaledToFit()
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
        }
        .task(id: Job(item: item, units: units)) { await classify() }
    }

    private struct Job: Equatable {
        let item: PhotosPickerItem?
        let units: ComputeUnits
    }

    @MainActor
    private func classify() async {
        guard let item else { return }
        (classification, problem) = (nil, nil)
        do {
            guard let data = try await item.loadTransferable(type: Data.self) else { throw ModelError.unreadablePhoto }
            photo = UIImage(data: data)
            // Loading compiles the model for the Neural Engine: not on the thread that draws the screen.
            let result = try await Task.detached { [units] in try Classifier(units).classify(data) }.value
            if !Task.isCancelled { classification = result }
        } catch {
            if !Task.isCancelled { problem = error.localizedDescription }
        }
    }
}
