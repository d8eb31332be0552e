"""KL tuning: codes stay, scales (and minima) are trained against the original model's logits.

The loss is the KL divergence from the original model, over its likeliest tokens and the tail of all
others together. Every unit of scale is multiplied by exp(δ) and δ is trained by Adam, gently:
tuned hard, the model fits the calibration text and leaves the original. The last windows are held
out; the best state on them is kept, which may be the one it began with. (The idea of DWQ and of
EfficientQAT's second stage.)

Windows of a step are computed one per thread and summed in order, with single-threaded libraries:
the result does not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from dsconv.convert.checkpoint.checkpoint import Checkpoint, module_of
from dsconv.convert.checkpoint.jobs import Job
from dsconv.convert.checkpoint.matrix_layout import encode
from dsconv.convert.families.base import Decoder
from dsconv.convert.forward.torch_ops import KeyValueCache, TorchOps, load_parameter
from dsconv.convert.forward.workers import Workers, single_threaded_libraries
from dsconv.convert.quantize.calibration.calibrate import forward_dtype
from dsconv.quant.schemes import QuantizedMatrix

from .journal import Journal
from .plan import QuantizeOptions
from .run import QuantizedWriter

TUNED = "tuned.safetensors"
UNITS = ("weight_scale", "weight_super_scale", "weight_super_minimum")  # what tuning changes
TOP_TOKENS = 256
WINDOWS_PER_STEP = 4
HELD_OUT_SHARE = 0.1
CHECKS = 4  # of the held-out loss per epoch
WARM_UP = 0.1  # of all steps


@dataclass(frozen=True)
class TuningOptions:
    """epochs: passes over the windows; learning_rate: of Adam on the logarithm of the scales."""

    epochs: int = 2
    learning_rate: float = 2e-4


@dataclass(frozen=True)
class TuningResult:
    """Held-out KL in nats per token, before and after."""

    kl_before: float
    kl_after: float
    matrices: dict[str, QuantizedMatrix]


@dataclass(frozen=True)
class Target:
    """What the original model says to a window: log-probabilities of its TOP_TOKENS likeliest
    tokens [positions, k], their ids, and of all others together [positions]."""

    ids: torch.Tensor
    top: torch.Tensor
    tail: torch.Tensor


class _Matrix:
    """One quantized matrix with trainable units: w = scale * code - minimum, group by group."""

    def __init__(self, quantized: QuantizedMatrix) -> None:
        self.quantized = quantized
        self._columns = quantized.codes.shape[1]
        self._size = quantized.scheme.group_length(self._columns)
        self._codes = torch.from_numpy(quantized.codes)
        units = quantized.units()
        self._repeat = units.groups
        self._steps = [_floats(steps) for steps in units.steps]
        self._zeros = None if units.zeros is None else _floats(units.zeros)
        self._starts = [_floats(start) for start in units.values]
        self.deltas = [torch.zeros_like(start) for start in self._starts]

    def units(self, deltas: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Scales (and minima) of the units as float16 will hold them."""
        return [
            (start * delta.exp()).half().float()
            for start, delta in zip(self._starts, deltas, strict=True)
        ]

    def weights(self, dtype: torch.dtype) -> torch.Tensor:
        """[rows, columns], dequantized with the present units."""
        scale, minimum = self._grid()
        grouped = self._grouped(self._codes).float()
        if self._zeros is not None:
            grouped -= self._zeros[..., None]
        grouped *= scale[..., None]
        if minimum is not None:
            grouped -= minimum[..., None]
        flat = grouped.reshape(len(grouped), -1)[:, : self._columns]
        return flat.to(dtype).contiguous()

    def gradients(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """d loss / d delta, from d loss / d weights [rows, columns]."""
        g = self._grouped(gradient.float())
        codes = self._grouped(self._codes).float()
        if self._zeros is not None:
            codes -= self._zeros[..., None]
        scale, minimum = self._grid()
        by_scale = torch.einsum("rgk,rgk->rg", g, codes) * scale
        found = [self._per_unit(by_scale)]
        if minimum is not None:
            found.append(self._per_unit(-g.sum(-1) * minimum))
        return found

    def result(self, deltas: Sequence[torch.Tensor]) -> QuantizedMatrix:
        """The matrix with tuned units."""
        units = [unit.numpy().astype(np.float16) for unit in self.units(deltas)]
        return self.quantized.with_units(units)

    def _grid(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        scale, *minima = (
            unit.repeat_interleave(self._repeat, 1)[:, : steps.shape[1]] * steps
            for unit, steps in zip(self.units(self.deltas), self._steps, strict=True)
        )
        return scale, minima[0] if minima else None

    def _per_unit(self, values: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(values, (0, -values.shape[1] % self._repeat))
        return padded.view(len(values), -1, self._repeat).sum(-1)

    def _grouped(self, values: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(values, (0, -values.shape[1] % self._size))
        return padded.view(len(values), -1, self._size)


def _floats(values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def tune(
    checkpoint: Checkpoint,
    decoder: Decoder,
    matrices: dict[str, QuantizedMatrix],
    windows: Sequence[Sequence[int]],
    options: TuningOptions,
    dtype: torch.dtype,
    workers: Workers,
    say: Callable[[str], None] = lambda line: None,
) -> TuningResult:
    """Train the units of all `matrices` (by parameter name). Holds the model in memory.

    decoder: of the quantized model, whose ties may differ from the original's.
    """
    tokens = [torch.tensor(list(window)) for window in windows]
    targets = _targets(checkpoint, tokens, dtype, workers)
    training = _Training(checkpoint, decoder, matrices, tokens, targets, dtype, workers)
    held = max(1, round(HELD_OUT_SHARE * len(windows)))
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0)).tolist()
    held_out, training_set = order[:held], order[held:]
    steps = max(1, options.epochs * len(training_set) // WINDOWS_PER_STEP)
    check_every = max(1, steps // (options.epochs * CHECKS))
    parameters = training.parameters
    optimizer = torch.optim.Adam(parameters, lr=options.learning_rate, betas=(0.9, 0.99))
    best = before = training.loss(held_out)
    best_state = [parameter.clone() for parameter in parameters]
    say(f"tuning: held-out KL {before:.4f} nats per token")
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _schedule(step, steps)
        first = step * WINDOWS_PER_STEP
        batch = [
            training_set[i % len(training_set)] for i in range(first, first + WINDOWS_PER_STEP)
        ]
        for parameter, gradient in zip(parameters, training.gradients(batch), strict=True):
            parameter.grad = gradient
        optimizer.step()
        if (step + 1) % check_every == 0 or step == steps - 1:
            loss = training.loss(held_out)
            say(f"tuning: step {step + 1} of {steps}, held-out KL {loss:.4f}")
            if loss < best:
                best, best_state = loss, [parameter.clone() for parameter in parameters]
    return TuningResult(before, best, training.results(best_state))


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a short rise, then half a cosine down to nothing."""
    rise = max(1.0, WARM_UP * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def _targets(
    checkpoint: Checkpoint, tokens: Sequence[torch.Tensor], dtype: torch.dtype, workers: Workers
) -> list[Target]:
    weights = {name: load_parameter(checkpoint, name, dtype) for name in checkpoint.parameters}

    @torch.no_grad()
    def one(window: torch.Tensor) -> Target:
        ops = TorchOps(weights.__getitem__, window, KeyValueCache())
        logits = checkpoint.decoder.forward(ops)[0].float()
        logits -= logits.logsumexp(-1, keepdim=True)
        top, ids = logits.topk(min(TOP_TOKENS, logits.shape[1] - 1), dim=-1)
        tail = torch.log1p(-top.exp().sum(-1).clamp(max=1 - 1e-6))
        return Target(ids, top, tail)

    return list(workers.in_order(one, tokens))


class _Training:
    """The quantized model as a function of its units."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        decoder: Decoder,
        matrices: dict[str, QuantizedMatrix],
        tokens: Sequence[torch.Tensor],
        targets: Sequence[Target],
        dtype: torch.dtype,
        workers: Workers,
    ) -> None:
        self._decoder = decoder
        self._matrices = {name: _Matrix(quantized) for name, quantized in matrices.items()}
        self._floats = {
            name: load_parameter(checkpoint, name, dtype)
            for name in checkpoint.parameters
            if name not in matrices
        }
        self._tokens, self._targets = tokens, targets
        self._dtype, self._workers = dtype, workers

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [delta for matrix in self._matrices.values() for delta in matrix.deltas]

    def results(self, state: Sequence[torch.Tensor]) -> dict[str, QuantizedMatrix]:
        remaining = iter(state)
        return {
            name: matrix.result([next(remaining) for _ in matrix.deltas])
            for name, matrix in self._matrices.items()
        }

    def loss(self, indices: Sequence[int]) -> float:
        """Mean KL per token over whole windows."""
        weights = self._weights()

        @torch.no_grad()
        def one(index: int) -> float:
            return float(self._kl(index, weights))

        return sum(self._workers.in_order(one, indices)) / self._positions(indices)

    def gradients(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Of the mean KL per token, by the units of all matrices."""
        weights = self._weights()
        leaves = [weights[name].requires_grad_() for name in self._matrices]

        def one(index: int) -> list[torch.Tensor]:
            found = torch.autograd.grad(self._kl(index, weights), leaves)
            return [
                part
                for matrix, gradient in zip(self._matrices.values(), found, strict=True)
                for part in matrix.gradients(gradient)
            ]

        total: list[torch.Tensor] = []
        for part in self._workers.in_order(one, indices):
            total = [a + b for a, b in zip(total, part, strict=True)] if total else part
        return [gradient / self._positions(indices) for gradient in total]

    def _positions(self, indices: Sequence[int]) -> int:
        return sum(len(self._tokens[index]) for index in indices)

    def _weights(self) -> dict[str, torch.Tensor]:
        names = list(self._matrices)

        def one(name: str) -> torch.Tensor:
            return self._matrices[name].weights(self._dtype)

        built = self._workers.in_order(one, names)
        return {**self._floats, **dict(zip(names, built, strict=True))}

    def _kl(self, index: int, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        """Summed over the positions of a window."""
        target = self._targets[index]
        ops = TorchOps(weights.__getitem__, self._tokens[index], KeyValueCache())
        logits = self._decoder.forward(ops)[0].float()
        whole = logits.logsumexp(-1)
        top = logits.gather(1, target.ids) - whole[:, None]
        tail = torch.log1p(-top.exp().sum(-1).clamp(max=1 - 1e-6))
        kl = (target.top.exp() * (target.top - top)).sum(-1)
        return (kl + target.tail.exp() * (target.tail - tail)).sum()


def tune_written(
    checkpoint: Checkpoint,
    decoder: Decoder,
    jobs: Sequence[Job],
    windows: Sequence[Sequence[int]],
    writer: QuantizedWriter,
    options: QuantizeOptions,
    journal: Journal,
    say: Callable[[str], None],
) -> TuningResult | None:
    """Tune the matrices of a finished run in its files.

    The tuned rows are first kept beside them: a run that is cut off while it writes begins again
    with the same rows. None when an earlier run had tuned them.
    """
    kept = journal.folder / TUNED
    result = None
    if not any(record.get("tuned") for record in journal.records):
        matrices = {
            job.parameter.name: writer.read_quantized(job, 0, job.parameter.shape[0])
            for job in jobs
            if job.scheme and job.scheme.tunable
        }
        tuning = TuningOptions(options.tuning_epochs)
        with single_threaded_libraries(), Workers(options.threads) as workers:
            result = tune(
                checkpoint, decoder, matrices, windows, tuning, forward_dtype(), workers, say
            )
        arrays = {
            f"{module_of(name)}.{kind}": array
            for name, quantized in result.matrices.items()
            for kind, array in encode(quantized).items()
            if kind in UNITS
        }
        save_file(arrays, kept)
        journal.append({"modules": [], "addition": 0, "reports": [], "tuned": True}, [kept])
    with safe_open(kept, "np") as file:
        for name in file.keys():  # noqa: SIM118 (not a dictionary)
            writer.rewrite(name, file.get_tensor(name))
    writer.flush()
    return result
