"""OpenVINO GenAI, on the export of package optimum-intel."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any
from xml.etree import ElementTree

import numpy as np

from dsconv.errors import ProviderError

from .building import run_tool

MODEL = "openvino_model.xml"
EMBEDDING = "embed_tokens"  # in the names of its constants
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
            "ATTENTION_BACKEND": "SDPA",  # made for one sequence
        }
        self._pipeline = openvino_genai.LLMPipeline(path, "CPU", properties)

    @property
    def context_length(self) -> int:
        return self._context_length

    def prefill(self, tokens: Sequence[int]) -> float:
        start = perf_counter()
        self._generate(tokens, 1)
        return perf_counter() - start

    def decode(self, context: Sequence[int], count: int) -> float:
        metrics = self._generate(context, count + 1).perf_metrics
        return float(metrics.get_tpot().mean) / 1000 * count

    def _generate(self, tokens: Sequence[int], count: int) -> Any:
        import openvino

        self._settings.max_new_tokens = count
        return self._pipeline.generate(openvino.Tensor(np.array([tokens])), self._settings)
