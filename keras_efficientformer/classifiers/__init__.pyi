from .exported_files import FileClassifier
from .keras_models import KerasClassifier
from .opening import Classifier, open_classifier, open_embedder

__all__ = ["Classifier", "FileClassifier", "KerasClassifier", "open_classifier", "open_embedder"]
