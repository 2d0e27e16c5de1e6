"""Core ML packages for iOS: written, compressed, linted, run on any OS, and compared. Room: deploy/coreml."""
