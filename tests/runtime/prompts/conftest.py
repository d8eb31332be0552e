"""The model that answers files of prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_models import exported
from small_models import write_checkpoint


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    exported(write_checkpoint(folder / "m"), folder / "m.dsq")
    return folder / "m.dsq"
