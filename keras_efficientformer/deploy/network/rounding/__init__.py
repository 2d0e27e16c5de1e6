"""Rounding weights to few values with images in view, and choosing how few. Room: deploy/network/rounding."""
