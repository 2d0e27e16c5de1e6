"""Timing exported files on computers, phones and emulated CPUs."""
