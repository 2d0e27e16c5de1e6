"""What all tests share: quiet backends, timm as reference, loud weights, and the data folder where there is one."""

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import timm_reference

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_folder():
    if not DATA.is_dir():
        pytest.skip("needs the photographs and CIFAR-10 images of ../shared/data, which are not part of the project")
    return DATA


@pytest.fixture(scope="session")
def loud_l1():
    """timm's EfficientFormer-L1 with loud weights."""
    return timm_reference.loud_model("l1")


@pytest.fixture(scope="session")
def loud_state_dict(loud_l1):
    return timm_reference.state_dict(loud_l1)
