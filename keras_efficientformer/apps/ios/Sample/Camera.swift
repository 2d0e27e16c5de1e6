import AVFoundation
import SwiftUI

/// The camera on the phone's back, whose frames are answered for one by one; what comes in between is left out.
///
/// Safe to share, because all that can change is touched on the runner's queue alone.
final class Camera: NSObject, AVCaptureVideoDataOutputSampleBufferDelegate, @unchecked Sendable {
    /// Of the frames, upright: width to height.
    static let aspect: CGFloat = 3.0 / 4

    let session = AVCaptureSession()
    private let runner: Runner
    private var setup = Setup()
    private var answers: AsyncThrowingStream<Answer, any Error>.Continuation?

    init(_ runner: Runner) {
        self.runner = runner
    }

    /// What is found in the frames, until whoever reads it stops.
    func answers(by setup: Setup) async throws -> AsyncThrowingStream<Answer, any Error> {
        guard await AVCaptureDevice.requestAccess(for: .video) else { throw AppError.noCamera }
        return AsyncThrowingStream(bufferingPolicy: .bufferingNewest(1)) { answers in
            answers.onTermination = { _ in
                self.runner.queue.async { self.session.stopRunning() }
            }
            runner.queue.async {
                (self.setup, self.answers) = (setup, answers)
                do {
                    try self.configure()
                    self.session.startRunning()
                } catch {
                    answers.finish(throwing: error)
                }
            }
        }
    }

    func captureOutput(
        _ output: AVCaptureOutput, didOutput sampleBuffer: CMSampleBuffer, from connection: AVCaptureConnection
    ) {
        guard let frame = CMSampleBufferGetImageBuffer(sampleBuffer) else { return }
        do {
            // The sensor lies on its side in a phone that is held upright, as this app asks for.
            answers?.yield(try runner.answer(to: frame, .right, by: setup))
        } catch {
            answers?.finish(throwing: error)
        }
    }

    private func configure() throws {
        guard session.inputs.isEmpty else { return }
        guard let device = AVCaptureDevice.default(.builtInWideAngleCamera, for: .video, position: .back) else {
            throw AppError.noCamera
        }
        let input = try AVCaptureDeviceInput(device: device)
        let output = AVCaptureVideoDataOutput()
        output.videoSettings = [kCVPixelBufferPixelFormatTypeKey as String: kCVPixelFormatType_32BGRA]
        output.alwaysDiscardsLateVideoFrames = true
        output.setSampleBufferDelegate(self, queue: runner.queue)
        session.beginConfiguration()
        session.sessionPreset = .vga640x480
        session.addInput(input)
        session.addOutput(output)
        session.commitConfiguration()
    }
}

/// What the camera sees, as it moves.
struct CameraPreview: UIViewRepresentable {
    let session: AVCaptureSession

    func makeUIView(context: Context) -> PreviewView {
        let view = PreviewView()
        (view.layer as? AVCaptureVideoPreviewLayer)?.session = session
        return view
    }

    func updateUIView(_ view: PreviewView, context: Context) {}

    final class PreviewView: UIView {
        override class var layerClass: AnyClass { AVCaptureVideoPreviewLayer.self }
    }
}
