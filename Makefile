# On a machine with Python (3.11 or newer), pip and make:
#   make demo    convert a real checkpoint, classify photographs, export a .tflite file, check it
#   make test    linters, type checker, import rules and all tests
#   make quick   a subset of the tests in two minutes on two cores
#   make dist    the sdist and the wheel, checked, in dist/
#   make docs    the documentation site, in site/: open site/index.html
# Each makes .venv and installs there what it needs. A folder of images of your own: make demo IMAGES=folder

PYTHON ?= python3
VENV ?= .venv
# A folder with images that are not part of the project; tests read the same variable.
IMAGES ?= $(EFFICIENTFORMER_IMAGES)
BIN := $(VENV)/bin
# Python compiles modules when they are first imported, and keeps that; pip would compile all, most of which never are.
# Where it must not keep it, as the variable says, each process would compile Keras anew: eight seconds.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
SOURCES := setup.py pyproject.toml constraints.txt

# Some tests of each room. KERAS_BACKEND names the backend to run them on. Those left out start one Keras for each
# backend, or need what not every backend has.
QUICK := tests/test_images.py tests/test_imagenet.py tests/layers tests/models/test_signatures.py \
    tests/models/test_models.py::test_heads tests/models/test_models.py::test_without_top \
    tests/conversion/test_conversion.py::test_wrappers tests/conversion/test_conversion.py::test_report \
    tests/conversion/test_conversion.py::test_free_depths_and_widths \
    tests/conversion/test_bad_checkpoints.py::test_malicious_pickle \
    tests/deploy/network/test_network.py::test_equals_keras tests/deploy/tflite/test_tflite_builder.py \
    tests/deploy/coreml/test_coreml_lint.py tests/deploy/benchmark/test_reports.py \
    tests/deploy/comparison/test_comparison.py::test_front \
    tests/segmentation/test_semantic_fpn.py tests/hub/test_hub.py::test_arguments_that_fit_no_network \
    tests/sharing/test_push.py::test_names_of_classes_are_text \
    tests/pages tests/image_folders tests/training/data/test_training_batches.py \
    tests/cli/test_cli.py::test_convert_to_a_dialect tests/cli/test_cli.py::test_wrong_usage \
    tests/apps/test_android_kit.py \
    tests/package/test_automation.py tests/package/test_public_names.py tests/package/test_release.py \
    --deselect tests/test_imagenet.py::test_every_backend_and_tf_data \
    --deselect tests/layers/test_layers.py::test_float64 \
    --deselect tests/layers/test_initialization.py::test_initializers \
    --deselect tests/deploy/tflite/test_tflite_builder.py::test_heads_that_are_alike_are_two_outputs

.PHONY: demo test lint unit quick format dist docs clean

demo: $(VENV)/.demo-installed
	$(BIN)/python weights/demo.py $(if $(IMAGES),--images "$(IMAGES)")

test: lint unit

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.test-installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.test-installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(QUICK)

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The folders go first, because setuptools packs whatever an older build has left in build/.
dist: $(VENV)/.test-installed
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist

# Every warning is an error: links that lead nowhere, names without a docstring, pages that no menu has. The variable
# turns off what mkdocs-material says of itself.
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Python's venv module alone needs ensurepip, which Debian packages apart: pip fills the empty environment instead.
$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	    { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check pip

$(VENV)/.demo-installed: $(SOURCES) | $(BIN)/python
	$(PIP) --editable ".[tflite]" scikit-image matplotlib
	touch $@

$(VENV)/.docs-installed: $(SOURCES) | $(BIN)/python
	$(PIP) --editable ".[docs]"
	touch $@

# torch first: whatever comes after takes the build that is there. timm, torchvision and mediapipe come without their
# requirements, because torchvision has no CPU build on PyPI and mediapipe asks for another absl than tfmot does.
$(VENV)/.test-installed: $(SOURCES) | $(BIN)/python
	$(PIP) torch
	$(PIP) --editable ".[all]"
	$(PIP) PyYAML opencv-contrib-python-headless sounddevice
	$(PIP) --no-deps torchvision timm mediapipe
	touch $@ $(VENV)/.demo-installed $(VENV)/.docs-installed

clean:
	rm -rf $(VENV) build dist site *.egg-info
