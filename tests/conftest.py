"""Settings for every test: no network, two threads, quiet libraries, an empty cache."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import command_line
import pytest
import torch

# These take longest: they come first, so that two workers that take file after file end together.
LONGEST = (
    "test_planted_faults.py",
    "test_hostile_input.py",
    "test_onnx_export.py",
    "test_crash_points.py",
    "test_pull.py",
    "test_calibrate.py",
    "test_genai.py",
    "test_build.py",
    "test_torch_ops.py",
    "test_disk_faults.py",
    "test_tune.py",
    "test_verify_command.py",
    "test_failures.py",
    "test_w8a8.py",
    "test_providers.py",
    "test_streaming.py",
    "test_run.py",
    "test_self_written.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is left in the user's cache, and nothing found there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_server_stays() -> Iterator[None]:
    yield
    command_line.stop_server()


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> Iterator[None]:
    """More threads than cores would only make tiny models slower; tests may run two at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    yield
    torch.set_num_threads(before)
