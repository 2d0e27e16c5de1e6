from .pushing import push, write_repository
from .upload import Repository, Upload, UploadError

__all__ = ["Repository", "Upload", "UploadError", "push", "write_repository"]
