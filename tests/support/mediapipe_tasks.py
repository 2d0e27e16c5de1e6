"""MediaPipe's vision tasks, which apps open .tflite files with; tests are skipped where they are not to be had."""

import pytest


def vision_tasks():
    """(MediaPipe's vision tasks, a function of a file's path that gives their options of it, one of uint8 pixels
    (height, width, 3) that gives an image for them)."""
    mediapipe = pytest.importorskip("mediapipe", reason="needs mediapipe")
    try:
        from mediapipe.tasks.python import BaseOptions, vision

        vision.ImageClassifier.create_from_options(None)
    except (OSError, ImportError) as error:
        pytest.skip(f"MediaPipe lacks a system library, Debian's libgles2 or libegl1: {error}")
    except AttributeError:
        pass  # the library is there, and the options are none

    def image(pixels):
        return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)

    return vision, lambda path: {"base_options": BaseOptions(model_asset_path=str(path))}, image
