"""Units of work give the same when they and what they are given have been pickled."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from logits import random_tokens
from reference_models import tiny_checkpoint

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.jobs import Job
from dsconv.convert.families.base import Linear, Norm
from dsconv.convert.forward.activation_store import ActivationStore
from dsconv.convert.forward.torch_ops import TorchOps, load_parameter
from dsconv.convert.forward.workers import Workers
from dsconv.convert.hub.messages import Unreachable
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.calibration.divergence import HeadPair, head_rows
from dsconv.convert.quantize.calibration.embedding import EmbeddingTask, embedding_slice
from dsconv.convert.quantize.calibration.forward_pass import (
    Computed,
    Embedded,
    HeldWeights,
    forward_window,
    matrix_product,
    window_task,
)
from dsconv.convert.quantize.calibration.matrix import GroupInputs, MatrixTask, quantize_slice
from dsconv.convert.quantize.calibration.moments import MomentSum, Tile, tile_products
from dsconv.convert.quantize.calibration.weights import (
    OriginalRows,
    OriginalWeights,
    QuantizedWeights,
)
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.plan import plan
from dsconv.convert.quantize.rounding import RoundedRows, round_rows
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.convert.quantize.sensitivity import MatrixUses, scheme_loss, window_sensitivity
from dsconv.convert.quantize.tune import (
    TrainableMatrix,
    example_of,
    gradients_of,
    loss_of,
    weights_of,
)
from dsconv.errors import DsconvError, InputError, VerdictFailed
from dsconv.quant.gptq import factorize

TOKENS = random_tokens(24, 160)
UP = "model.layers.0.mlp.up_proj"
Unit = tuple[Callable[..., Any], tuple[Any, ...]]


class Model:
    """A checkpoint, and what it becomes when it is rounded."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = open_checkpoint(str(tiny_checkpoint(folder / "model", "qwen2")))
        options = QuantizeOptions(embedding_bits=4)
        quantize_checkpoint(self.checkpoint, options, folder / "int4")
        self.written = open_checkpoint(str(folder / "int4"))
        self.jobs = {job.parameter.name: job for job in plan(self.checkpoint, options)[1]}
        self.store = ActivationStore(folder, 0)

    def job(self, module: str) -> Job:
        return self.jobs[f"{module}.weight"]

    def weights(self, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        names = checkpoint.parameters
        return {name: load_parameter(checkpoint, name, torch.float32) for name in names}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"))


def a_window(model: Model, quantized: bool) -> Unit:
    """A matrix on a norm of a sum of what is stored and the embedding."""
    decoder = model.checkpoint.decoder
    norm = Norm("model.layers.0.input_layernorm", decoder.config.hidden_size, 1e-6)
    original = OriginalWeights(model.checkpoint, torch.float32)
    source = QuantizedWeights(original, model.jobs, model.written.source)
    stream = source if quantized else original
    tokens, places = torch.unique(torch.tensor(TOKENS), return_inverse=True)
    embedded = Embedded(stream.rows(decoder.table.name, tokens), [places])
    kept = model.store.new(1)  # in a file
    kept.put(0, embedded.get(0) + 1)
    total = Computed(TorchOps.add, (kept, embedded))
    normed = Computed(partial(TorchOps.rms_norm, norm=norm), (total,))
    up = Linear(UP, *model.job(UP).parameter.shape)
    product = Computed(partial(matrix_product, linear=up), (normed,))
    return forward_window, (window_task(product, 0), HeldWeights(stream))


def a_slice(model: Model) -> Unit:
    job = model.job(UP)
    assert job.scheme is not None
    x = torch.randn(90, job.parameter.shape[1], generator=torch.Generator().manual_seed(0))
    with Workers(1) as workers:
        sums = MomentSum([(0, x.shape[1])], True, workers, centred=True)
        sums.add(x, 1.1 * x)
    statistics = sums.finish()
    inputs = GroupInputs.between(statistics, x.numpy(), 1.1 * x.numpy(), 0.5)
    factor = factorize(statistics.moments, job.scheme)
    task = MatrixTask.of(OriginalRows(model.checkpoint, job), job.scheme, factor, inputs)
    return quantize_slice, ((8, 40), task)


def an_embedding(model: Model) -> Unit:
    job = model.job(model.checkpoint.decoder.table.name)
    assert job.scheme is not None
    rows = OriginalRows(model.checkpoint, job)
    return embedding_slice, ((8, 24), EmbeddingTask(rows, job.scheme, None))


def a_rounded_slice(model: Model) -> Unit:
    job = model.job(UP)
    assert job.scheme is not None
    return round_rows, ((0, 16), RoundedRows(model.checkpoint, job, job.scheme, "search"))


def rows_of_the_heads(model: Model) -> Unit:
    job = model.job(model.checkpoint.decoder.head_linear.name)
    rows = OriginalRows(model.checkpoint, job)
    return head_rows, ((8, 40), HeadPair(rows, model.written.source, torch.bfloat16))


def a_tile(model: Model) -> Unit:
    x = torch.randn(30, 50, generator=torch.Generator().manual_seed(1)).bfloat16()
    return tile_products, (Tile(10, 50, 20, 35), x, 0.5 * x)


def a_sensitivity(model: Model) -> Unit:
    weights = model.weights(model.checkpoint)
    return window_sensitivity, ((3, TOKENS), model.checkpoint.decoder, weights)


def a_loss(model: Model) -> Unit:
    unit, arguments = a_sensitivity(model)
    found = unit(*arguments)
    matrix = MatrixUses(model.checkpoint, f"{UP}.weight", [found[UP]])
    return scheme_loss, (model.job(UP).scheme, matrix)


def an_example(model: Model) -> Unit:
    weights = model.weights(model.checkpoint)
    return example_of, (torch.tensor(TOKENS), model.checkpoint.decoder, weights)


def a_loss_of_tuning(model: Model) -> Unit:
    unit, arguments = an_example(model)
    decoder = model.written.decoder
    return loss_of, (unit(*arguments), decoder, model.weights(model.written))


def trainable(model: Model) -> TrainableMatrix:
    name = f"{UP}.weight"
    rows = model.written.parameters[name].shape[0]
    return TrainableMatrix(model.written.quantized_rows(name, 0, rows))


def gradients(model: Model) -> Unit:
    unit, arguments = an_example(model)
    weights = model.weights(model.written)
    weights[f"{UP}.weight"].requires_grad_()
    matrices = {f"{UP}.weight": trainable(model)}
    return gradients_of, (unit(*arguments), model.written.decoder, weights, matrices)


def trained_weights(model: Model) -> Unit:
    return weights_of, (trainable(model), torch.bfloat16)


UNITS: list[Callable[[Model], Unit]] = [
    lambda model: a_window(model, True),
    lambda model: a_window(model, False),
    a_slice,
    an_embedding,
    a_rounded_slice,
    rows_of_the_heads,
    a_tile,
    a_sensitivity,
    a_loss,
    an_example,
    a_loss_of_tuning,
    gradients,
    trained_weights,
]


def leaves(value: Any) -> list[Any]:
    """Arrays as bytes, and all else as it is."""
    if isinstance(value, torch.Tensor):
        return [value.dtype, value.shape, value.detach().contiguous().view(torch.uint8).tolist()]
    if isinstance(value, np.ndarray):
        return [value.dtype, value.shape, value.tobytes()]
    if is_dataclass(value):
        return [part for entry in fields(value) for part in leaves(getattr(value, entry.name))]
    if isinstance(value, dict):
        return [part for item in value.items() for part in leaves(item)]
    if isinstance(value, list | tuple):
        return [part for item in value for part in leaves(item)]
    return [value]


@pytest.mark.parametrize("make", UNITS, ids=lambda make: make.__name__)
def test_a_unit_that_has_travelled(make: Callable[[Model], Unit], model: Model) -> None:
    unit, arguments = make(model)
    sent = pickle.dumps((unit, arguments))
    wanted = leaves(unit(*arguments))
    other, copies = pickle.loads(sent)
    assert other is unit
    assert leaves(other(*copies)) == wanted
    assert leaves(pickle.loads(pickle.dumps(unit(*arguments)))) == wanted


@pytest.mark.parametrize(
    "error",
    [
        InputError("model.safetensors: cut off", "download it again"),
        VerdictFailed("x" * 5000, "y" * 5000),
        Unreachable("hub: no answer", "try again", is_transient=True, retry_after=3.0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_out_as_it_was(error: DsconvError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert vars(found) == vars(error)
    assert str(found) == str(error)
