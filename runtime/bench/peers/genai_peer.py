"""onnxruntime-genai, on the graph that its own builder makes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsconv.convert.files.json_file import ConfigReader, read_json_object
from dsconv.convert.formats.onnx.names import GENAI_CONFIG
from dsconv.errors import UnsupportedError
from dsconv.runtime.generate.timed import SteppingRunner
from dsconv.runtime.sessions.load import DEFAULT_CACHE

from .building import run_tool

# The fastest of its options in our measurements: int8 products, blocks of 128, the head on the
# last token only, the embedding quantized too.
OPTIONS = (
    "accuracy_level=4",
    "block_size=128",
    "prune_lm_head=true",
    "op_types_to_quantize=MatMul/Gather",
)
MOST_AT_ONCE = 1024  # sequences: it has no limit but memory
# Operators that read some rows of a table and not all of it.
ROW_READERS = {"Gather", "GatherBlockQuantized", "GroupQueryAttention", "RotaryEmbedding"}


def build(checkpoint: str, bits: int, output: Path) -> None:
    precision = ("-p", f"int{bits}", "-e", "cpu")
    place = ("-i", checkpoint, "-o", output, "-c", output.with_suffix(".cache"))
    run_tool("onnxruntime_genai.models.builder", *place, *precision, "--extra_options", *OPTIONS)


def weight_bytes_per_token(path: Path) -> int:
    """Tensors outside the graph, but for tables of which a step reads a row."""
    import onnx

    name = read_json_object(path / GENAI_CONFIG)["model"]["decoder"]["filename"]
    graph = onnx.load(str(path / name), load_external_data=False).graph
    read_whole = {
        tensor for node in graph.node if node.op_type not in ROW_READERS for tensor in node.input
    }
    sizes = {
        tensor.name: int(entry.value)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    }
    return sum(size for tensor, size in sizes.items() if tensor in read_whole)


def open_runner(path: str, threads: int, kv: str) -> GenaiRunner:
    if kv != DEFAULT_CACHE:
        raise UnsupportedError(
            f"{path}: onnxruntime-genai has no {kv} cache on a CPU", "leave out the type of cache"
        )
    return GenaiRunner(path, threads)


class GenaiRunner(SteppingRunner):
    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime_genai

        super().__init__()
        reader = ConfigReader(read_json_object(Path(path) / GENAI_CONFIG), path)
        model = reader.child("model")
        self._context_length = model.integer("context_length") if model else 0
        config = onnxruntime_genai.Config(path)
        session_options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session_options}}}))
        self._api: Any = onnxruntime_genai
        self._model = onnxruntime_genai.Model(config)
        self._generator: Any = None

    @property
    def context_length(self) -> int:
        return self._context_length

    def start(self, tokens: Sequence[int], room: int) -> None:
        self._start([list(tokens)], room)

    def batch_limit(self, positions: int) -> int:
        return MOST_AT_ONCE

    def decode_many(self, context: Sequence[int], batch: int, count: int) -> float:
        """Its generator holds many sequences of one length, and cannot go back: the context is
        read again for every burst."""
        firsts = [row % len(context) for row in range(batch)]
        texts = [[*context[first:], *context[:first]] for first in firsts]
        self._held = 0
        self._start(texts, len(context) + count)
        start = time.perf_counter()
        for _ in range(count):
            self._generator.generate_next_token()
        return time.perf_counter() - start

    def _start(self, texts: Sequence[Sequence[int]], room: int) -> None:
        """texts: as many sequences, of one length."""
        self._generator = None  # frees its cache before the next is made
        parameters = self._api.GeneratorParams(self._model)
        # Two more: after a rewind a token is appended. min_length keeps end tokens out.
        most = room + 2
        parameters.set_search_options(
            max_length=most, min_length=most, do_sample=False, batch_size=len(texts)
        )
        self._generator = self._api.Generator(self._model, parameters)
        self._generator.append_tokens(np.array(texts, np.int32).squeeze())
        self._generator.generate_next_token()

    def step(self) -> None:
        self._generator.generate_next_token()

    def rewind(self, length: int) -> None:
        self._generator.rewind_to(length)
        self._generator.append_tokens([0])
        self._generator.generate_next_token()
