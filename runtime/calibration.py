"""Calibration text to windows of token ids.

A `.jsonl` file holds one document per line, an object with `text`; or with `messages` (a
conversation, rendered by the model's chat template); or with `question` and `answer` (rendered as
one). Any other file is one document of plain text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.checkpoint import Checkpoint
from ..convert.json_file import parse_json
from ..errors import InputError, UsageError
from .chat import Message, chat_template, render_chat
from .text_file import read_text_file
from .tokenizer import TextTokenizer


@dataclass(frozen=True)
class CalibrationOptions:
    """Where the text comes from, and how much of it is used."""

    files: tuple[Path, ...]
    tokens: int = 32768
    window: int = 512

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.window < 2:
            raise UsageError(
                "calibration tokens and window must be positive", "give larger numbers"
            )


def calibration_windows(checkpoint: Checkpoint, options: CalibrationOptions) -> list[list[int]]:
    """Windows of `options.window` tokens, the budget shared equally by the files.

    A file with more text than its share gives windows spread evenly over it. Documents follow each
    other with the model's BOS between them, where it has one.

    Raises:
        InputError: a file cannot be read, or holds too little text for one window.
    """
    tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
    size = min(options.window, checkpoint.decoder.config.max_position_embeddings)
    share = max(1, options.tokens // size // len(options.files))
    windows: list[list[int]] = []
    for path in options.files:
        tokens = [
            token for text in _documents(path, checkpoint) for token in tokenizer.encode_chat(text)
        ]
        whole = len(tokens) // size
        if not whole:
            raise InputError(
                f"{path}: {len(tokens)} tokens, at least {size} are needed",
                "give more calibration text",
            )
        chosen = min(share, whole)
        starts = [index * whole // chosen * size for index in range(chosen)]
        windows += [tokens[start : start + size] for start in starts]
    return windows


def _documents(path: Path, checkpoint: Checkpoint) -> Iterator[str]:
    content = read_text_file(path)
    if path.suffix != ".jsonl":
        yield content
        return
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            where = f"{path}: line {number}"
            yield _document(parse_json(line, where), where, checkpoint)


def _document(entry: Any, where: str, checkpoint: Checkpoint) -> str:
    if isinstance(entry, dict):
        if isinstance(entry.get("text"), str):
            return str(entry["text"])
        messages = entry.get("messages")
        if messages is None and "question" in entry and "answer" in entry:
            messages = [
                {"role": "user", "content": entry["question"]},
                {"role": "assistant", "content": entry["answer"]},
            ]
        if isinstance(messages, list) and messages and all(map(_is_message, messages)):
            return _render([Message(m["role"], m["content"]) for m in messages], checkpoint)
    raise InputError(
        f"{where}: neither text, messages, nor question and answer",
        'write one object per line, such as {"text": "..."}',
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def _render(messages: Sequence[Message], checkpoint: Checkpoint) -> str:
    template = chat_template(checkpoint.side_files)
    if template is None:
        return "\n".join(message.content for message in messages) + "\n"
    special = TextTokenizer(checkpoint.side_files, checkpoint.config).special_tokens
    return render_chat(template, messages, special, add_generation_prompt=False)
