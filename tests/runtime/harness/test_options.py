"""What a harness passes on of the user's words about the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsconv.errors import UsageError
from dsconv.runtime.harness.options import HarnessOptions, read_options


def test_words_become_values() -> None:
    words = {
        **{"path": "m", "threads": "2", "cache": "1GiB", "sequences": 4, "add_bos_token": "True"},
        **{"think_end_token": "151649", "prefix_token_id": "0", "trust_remote_code": False},
        **{"enable_thinking": False, "chat_template_args": {"a": 1}, "kv": "int8", "dtype": None},
    }
    assert read_options(words) == HarnessOptions(
        **{"path": "m", "threads": 2, "cache": 1 << 30, "sequences": 4, "add_bos_token": True},
        **{"think_end_token": 151649, "prefix_token_id": 0, "enable_thinking": False},
        **{"chat_template_args": {"a": 1}, "kv": "int8"},
    )
    assert read_options(words).template_variables == {"a": 1, "enable_thinking": False}


@pytest.mark.parametrize(
    ("batch_size", "sequences"), [(None, 0), (1, 0), ("auto", 0), ("auto:4", 0), (8, 8), ("8", 8)]
)
def test_a_batch_size_is_a_limit(batch_size: Any, sequences: int) -> None:
    assert read_options({"pretrained": "m"}, batch_size).sequences == sequences
    assert read_options({"pretrained": "m", "sequences": 1}, batch_size).sequences == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no artifact is named"),
        ({"path": "m", "pretrained": "m"}, "pretrained and path are the same"),
        ({"path": "m", "thread": 2}, "'thread' is not known"),
        ({"path": "m", "load_in_4bit": True}, "'load_in_4bit' is not known"),
        ({"path": "m", "threads": -1}, "threads=-1 is not a whole number"),
        ({"path": "m", "cache": "much"}, "'much' is not a size"),
        ({"path": "m", "add_bos_token": "maybe"}, "neither True nor False"),
        ({"path": "m", "trust_remote_code": True}, "no code of a model is ever run"),
        ({"path": "m", "enable_thinking": True}, "without think_end_token"),
        ({"path": "m", "activations": "int8"}, "no native file"),
        ({"path": "m", "chat_template_args": "x"}, "not an object"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_options(given)
    assert message in caught.value.message


def test_a_device_is_a_provider() -> None:
    read_options({"path": "m"}, device="cuda:0")  # the harness' default, on every machine
    read_options({"path": "m"}, device="cpu")
    with pytest.raises(UsageError, match="--device cuda:1"):
        read_options({"path": "m"}, device="cuda:1")


def test_what_an_artifact_does_not_take(tmp_path: Path) -> None:
    (tmp_path / "m.dsq").write_bytes(b"")
    with pytest.raises(UsageError, match="its numbers are fixed"):
        read_options({"path": str(tmp_path / "m.dsq"), "dtype": "bfloat16"})
