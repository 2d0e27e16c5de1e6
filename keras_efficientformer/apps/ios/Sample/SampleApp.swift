import SwiftUI

@main
struct SampleApp: App {
    private let runner = Runner()
    private let camera: Camera

    init() {
        camera = Camera(runner)
    }

    var body: some Scene {
        WindowGroup { ContentView(runner, camera) }
    }
}
