"""The commands that measure models and files: `benchmark` and `compare`. Room: cli/measurements."""
