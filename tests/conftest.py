"""Settings every test shares."""

from __future__ import annotations

import os

import pytest
import torch

# Read by the triton package when it is first imported: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# No test may reach a model hub; the tokenizers library warns about forks otherwise.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Named, not imported: a plugin is loaded after the lines above, and huggingface_hub reads them when it is imported.
pytest_plugins = ["default_base_fixture"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device; this machine or this torch has none"))


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture
def device() -> str:
    """The fastest device here; tests that must run on the CPU name it themselves."""
    return "cuda" if torch.cuda.is_available() else "cpu"
