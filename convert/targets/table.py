"""The table of targets, and what is meant by a word that is none of its names."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

from dsconv.errors import UsageError

from .onnx_targets import ONNX_TARGETS
from .target import Target
from .vendor_targets import TORCH_TARGETS, VENDOR_TARGETS

TARGETS: dict[str, Target] = {
    target.name: target for target in (*ONNX_TARGETS, *TORCH_TARGETS, *VENDOR_TARGETS)
}
# Programs are no targets: what they read is a format.
PROGRAMS: Mapping[str, str] = {
    "llama.cpp": "gguf",
    "llama-cpp": "gguf",
    "ollama": "gguf",
    "lm-studio": "gguf",
    "ggml": "gguf",
    "vllm": "compressed-tensors",
    "sglang": "compressed-tensors",
    "transformers": "compressed-tensors",
    "huggingface": "compressed-tensors",
    "llm-compressor": "compressed-tensors",
    "vllm-ascend": "ascend",
    "mindie": "ascend",
    "ascendv1": "ascend",
    "onnxruntime": "onnx",
    "onnxruntime-genai": "onnx",
    "ort": "onnx",
    "dsq": "native",
}


def find_target(name: str, format: str | None = None) -> Target:
    """The row of this name, or the one that a word for hardware means.

    Args:
        format: that it must read, if it is known; what only graphs depend on is then no question.

    Raises:
        UsageError: no such target, or several.
    """
    word = plain(name)
    if word in TARGETS:
        return TARGETS[word]
    rows = meant_by(word, format)
    if len(rows) == 1 or (rows and format not in (None, "onnx")):
        return rows[0]
    if rows:
        raise UsageError(f"target: {name!r} may be {len(rows)} targets", listed(rows))
    raise UsageError(f"target: {name!r} is not known", cure(name))


def matching(pattern: str) -> tuple[Target, ...]:
    """Rows whose name or hardware has the words in it, or fits them as a glob; or that they mean.

    Raises:
        UsageError: there is none.
    """
    word = plain(pattern)
    found = tuple(
        target
        for target in TARGETS.values()
        if word in target.words
        or any(fits(plain(text), word) for text in (target.name, target.hardware))
    )
    if not found:
        raise UsageError(f"no target fits {pattern!r}", cure(pattern))
    return found


def fits(text: str, pattern: str) -> bool:
    """A glob where the pattern is one, else a part of the text."""
    return fnmatchcase(text, pattern) if set(pattern) & set("*?[") else pattern in text


def plain(name: str) -> str:
    return "-".join(name.lower().replace("_", "-").split())


def meant_by(word: str, format: str | None = None) -> tuple[Target, ...]:
    rows = (target for target in TARGETS.values() if word in target.words)
    return tuple(row for row in rows if format is None or format in row.artifacts)


def listed(rows: tuple[Target, ...]) -> str:
    """`use cuda (NVIDIA GPU: onnx, compressed-tensors) or …`."""
    words = [
        f"{row.name} ({row.hardware.partition(';')[0]}: {', '.join(row.artifacts)})" for row in rows
    ]
    return f"use {', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else f"use {words[0]}"


def cure(name: str) -> str:
    """The hint for a word that names no target."""
    word = plain(name)
    if word in PROGRAMS:
        return f"{name} is a program: leave --target out, and use --format {PROGRAMS[word]}"
    rows = meant_by(word)
    if rows:
        return listed(rows)
    words = {word for target in TARGETS.values() for word in target.words}
    near = get_close_matches(word, [*TARGETS, *sorted(words)], 1)
    if near and near[0] not in TARGETS:
        return f"did you mean {near[0]}? {listed(meant_by(near[0]))}"
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}choose {', '.join(TARGETS)}"
