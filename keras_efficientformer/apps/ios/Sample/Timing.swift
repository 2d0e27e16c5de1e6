/// Times of a loaded model's runs, of Vision's scaling and the prediction together: the first apart, as it prepares
/// memory and kernels, of the others the median.
struct Timing {
    /// How many of the latest runs the median is of.
    private static let latest = 15

    private var first: Duration?
    private var others: [Duration] = []

    mutating func measure<Value>(_ run: () throws -> Value) rethrows -> Value {
        let clock = ContinuousClock()
        let start = clock.now
        let value = try run()
        let time = clock.now - start
        if first == nil {
            first = time
        } else {
            others = (others + [time]).suffix(Self.latest)
        }
        return value
    }

    /// "2.3 ms, the first 80.1 ms".
    var text: String {
        let median = others.isEmpty ? nil : others.sorted()[others.count / 2]
        return [median.map(Self.text), first.map { "the first \(Self.text($0))" }].compactMap { $0 }
            .joined(separator: ", ")
    }

    private static func text(_ time: Duration) -> String {
        "\((time / Duration.milliseconds(1) * 10).rounded() / 10) ms"
    }
}
