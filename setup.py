"""Packaging: what the wheel holds, what it needs, its extras and page. Settings of tools stand in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
(VERSION,) = re.findall(r'__version__ = "(.+)"', (ROOT / "keras_efficientformer" / "__init__.py").read_text())
# Where the project is, as "https://github.com/OWNER/NAME"; RELEASE.md says when to set it.
ADDRESS = ""
FILES, IMAGES = f"{ADDRESS}/blob/v{VERSION}", f"{ADDRESS}/raw/v{VERSION}"

PAGES = ["jinja2>=3.1", "matplotlib"]
LITERT = ["ai-edge-litert>=2.3", "litert-quantizer>=0.11", "flatbuffers", *PAGES]
EXTRAS = {
    # A backend for Keras; the first three also say which one `KERAS_BACKEND` may name.
    "tensorflow": ["tensorflow>=2.21"],
    "jax": ["jax>=0.10"],
    "torch": ["torch>=2.5"],
    # A job. TFLite files need no TensorFlow, but Keras needs a backend: with another one take "litert" and that.
    "litert": LITERT,
    "tflite": ["tensorflow>=2.21", *LITERT],
    # LiteRT's compiler for Intel is linked to this release of OpenVINO, and there is one for Linux and Windows on x86.
    "npu-intel": [
        *LITERT,
        "openvino==2026.3.1; sys_platform != 'darwin' and platform_machine in 'x86_64 AMD64'",
    ],
    "coreml": ["coremltools>=9.0", "scikit-learn", "scipy", "threadpoolctl", *PAGES],
    "hub": ["keras-hub>=0.32"],  # which brings TensorFlow, beside any backend
    "heic": ["pillow-heif"],  # photographs as iPhones take them
    "train": [
        "tensorflow>=2.21",
        "tf_keras>=2.21",
        "tensorflow-model-optimization>=0.8.1",
        "setuptools; python_version >= '3.12'",  # tensorflow-model-optimization imports distutils
        "tensorboard",
        *PAGES,
        "scipy",  # ImageNet's meta.mat
    ],
    # The documentation site. ruff, for the signatures in its reference.
    "docs": ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0", "nbconvert>=7.16", "ruff"],
    "test": [
        "pytest",
        "pytest-xdist",
        "ruff",
        "mypy",
        "import-linter",
        "scikit-image",
        "scipy",
        "build",
        "twine",
        "check-wheel-contents",
        "tree-sitter>=0.26",
        "tree-sitter-kotlin>=1.1",
        "tree-sitter-swift>=0.7",
        "PyYAML",
        "jsonschema",
        "scikit-learn",
        "nbclient",
        "ipykernel",
    ],
}
EXTRAS["all"] = sorted({requirement for requirements in EXTRAS.values() for requirement in requirements})


def long_description() -> str:
    """The README; once the project has an address its links are absolute, because PyPI shows it beside no file."""
    text = (ROOT / "README.md").read_text()
    if not ADDRESS:
        return text
    text = re.sub(r"\]\((?!https?:|mailto:|#)([^)\s]+\.(?:png|jpe?g|gif|svg|webp))\)", rf"]({IMAGES}/\1)", text)
    return re.sub(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)", rf"]({FILES}/\1)", text)


PROJECT_URLS = {
    "Source": ADDRESS,
    "Issues": f"{ADDRESS}/issues",
    "Changelog": f"{FILES}/CHANGELOG.md",
    "Documentation": f"{FILES}/README.md",
}

setup(
    name="keras-efficientformer",
    version=VERSION,
    description="EfficientFormer for Keras 3: models, PyTorch checkpoints in and out, TFLite and Core ML",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    project_urls=PROJECT_URLS if ADDRESS else {},
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["keras_efficientformer", "keras_efficientformer.*"]),
    py_modules=["efficientformer_command"],
    package_data={
        "keras_efficientformer": [
            "data/*",
            "pages/templates/*",
            *(f"apps/{kind}/**" for kind in ("android", "ios", "web")),
            "py.typed",
            "**/*.pyi",
        ]
    },
    install_requires=[
        "keras>=3.15",
        "numpy>=2.0",
        "h5py",
        "ml_dtypes",
        "safetensors>=0.5",
        "huggingface_hub>=1.0",
        "filelock",
        "pillow>=11",
        "typer>=0.15",
        "rich>=13",
        "lazy_loader>=0.4",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["efficientformer=efficientformer_command:main"]},
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        # PyPI refuses what has this classifier: its page would link to nothing, and cannot be mended afterwards.
        *([] if ADDRESS else ["Private :: Do Not Upload"]),
    ],
)
