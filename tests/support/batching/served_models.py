"""A tiny model as the tests of the server serve it."""

from __future__ import annotations

from pathlib import Path

from native_models import exported
from small_models import TEMPLATE, write_checkpoint, write_json

# Calls of tools as Hermes and Qwen write them.
WITH_TOOLS = "{% if tools %}{{ tools | tojson }} as <tool_call>{% endif %}" + TEMPLATE


def served_model(folder: Path, template: str = TEMPLATE) -> Path:
    """-> an artifact with a tokenizer of bytes and a chat template."""
    write_checkpoint(folder / "m")
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    write_json(folder / "m" / "tokenizer_config.json", settings)
    exported(folder / "m", folder / "m.dsq")
    return folder / "m.dsq"
