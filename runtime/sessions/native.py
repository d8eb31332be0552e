"""Run a `.dsq` file on the engine in C++ (runtime/native): prefill, decode, scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.formats.native.file import NativeFile
from dsconv.convert.formats.native.linear_layout import KINDS
from dsconv.convert.formats.native.steps import (
    COMBINES,
    AttentionStep,
    EmbeddingStep,
    LinearStep,
    NormStep,
    NormUse,
    ProgramStep,
)
from dsconv.errors import InputError, ProviderError, UsageError

from .session import refuse_unknown_tokens

CACHE_TYPES = ("fp16", "int8", "fp32")
PRECISIONS = ("int8", "mixed", "own", "int16")
FLOAT_BYTES = 4


@dataclass(frozen=True)
class NativeOptions:
    """How the engine computes.

    threads: 0 is one per physical core. cache: element type of the key-value cache. kernels: the
    instruction set ("" is the fastest). decode, prefill, score: how activations are rounded while
    decoding (and in prompts of a few tokens), in longer prompts, and for logits of all tokens.
    """

    threads: int = 0
    cache: str = "fp16"
    kernels: str = ""
    decode: str = "int16"
    prefill: str = "mixed"
    score: str = "int16"

    def __post_init__(self) -> None:
        if self.cache not in CACHE_TYPES:
            raise UsageError(
                f"kv: {self.cache!r} is not known", f"choose {' or '.join(CACHE_TYPES)}"
            )
        for precision in (self.decode, self.prefill, self.score):
            if precision not in PRECISIONS:
                raise UsageError(
                    f"precision: {precision!r} is not known", f"choose {', '.join(PRECISIONS)}"
                )


def load_engine_module() -> Any:
    """The compiled extension.

    Raises:
        ProviderError: dsconv was installed without it.
    """
    try:
        return import_module("dsconv.runtime._native")
    except ImportError as error:
        raise ProviderError(
            f"the native engine is not installed: {error}",
            "install a C++ compiler (g++ or clang) and then dsconv again; or run an ONNX export",
        ) from error


def available_kernels() -> list[str]:
    """Instruction sets that this machine runs, the portable one first."""
    names: list[str] = load_engine_module().available_kernels()
    return names


def open_engine(file: NativeFile, options: NativeOptions, cache_bytes: int = 0) -> Any:
    """The engine over a file.

    Args:
        cache_bytes: of keys and values at most; 0 is as much as there is.

    Raises:
        UsageError: kernels that this machine does not have.
        InputError: the engine refuses the file.
    """
    module = load_engine_module()
    program = file.metadata.program
    try:
        return module.Engine(
            os.fsencode(file.path),
            file.size,
            list(program.buffers),
            [_encode(step, file) for step in program.steps],
            options.threads,
            options.cache,
            options.kernels,
            options.decode,
            options.prefill,
            options.score,
            cache_bytes,
        )
    except ValueError as error:
        if options.kernels and options.kernels not in module.available_kernels():
            raise UsageError(
                str(error), f"choose {', '.join(module.available_kernels())}"
            ) from error
        raise InputError(
            f"{file.path}: the engine refuses it: {error}", "export the model again"
        ) from error


class NativeSession:
    """One sequence on one file. The array that `decode` returns is reused by the next call."""

    def __init__(self, file: NativeFile, options: NativeOptions | None = None) -> None:
        self.file, self.options = file, options or NativeOptions()
        self._engine = open_engine(file, self.options)
        program = file.metadata.program
        self._chunk: int = load_engine_module().CHUNK_TOKENS
        self._context_length = file.metadata.context_length
        self._vocabulary = file.metadata.matrices[program.steps[0].weight].rows  # type: ignore[union-attr]
        self._bytes = bytearray(FLOAT_BYTES * self._vocabulary)
        self._logits = np.frombuffer(self._bytes, np.float32)

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def position(self) -> int:
        position: int = self._engine.position
        return position

    @property
    def threads(self) -> int:
        threads: int = self._engine.threads
        return threads

    @property
    def kernels(self) -> str:
        """The instruction set in use."""
        name: str = self._engine.kernels
        return name

    def reset(self) -> None:
        """Forget the sequence and give its cache back."""
        self._engine.reset()

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append `tokens` -> logits [vocabulary] after the last."""
        ids = list(tokens)
        refuse_unknown_tokens(ids, self._vocabulary)
        for start in range(0, len(ids), self._chunk):
            chunk = ids[start : start + self._chunk]
            is_last = start + self._chunk >= len(ids)
            self._engine.forward(chunk, self._bytes if is_last else None, 0, False)
        return self._logits.copy()

    def decode(self, token: int) -> NDArray[np.float32]:
        """Append one token -> logits [vocabulary], overwritten by the next call."""
        refuse_unknown_tokens((token,), self._vocabulary)
        self._engine.forward([token], self._bytes, 0, False)
        return self._logits

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self._engine.truncate(length)

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """From an empty cache -> logits [tokens, vocabulary]."""
        self.reset()
        return self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append `tokens` -> logits [tokens, vocabulary] after every one."""
        ids, row = list(tokens), FLOAT_BYTES * self._vocabulary
        refuse_unknown_tokens(ids, self._vocabulary)
        logits = bytearray(row * len(ids))
        for start in range(0, len(ids), self._chunk):
            self._engine.forward(ids[start : start + self._chunk], logits, start * row, True)
        return np.frombuffer(logits, np.float32).reshape(len(ids), self._vocabulary)


def _encode(step: ProgramStep, file: NativeFile) -> tuple[str, tuple[Any, ...]]:
    """A step as runtime/native/program_reader.cpp reads it: names become places in the file."""

    def place(name: str | None) -> int:
        return -1 if name is None else file.tensors[name].offset

    def matrix(name: str) -> tuple[Any, ...]:
        layout = file.metadata.matrices[name]
        sizes = (layout.rows, layout.cols, layout.group_size, layout.zero_points)
        return (KINDS[layout.kind], *sizes, place(name))

    def norm(use: NormUse) -> tuple[int, float, int]:
        return place(use.gain), use.epsilon, use.heads

    content: tuple[Any, ...]
    if isinstance(step, EmbeddingStep):
        content = (matrix(step.weight), step.output)
    elif isinstance(step, NormStep):
        content = (norm(step.norm), step.buffer)
    elif isinstance(step, LinearStep):
        matrices = [(matrix(m.weight), place(m.bias), m.output) for m in step.matrices]
        normed = -1 if step.normed is None else step.normed
        use = None if step.norm is None else norm(step.norm)
        content = (step.input, use, normed, matrices, COMBINES.index(step.combine))
    elif isinstance(step, AttentionStep):
        buffers = (step.query, step.key, step.value, step.output)
        heads = (step.heads, step.kv_heads, step.head_dim)
        tables = (place(step.frequencies), step.rotary_factor, place(step.key_bias))
        content = (step.layer, *buffers, *heads, *tables)
    else:
        content = (step.input, norm(step.norm), step.normed, matrix(step.weight))
    return step.op, content
