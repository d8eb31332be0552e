"""How fast this machine does each kind of work: a moment of the very functions that do it.

Every thread repeats a small piece, so that what threads cost each other is in the rate. Processes
that compete for the processor are in it too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.matrix_layout import encode
from dsconv.convert.families.base import Decoder, DecoderConfig
from dsconv.convert.families.inventory import Role, parameters_of
from dsconv.convert.forward.workers import Workers, single_threaded_libraries
from dsconv.quant.gptq import factorize, gptq
from dsconv.quant.schemes import Floats, Scheme

from .calibration.memory_budget import rows_at_a_time
from .cost_model import Work, Workload
from .plan import plan
from .rounding import BLOCK_WEIGHTS, round_in_blocks

MOMENT = 0.2  # seconds per kind of work
LAYER_WEIGHTS = 1 << 22  # of the decoder layer that stands for larger ones
COLUMNS = 1024  # of square matrices that stand for others
FEEDBACK_COLUMNS = 256  # a super-block
READ_BYTES = 1 << 23
WRITTEN_BYTES = 1 << 26
ROUNDED_CHUNK = 1 << 20  # weights that a thread takes at a time

Rates = Mapping[Work, float]


def measure(workload: Workload, output: Path) -> Rates:
    """Units per second of the kinds of work that the run needs.

    Args:
        output: where it would be written; a file without a name is, for a moment.
    """
    stored = _normal(BLOCK_WEIGHTS // COLUMNS, COLUMNS).astype(np.float16)
    fixed = {
        Work.STARTING: 1 / start_seconds(bool(workload.itemsize)),
        Work.WRITING: writing_rate(output),
    }
    threads = workload.options.threads
    if not workload.itemsize:
        with Workers(threads) as workers:
            return {
                **fixed,
                Work.ROUNDING: _rounding_rate(workload, stored, workers),
                **_serial(workload.checkpoint, stored, workers),
            }
    with single_threaded_libraries(), Workers(threads) as workers:
        return {
            **fixed,
            Work.ROUNDING: _rounding_rate(workload, stored, workers),
            **_serial(workload.checkpoint, stored, workers),
            **_products(workload, workers),
            **_feedback(workload, workers),
        }


def _rounding_rate(workload: Workload, stored: NDArray[np.float16], workers: Workers) -> float:
    """Over all that is rounded by itself: each scheme has a rate of its own."""
    _, jobs = plan(workload.checkpoint, workload.options)
    amounts: Counter[Scheme] = Counter()
    for job in jobs:
        if job.scheme is not None and (
            not workload.calibrates or job.parameter.role is Role.EMBEDDING
        ):
            amounts[job.scheme] += job.parameter.size
    if not amounts:  # what estimates of sensitivity round
        amounts.update(job.scheme for job in jobs if job.scheme is not None)
    seconds = 0.0
    for scheme, amount in amounts.items():
        work, weights = _free_rounding(workload, scheme, stored)
        seconds += amount / _rate(work, weights, workers, workload.options.threads)
    return amounts.total() / seconds


def _free_rounding(
    workload: Workload, scheme: Scheme, stored: NDArray[np.float16]
) -> tuple[Callable[[], object], int]:
    """-> (what a thread does with a chunk of rows, its weights): the model's own where reading
    them is decoding, else any."""
    method = "search" if workload.calibrates else workload.options.method
    checkpoint, name, rows = workload.checkpoint, "", 0
    source = checkpoint.source
    linear = [p for p in checkpoint.parameters.values() if p.role is Role.LINEAR]
    largest = max(linear, key=lambda parameter: parameter.size)
    if source.files() and source.storage(largest.name) != source.dtype(largest.name):
        name, rows = largest.name, max(1, min(largest.shape[0], ROUNDED_CHUNK // largest.shape[1]))
        scheme = scheme.for_columns(largest.shape[1])

    def freely() -> None:
        weights = checkpoint.rows(name, 0, rows) if name else stored.astype(np.float32)
        np.isfinite(weights).sum()
        encode(round_in_blocks(weights, scheme, method))

    return freely, rows * checkpoint.parameters[name].shape[1] if name else stored.size


def start_seconds(with_torch: bool) -> float:
    """Of a process that imports what a run needs."""
    modules = "dsconv.cli, dsconv.runtime.quantize"
    modules += ", torch, dsconv.runtime.calibration.self_written" if with_torch else ""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=False, capture_output=True)
    return max(time.perf_counter() - start, 1e-3)


def writing_rate(output: Path) -> float:
    """Bytes per second into the nearest folder that is there."""
    folder = next((p for p in output.absolute().parents if p.is_dir()), Path(tempfile.gettempdir()))
    content = os.urandom(WRITTEN_BYTES)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            start = time.perf_counter()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            return WRITTEN_BYTES / max(time.perf_counter() - start, 1e-6)
    except OSError:  # full, or not ours: the run will say so
        return float(WRITTEN_BYTES)


def _rate(work: Callable[[], object], amount: float, workers: Workers, threads: int) -> float:
    """Amounts per second of all threads together."""

    def repeat(_: int) -> float:
        work()
        start, done = time.perf_counter(), 0
        while not done or time.perf_counter() - start < MOMENT:
            work()
            done += 1
        return done * amount / (time.perf_counter() - start)

    return sum(workers.in_order(repeat, range(threads)))


def _serial(
    checkpoint: Checkpoint, stored: NDArray[np.float16], workers: Workers
) -> dict[Work, float]:
    """Conversions, and the model's own file where there is one: else a read of memory."""
    files = checkpoint.source.files()

    def convert() -> None:
        np.isfinite(stored.astype(np.float32)).sum()

    def read() -> None:
        sha256(_beginning(files[0]) if files else bytes(READ_BYTES))

    return {
        Work.LOADING: _rate(convert, stored.size, workers, 1),
        Work.READING: _rate(read, READ_BYTES, workers, 1),
    }


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(READ_BYTES).ljust(READ_BYTES, b"\0")


