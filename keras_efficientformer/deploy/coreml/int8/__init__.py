"""Core ML packages that compute in int8: rounding put in, and counted. Room: deploy/coreml/int8."""
