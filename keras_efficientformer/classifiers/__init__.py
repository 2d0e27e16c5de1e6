"""Opens models and exported files as classifiers, which all take raw pixels and give scores. Room: classifiers.

A Keras model, a checkpoint of any dialect, a .tflite file and a Core ML package are used alike, so that the commands
`predict` and `evaluate` need not know which they have. How raw pixels go in is what the model or the file itself says.
The names stand in `__init__.pyi`; what a name needs is imported when it is asked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
