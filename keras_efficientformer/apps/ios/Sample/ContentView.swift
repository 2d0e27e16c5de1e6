import PhotosUI
import SwiftUI

/// The screen. The photo picker asks the user itself: the camera alone needs a permission.
struct ContentView: View {
    private let runner: Runner
    private let camera: Camera
    @State private var item: PhotosPickerItem?
    @State private var isLive = false
    @State private var setup = Setup()
    @State private var photo: UIImage?
    @State private var answer: Answer?
    @State private var problem: String?
    @State private var isBusy = false

    init(_ runner: Runner, _ camera: Camera) {
        (self.runner, self.camera) = (runner, camera)
    }

    var body: some View {
        List {
            PhotosPicker("Choose a photo", selection: $item, matching: .images)
            Toggle("Live camera", isOn: $isLive)
            Picker("Compute units", selection: $setup.units) {
                ForEach(ComputeUnits.allCases, id: \.self) { Text($0.rawValue) }
            }
            if Model.sizes.count > 1 {
                Picker("Image size", selection: $setup.size) {
                    ForEach(Model.sizes, id: \.self) { Text(verbatim: "\($0.height) × \($0.width)") }
                }
            }
            if isLive {
                CameraPreview(session: camera.session).aspectRatio(Camera.aspect, contentMode: .fit).overlay { drawnMask }
            } else if let photo {
                Image(uiImage: photo).resizable().scaledToFit().overlay { drawnMask }
            }
            if isBusy {
                ProgressView("The network is at work")
            }
            if let problem {
                Text(problem).foregroundColor(.red)
            }
            if let answer {
                Section(answer.time) {
                    ForEach(Array(answer.findings.lines.enumerated()), id: \.offset) { _, line in row(of: line) }
                }
            }
        }
        .onChange(of: item) { _ in isLive = false }
        .task(id: Job(item: item, isLive: isLive, setup: setup)) { await run() }
    }

    @ViewBuilder private var drawnMask: some View {
        if let mask = answer?.findings.mask?.image() {
            Image(decorative: mask, scale: 1).resizable().interpolation(.none).opacity(0.6)
        }
    }

    private func row(of line: Findings.Line) -> some View {
        LabeledContent {
            Text(line.share, format: .percent.precision(.fractionLength(1)))
        } label: {
            HStack {
                if let color = line.color {
                    Image(systemName: "square.fill").foregroundColor(Color(color))
                }
                Text(line.label)
            }
        }
    }

    private struct Job: Equatable {
        let item: PhotosPickerItem?
        let isLive: Bool
        let setup: Setup
    }

    private func run() async {
        (answer, problem, isBusy) = (nil, nil, isLive || item != nil)
        do {
            if isLive {
                for try await found in try await camera.answers(by: setup) { (answer, isBusy) = (found, false) }
            } else if let item {
                guard let data = try await item.loadTransferable(type: Data.self) else { throw AppError.unreadablePhoto }
                try Task.checkCancellation()
                photo = UIImage(data: data)
                let found = try await runner.answer(to: data, by: setup)
                if !Task.isCancelled { (answer, isBusy) = (found, false) }
            }
        } catch {
            if !Task.isCancelled { (problem, isBusy) = (error.localizedDescription, false) }
        }
    }
}

extension Color {
    init(_ color: RGB) {
        self.init(red: Double(color.red) / 255, green: Double(color.green) / 255, blue: Double(color.blue) / 255)
    }
}
