"""The commands `efficientformer app`: apps around exported files, a module for each kind. Room: cli/apps."""
