"""The model that is asked."""

from __future__ import annotations

import pytest
from small_models import TEMPLATE, write_checkpoint, write_json

from dsconv.runtime.sessions.load import Loaded, load


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = write_checkpoint(tmp_path_factory.mktemp("task") / "m")
    template = TEMPLATE + "{{ '<think>\n' }}"
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    write_json(folder / "tokenizer_config.json", settings)
    return load(str(folder))