def _products(workload: Workload, workers: Workers) -> dict[Work, float]:
    import torch

    from dsconv.convert.forward.torch_ops import forward_dtype
    from dsconv.convert.quantize.calibration.moments import MomentSum

    threads, size = workload.options.threads, workload.windows.size
    dtype = forward_dtype()
    a, b = _normal(COLUMNS, COLUMNS), _normal(COLUMNS, COLUMNS)
    x = torch.full((max(16, size), COLUMNS), 0.5, dtype=dtype)
    config = _small(workload.checkpoint.decoder.config)
    forward, operations = _layer(type(workload.checkpoint.decoder)(config), dtype, size)

    with Workers(1) as one:
        sums = MomentSum([(0, COLUMNS)], workload.streams > 1, one)
        same = [x] if workload.streams > 1 else []
        per_token = 2 * COLUMNS**2 * workload.streams
        moments = _rate(lambda: sums.add(x, *same), len(x) * per_token, workers, 1)
    return {
        Work.FORWARD: _rate(forward, operations, workers, threads),
        Work.MOMENTS: moments,
        Work.PRODUCT: _rate(lambda: a @ b, 2 * COLUMNS**3, workers, threads),
    }


def _layer(decoder: Decoder, dtype: object, size: int) -> tuple[Callable[[], object], float]:
    """-> (one decoder layer over one window, its operations)."""
    import torch

    from dsconv.convert.forward.torch_ops import KeyValueCache, TorchOps

    if not isinstance(dtype, torch.dtype):
        raise TypeError(dtype)
    config = decoder.config
    found = {p.name: p for p in parameters_of(decoder)}
    weights = {n: torch.full(p.shape, 0.01, dtype=dtype) for n, p in found.items()}
    x = torch.full((1, size, config.hidden_size), 0.5, dtype=dtype)
    tokens = torch.zeros(size, dtype=torch.int64)

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return decoder.layer(TorchOps(weights.__getitem__, tokens, KeyValueCache()), 0, x)

    matrices = sum(p.size for p in found.values() if p.role is Role.LINEAR)
    attention = config.num_attention_heads * config.head_dim * size
    return forward, 2.0 * size * (matrices + attention)


def _small(config: DecoderConfig) -> DecoderConfig:
    """One layer of the same proportions with at most LAYER_WEIGHTS weights."""
    width = config.num_attention_heads * config.head_dim
    weights = config.hidden_size * (3 * config.intermediate_size + 4 * width)
    share = min(1.0, (LAYER_WEIGHTS / weights) ** 0.5)
    sharing = config.num_attention_heads // config.num_key_value_heads
    kv_heads = max(1, round(config.num_key_value_heads * share))
    return replace(
        config,
        hidden_size=max(64, int(config.hidden_size * share)),
        intermediate_size=max(64, int(config.intermediate_size * share)),
        num_hidden_layers=1,
        num_attention_heads=kv_heads * sharing,
        num_key_value_heads=kv_heads,
        vocab_size=1,
    )


def _feedback(workload: Workload, workers: Workers) -> dict[Work, float]:
    """What `calibrate.py` does with every slice of rows."""
    scheme = _scheme(workload, Role.LINEAR)
    if scheme is None or not workload.calibrates:
        return {}
    threads = workload.options.threads
    weights = _normal(rows_at_a_time(FEEDBACK_COLUMNS), FEEDBACK_COLUMNS)
    large, small = np.eye(COLUMNS, dtype=np.float32), np.eye(FEEDBACK_COLUMNS, dtype=np.float32)
    factor = factorize([small], scheme)

    def feedback() -> None:
        quantized = gptq(weights, factor, scheme)
        encode(quantized)
        quantized.dequantize()
        scheme.round_to_nearest(weights).dequantize()

    return {
        Work.FACTORIZATION: _rate(lambda: factorize([large], scheme), COLUMNS**3, workers, 1),
        Work.FEEDBACK: _rate(feedback, weights.size, workers, threads),
    }


def _scheme(workload: Workload, role: Role) -> Scheme | None:
    options = workload.options
    bits = options.embedding_bits if role is Role.EMBEDDING else options.bits
    return options.scheme(bits, role)


def _normal(rows: int, columns: int) -> Floats:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)
