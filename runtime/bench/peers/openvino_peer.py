"""OpenVINO GenAI, on the export of package optimum-intel."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from dsconv.errors import ProviderError

from .building import run_tool

PASS_TOKENS = 256  # of its scheduler
MODEL = "openvino_model.xml"
EMBEDDING = "embed_tokens"  # in the names of its constants
MOST_AT_ONCE = 256  # sequences, of its scheduler's configuration
CACHE_GIGABYTES = 4  # of keys and values, for all sequences
CACHE_TYPES = {"fp32": "f32", "fp16": "f16", "int8": "u8"}
WEIGHTS = {
    4: ("int4", "--group-size", "128", "--sym", "--ratio", "1.0"),
    8: ("int8",),
}


def build(checkpoint: str, bits: int, output: Path) -> None:
    """
    Raises:
        ProviderError: optimum-intel is not installed.
    """
    if importlib.util.find_spec("optimum") is None:
        raise ProviderError(
            "OpenVINO builds its model by optimum-intel, which is not installed",
            "pip install optimum-intel nncf, or name a folder built elsewhere with --peers",
        )
    task = ("--task", "text-generation-with-past")
    weights = ("--weight-format", *WEIGHTS[bits])
    command = ("export", "openvino", "-m", checkpoint, *task, *weights, output)
    run_tool("optimum.commands.optimum_cli", *command)


def weight_bytes_per_token(path: Path) -> int:
    sizes = {
        layer.get("name", ""): int(data.get("size", 0))
        for layer in ElementTree.parse(path / MODEL).iter("layer")
        if layer.get("type") == "Const" and (data := layer.find("data")) is not None
    }
    return sum(size for name, size in sizes.items() if EMBEDDING not in name)


def open_runner(path: str, threads: int, kv: str) -> OpenvinoRunner:
    return OpenvinoRunner(path, threads, kv)


class OpenvinoRunner:
    """LLMPipeline makes whole texts: it reads the context again for every burst of tokens."""

    def __init__(self, path: str, threads: int, kv: str) -> None:
        import openvino_genai

        config = json.loads((Path(path) / "config.json").read_text("utf-8"))
        self._context_length = int(config["max_position_embeddings"])
        self._settings = openvino_genai.GenerationConfig()
        self._settings.ignore_eos, self._settings.do_sample = True, False
        properties = {
            "INFERENCE_NUM_THREADS": threads,
            "KV_CACHE_PRECISION": CACHE_TYPES[kv],
        }
        alone = {**properties, "ATTENTION_BACKEND": "SDPA"}  # made for one sequence
        self._pipeline = openvino_genai.LLMPipeline(path, "CPU", alone)
        self._path, self._properties = path, properties
        self._batches: ContinuousBatching | None = None

    @property
    def context_length(self) -> int:
        return self._context_length

    def prefill(self, tokens: Sequence[int]) -> float:
        start = time.perf_counter()
        self._generate(tokens, 1)
        return time.perf_counter() - start

    def decode(self, context: Sequence[int], count: int) -> float:
        metrics = self._generate(context, count + 1).perf_metrics
        return float(metrics.get_tpot().mean) / 1000 * count

    def batch_limit(self, positions: int) -> int:
        return MOST_AT_ONCE

    def decode_many(self, context: Sequence[int], batch: int, count: int) -> float:
        if self._batches is None:
            self._batches = ContinuousBatching(self._path, self._properties)
        return self._batches.decode(context, batch, count)

    def _generate(self, tokens: Sequence[int], count: int) -> Any:
        import openvino

        self._settings.max_new_tokens = count
        return self._pipeline.generate(openvino.Tensor(np.array([tokens])), self._settings)


class ContinuousBatching:
    """Its pipeline for many sequences, which is asked for one pass at a time."""

    def __init__(self, path: str, properties: Mapping[str, object]) -> None:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIGABYTES
        scheduler.max_num_seqs = MOST_AT_ONCE
        scheduler.max_num_batched_tokens = PASS_TOKENS
        scheduler.enable_prefix_caching = False
        self._api: Any = openvino_genai
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            path, scheduler, "CPU", properties
        )
        self._number = 0

    def decode(self, context: Sequence[int], batch: int, count: int) -> float:
        """Requests end by themselves, so their contexts are read again (untimed) every time."""
        import openvino

        settings = self._api.GenerationConfig()
        settings.ignore_eos, settings.do_sample = True, False
        # The first sequences write a token per pass while contexts of others are still read.
        settings.max_new_tokens = count + 2 * batch * len(context) // PASS_TOKENS + batch
        running = []
        for row in range(batch):
            first = row % len(context)
            tokens = np.array([[*context[first:], *context[:first]]])
            running.append(
                self._pipeline.add_request(self._number, openvino.Tensor(tokens), settings)
            )
            self._number += 1
        written = [0] * batch
        while min(written) < 1:
            self._pass(running, written)
        before, start = sum(written), time.perf_counter()
        while sum(written) - before < batch * count and self._pipeline.has_non_finished_requests():
            self._pass(running, written)
        seconds = time.perf_counter() - start
        timed = sum(written) - before
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return seconds * batch * count / timed

    def _pass(self, running: Sequence[Any], written: list[int]) -> None:
        self._pipeline.step()
        for index, handle in enumerate(running):
            if handle.can_read():
                written[index] += sum(len(o.generated_ids) for o in handle.read().values())
