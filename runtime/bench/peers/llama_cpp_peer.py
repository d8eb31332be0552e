"""llama.cpp by package llama-cpp-python: its own Q4_0 or Q8_0 of a GGUF that we write."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsconv.errors import InputError
from dsconv.runtime.generate.timed import SteppingRunner

from .building import run_tool

MODEL = "model.gguf"
FILE_TYPES = {4: 2, 8: 7}  # LLAMA_FTYPE_MOSTLY_Q4_0, _Q8_0
BATCH = 2048  # tokens of a call at most
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
CACHE_TYPES = {"fp32": 0, "fp16": 1, "int8": 8}  # GGML_TYPE_F32, _F16, _Q8_0


def build(checkpoint: str, bits: int, output: Path) -> None:
    """The unquantized checkpoint as GGUF, then llama.cpp's own quantization of it."""
    from dsconv.runtime.export import ExportRequest, export_model

    source = output / "unquantized.gguf"
    export_model(checkpoint, ExportRequest("gguf"), source, True)
    # In a process of its own: llama.cpp ends the one it runs in when something is wrong.
    run_tool("dsconv.runtime.bench.peers.llama_cpp_peer", source, output / MODEL, bits)
    source.unlink()


def weight_bytes_per_token(path: Path) -> int:
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(_file(path)).tensors}
    return sum(sizes.values()) - (sizes[EMBEDDING] if HEAD in sizes else 0)


def open_runner(path: str, threads: int, kv: str) -> LlamaCppRunner:
    return LlamaCppRunner(_file(Path(path)), threads, kv)


def _file(path: Path) -> Path:
    return path if path.is_file() else path / MODEL


class LlamaCppRunner(SteppingRunner):
    """The C interface. A cache that is too short is made anew: llama.cpp cannot grow it."""

    def __init__(self, path: Path, threads: int, kv: str) -> None:
        import llama_cpp

        super().__init__()
        self._api: Any = llama_cpp
        self._threads, self._type = threads, CACHE_TYPES[kv]
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not model:
            raise InputError(f"{path}: llama.cpp cannot load it", "build it again")
        self._model: Any = model
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._context: Any = None
        self._room = 0  # positions of every sequence
        self._sequences = 1
        self._token = 0
        self._filled: tuple[int, int] = (0, 0)  # sequences, and tokens of each

    @property
    def context_length(self) -> int:
        return int(self._api.llama_model_n_ctx_train(self._model))

    def start(self, tokens: Sequence[int], room: int) -> None:
        if room > self._room or self._sequences > 1:
            self._make_context(room)
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        for first in range(0, len(tokens), BATCH):
            self._append(tokens[first : first + BATCH])
        self._choose()

    def step(self) -> None:
        self._append([self._token])
        self._choose()

    def rewind(self, length: int) -> None:
        memory = self._api.llama_get_memory(self._context)
        self._api.llama_memory_seq_rm(memory, 0, length, -1)

    def batch_limit(self, positions: int) -> int:
        return int(self._api.llama_max_parallel_sequences())

    def decode_many(self, context: Sequence[int], batch: int, count: int) -> float:
        room = len(context) + count
        if self._sequences != batch or room > self._room:
            self._make_context(room, batch)
            self._filled = (0, 0)
        memory = self._api.llama_get_memory(self._context)
        if self._filled != (batch, len(context)):
            self._api.llama_memory_clear(memory, False)
            for sequence in range(batch):
                self._fill(context, sequence)
            self._filled = (batch, len(context))
        for sequence in range(batch):
            self._api.llama_memory_seq_rm(memory, sequence, len(context), -1)
        self._held = 0
        entries = self._api.llama_batch_init(batch, 0, 1)
        tokens = [context[-1]] * batch
        start = time.perf_counter()
        for step in range(count):
            entries.n_tokens = batch
            for sequence, token in enumerate(tokens):
                self._put(entries, sequence, (token, len(context) + step, sequence), True)
            self._decode(entries)
            tokens = [self._best(row) for row in range(batch)]
        seconds = time.perf_counter() - start
        self._api.llama_batch_free(entries)
        return seconds

    def _fill(self, context: Sequence[int], sequence: int) -> None:
        """Contexts differ, so that nothing of the cache could be shared."""
        first = sequence % len(context)
        tokens = [*context[first:], *context[:first]]
        entries = self._api.llama_batch_init(BATCH, 0, 1)
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            entries.n_tokens = len(part)
            for row, token in enumerate(part):
                self._put(entries, row, (token, start + row, sequence), row + 1 == len(part))
            self._decode(entries)
        self._api.llama_batch_free(entries)

    def _put(self, entries: Any, row: int, what: tuple[int, int, int], logits: bool) -> None:
        """what: token, position, sequence."""
        entries.token[row], entries.pos[row], entries.seq_id[row][0] = what
        entries.n_seq_id[row], entries.logits[row] = 1, logits

    def _make_context(self, room: int, sequences: int = 1) -> None:
        if self._context is not None:
            self._api.llama_free(self._context)
        parameters = self._api.llama_context_default_params()
        # Every sequence has a cache of its own: a common one attends over all of it for each row.
        parameters.n_ctx, parameters.n_batch = sequences * room, BATCH
        parameters.n_seq_max, parameters.kv_unified = sequences, False
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.type_k = parameters.type_v = self._type
        self._context = self._api.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise InputError(f"llama.cpp cannot make a context of {room} tokens", "ask for less")
        self._room, self._sequences = room, sequences

    def _append(self, tokens: Sequence[int]) -> None:
        array = (self._api.llama_token * len(tokens))(*tokens)
        self._decode(self._api.llama_batch_get_one(array, len(tokens)))

    def _decode(self, entries: Any) -> None:
        code = self._api.llama_decode(self._context, entries)
        if code:
            raise InputError(f"llama.cpp: llama_decode returned {code}", "ask for less context")

    def _choose(self) -> None:
        self._token = self._best(-1)

    def _best(self, row: int) -> int:
        logits = self._api.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


def _quantize(source: str, output: str, bits: int) -> None:
    import llama_cpp

    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[bits]
    code = llama_cpp.llama_model_quantize(
        source.encode(), output.encode(), ctypes.byref(parameters)
    )
    if code:
        sys.exit(f"llama_model_quantize returned {code}")


if __name__ == "__main__":
    _quantize(sys.argv[1], sys.argv[2], int(sys.argv[3]))
