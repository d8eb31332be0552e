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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from dsconv.convert.checkpoint.checkpoint import Checkpoint, module_of
from dsconv.convert.checkpoint.matrix_layout import encode
from dsconv.convert.families.base import Decoder
from dsconv.convert.forward.torch_ops import KeyValueCache, TorchOps, forward_dtype, load_parameter
from dsconv.convert.forward.workers import Workers, single_threaded_libraries
from dsconv.quant.schemes import QuantizedMatrix

from .run_state import QuantizeRun

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
class Example:
    """What the original model says to a window: log-probabilities of its TOP_TOKENS likeliest
    tokens [positions, k], their ids, and of all others together [positions]."""

    tokens: torch.Tensor
    ids: torch.Tensor
    top: torch.Tensor
    tail: torch.Tensor


class TrainableMatrix:
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


@dataclass(frozen=True)
class TunedModel:
    """checkpoint: the original; decoder: of the quantized model, whose ties may differ from the
    original's; matrices: what is tuned, by the parameter's name."""

    checkpoint: Checkpoint
    decoder: Decoder
    matrices: Mapping[str, QuantizedMatrix]
    dtype: torch.dtype

    def load(self, name: str) -> torch.Tensor:
        return load_parameter(self.checkpoint, name, self.dtype)


def tune(
    model: TunedModel,
    windows: Sequence[Sequence[int]],
    options: TuningOptions,
    workers: Workers,
    say: Callable[[str], None] = lambda line: None,
) -> TuningResult:
    """Train the units of all matrices. Holds the model in memory."""
    training = _Training(model, _examples(model, windows, workers), workers)
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


def _examples(
    model: TunedModel, windows: Sequence[Sequence[int]], workers: Workers
) -> list[Example]:
    weights = {name: model.load(name) for name in model.checkpoint.parameters}
    tokens = [torch.tensor(list(window)) for window in windows]
    return list(workers.in_order(example_of, tokens, model.checkpoint.decoder, weights))


# Units of work: pure functions of values that can be pickled.


@torch.no_grad()
def example_of(
    tokens: torch.Tensor, decoder: Decoder, weights: Mapping[str, torch.Tensor]
) -> Example:
    """decoder, weights: of the original model."""
    ops = TorchOps(weights.__getitem__, tokens, KeyValueCache())
    logits = decoder.forward(ops)[0].float()
    logits -= logits.logsumexp(-1, keepdim=True)
    top, ids = logits.topk(min(TOP_TOKENS, logits.shape[1] - 1), dim=-1)
    tail = torch.log1p(-top.exp().sum(-1).clamp(max=1 - 1e-6))
    return Example(tokens, ids, top, tail)


@torch.no_grad()
def loss_of(example: Example, decoder: Decoder, weights: Mapping[str, torch.Tensor]) -> float:
    """Summed over the positions of a window."""
    return float(_kl(example, decoder, weights))


def gradients_of(
    example: Example,
    decoder: Decoder,
    weights: Mapping[str, torch.Tensor],
    matrices: Mapping[str, TrainableMatrix],
) -> list[torch.Tensor]:
    """Of the loss of a window, by the units of all matrices, whose weights require a gradient."""
    leaves = [weights[name] for name in matrices]
    found = torch.autograd.grad(_kl(example, decoder, weights), leaves)
    return [
        part
        for matrix, gradient in zip(matrices.values(), found, strict=True)
        for part in matrix.gradients(gradient)
    ]


def weights_of(matrix: TrainableMatrix, dtype: torch.dtype) -> torch.Tensor:
    return matrix.weights(dtype)


def _kl(example: Example, decoder: Decoder, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    ops = TorchOps(weights.__getitem__, example.tokens, KeyValueCache())
    logits = decoder.forward(ops)[0].float()
    whole = logits.logsumexp(-1)
    top = logits.gather(1, example.ids) - whole[:, None]
    tail = torch.log1p(-top.exp().sum(-1).clamp(max=1 - 1e-6))
    kl = (example.top.exp() * (example.top - top)).sum(-1)
    return (kl + example.tail.exp() * (example.tail - tail)).sum()


class _Training:
    """The quantized model as a function of its units."""

    def __init__(self, model: TunedModel, examples: Sequence[Example], workers: Workers) -> None:
        self._decoder, self._dtype = model.decoder, model.dtype
        self._matrices = {name: TrainableMatrix(rows) for name, rows in model.matrices.items()}
        self._floats = {
            name: model.load(name)
            for name in model.checkpoint.parameters
            if name not in model.matrices
        }
        self._examples, self._workers = examples, workers

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
        examples = [self._examples[index] for index in indices]
        losses = self._workers.in_order(loss_of, examples, self._decoder, self._weights())
        return sum(losses) / _positions(examples)

    def gradients(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Of the mean KL per token, by the units of all matrices."""
        examples = [self._examples[index] for index in indices]
        weights = self._weights()
        for name in self._matrices:
            weights[name].requires_grad_()
        total: list[torch.Tensor] = []
        for part in self._workers.in_order(
            gradients_of, examples, self._decoder, weights, self._matrices
        ):
            total = [a + b for a, b in zip(total, part, strict=True)] if total else part
        return [gradient / _positions(examples) for gradient in total]

    def _weights(self) -> dict[str, torch.Tensor]:
        built = self._workers.in_order(weights_of, self._matrices.values(), self._dtype)
        return {**self._floats, **dict(zip(self._matrices, built, strict=True))}


def _positions(examples: Sequence[Example]) -> int:
    return sum(len(example.tokens) for example in examples)


def tune_written(run: QuantizeRun, decoder: Decoder) -> TuningResult | None:
    """Tune the matrices of a finished run in its files.

    The tuned rows are first kept beside them: a run that is cut off while it writes begins again
    with the same rows. None when an earlier run had tuned them.
    """
    kept = run.journal.folder / TUNED
    result = None
    if not any(record.get("tuned") for record in run.journal.records):
        matrices = {
            job.parameter.name: run.writer.read_quantized(job, 0, job.parameter.shape[0])
            for job in run.jobs
            if job.scheme and job.scheme.tunable
        }
        with single_threaded_libraries(), Workers(run.options.threads) as workers:
            model = TunedModel(run.checkpoint, decoder, matrices, forward_dtype())
            tuning = TuningOptions(run.options.tuning_epochs)
            result = tune(model, run.windows, tuning, workers, run.listeners.say)
        arrays = {
            f"{module_of(name)}.{kind}": array
            for name, quantized in result.matrices.items()
            for kind, array in encode(quantized).items()
            if kind in UNITS
        }
        save_file(arrays, kept)
        run.journal.append({"modules": [], "addition": 0, "reports": [], "tuned": True}, [kept])
    with safe_open(kept, "np") as file:
        for name in file.keys():  # noqa: SIM118 (not a dictionary)
            run.writer.rewrite(name, file.get_tensor(name))
    run.writer.flush()
    return result
