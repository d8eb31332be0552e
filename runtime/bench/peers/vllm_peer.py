"""vLLM on a CPU, on a compressed-tensors checkpoint of symmetric codes in groups of 128."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsconv.convert.families import read_family
from dsconv.convert.families.inventory import Role, parameters_of
from dsconv.convert.files.json_file import ConfigReader, read_json_object
from dsconv.convert.inspect.describe import describe
from dsconv.errors import UnsupportedError
from dsconv.runtime.sessions.load import DEFAULT_CACHE

CONFIG = "config.json"
GROUP_SIZE = 128
CACHE_GIGABYTES = "4"  # of keys and values, for all sequences
MOST_AT_ONCE = 256  # sequences
LONGEST = 16384  # positions of a sequence: more would want memory for a whole context


def build(checkpoint: str, bits: int, output: Path) -> None:
    """vLLM has no quantizer of its own: what it reads is rounded to nearest, the head included."""
    from dsconv.convert.quantize.options import QuantizeOptions
    from dsconv.convert.quantize.run import quantize_checkpoint
    from dsconv.runtime.export import ExportRequest, export_model
    from dsconv.runtime.model_paths import open_model

    with tempfile.TemporaryDirectory(dir=output.parent, prefix="dsconv-peer-") as scratch:
        quantized = Path(scratch) / "quantized"
        options = QuantizeOptions(bits=bits, group_size=GROUP_SIZE)
        quantize_checkpoint(open_model(checkpoint), options, quantized)
        export_model(str(quantized), ExportRequest("compressed-tensors"), output, True)


def weight_bytes_per_token(path: Path) -> int:
    """All but the table of embeddings, unless that is the head as well."""
    config = ConfigReader(read_json_object(path / CONFIG), str(path))
    roles = {each.name: each.role for each in parameters_of(read_family(config))}
    rows = describe(str(path)).tensors
    own_head = any(roles.get(row.name) is Role.HEAD for row in rows)
    return sum(
        row.size_bytes for row in rows if not own_head or roles.get(row.name) is not Role.EMBEDDING
    )


def open_runner(path: str, threads: int, kv: str) -> VllmRunner:
    if kv != DEFAULT_CACHE:
        raise UnsupportedError(f"{path}: vLLM has no {kv} cache on a CPU", "leave out --kv")
    return VllmRunner(path, threads)


class VllmRunner:
    """Its engine in this process, asked for one pass at a time.

    Requests end by themselves, so their contexts are read again (untimed) for every burst.
    """

    def __init__(self, path: str, threads: int) -> None:
        # Read when it is imported.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = CACHE_GIGABYTES
        if threads:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}" if threads > 1 else "0"
        import vllm

        reader = ConfigReader(read_json_object(Path(path) / CONFIG), path)
        self._context_length = min(reader.integer("max_position_embeddings"), LONGEST)
        self._api: Any = vllm
        self._engine: Any = vllm.LLM(
            path,
            skip_tokenizer_init=True,
            max_model_len=self._context_length,
            max_num_seqs=MOST_AT_ONCE,
            enable_prefix_caching=False,
            disable_log_stats=True,
        ).llm_engine
        self._number = 0

    @property
    def context_length(self) -> int:
        return self._context_length

    def prefill(self, tokens: Sequence[int]) -> float:
        start = time.perf_counter()
        self._add(tokens, 1)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return time.perf_counter() - start

    def decode(self, context: Sequence[int], count: int) -> float:
        return self.decode_many(context, 1, count)

    def batch_limit(self, positions: int) -> int:
        return MOST_AT_ONCE

    def decode_many(self, context: Sequence[int], batch: int, count: int) -> float:
        # The first sequences write while contexts of others are still read.
        most = count + batch + 16
        for row in range(batch):
            first = row % len(context)
            self._add([*context[first:], *context[:first]], most)
        written: dict[str, int] = {}
        while len(written) < batch:
            self._pass(written)
        before, start = sum(written.values()), time.perf_counter()
        while sum(written.values()) - before < batch * count:
            if not self._engine.has_unfinished_requests():
                break
            self._pass(written)
        seconds = time.perf_counter() - start
        timed = sum(written.values()) - before
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return seconds * batch * count / timed

    def _add(self, tokens: Sequence[int], count: int) -> None:
        settings = self._api.SamplingParams(
            temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False
        )
        self._engine.add_request(str(self._number), {"prompt_token_ids": list(tokens)}, settings)
        self._number += 1

    def _pass(self, written: dict[str, int]) -> None:
        for output in self._engine.step():
            if output.outputs and output.outputs[0].token_ids:
                written[output.request_id] = len(output.outputs[0].token_ids)
