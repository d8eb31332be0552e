"""Calibrated quantization of whole checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from logits import largest_difference, mean_divergence, random_tokens
from numpy.typing import NDArray
from outputs import folder_hash
from places import ROOT, SHARED_DATA, needs_shared_data
from processes import killed_runs
from processes.killed_runs import RUNS, WINDOWS, run
from reference_models import tiny_checkpoint, tiny_model
from safetensors.torch import load_file, save_file

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families.base import Linear, Table
from dsconv.convert.forward.activation_store import ActivationStore
from dsconv.convert.forward.torch_ops import KeyValueCache, TorchModel, TorchOps, load_parameter
from dsconv.convert.forward.workers import single_threaded_libraries
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.calibration import calibrate as calibrated_module
from dsconv.convert.quantize.calibration import memory_budget as calibration_budget
from dsconv.convert.quantize.calibration.moments import InputStatistics, diagonal_blocks
from dsconv.convert.quantize.inputs import GivenWindows
from dsconv.convert.quantize.journal import Journal
from dsconv.convert.quantize.matrix_report import MatrixReport
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.errors import InputError, OutputError
from dsconv.quant.gptq import factorize, gptq
from dsconv.quant.integer import IntegerScheme
from dsconv.quant.scale_min import ScaleMin
from dsconv.quant.schemes import Scheme
from dsconv.runtime.calibration.text_windows import (
    CalibrationOptions,
    CalibrationSource,
    calibration_windows,
)

Weights = dict[str, torch.Tensor]


def calibrated(source: Path, output: Path, **options: Any) -> Path:
    checkpoint = open_checkpoint(str(source))
    chosen = QuantizeOptions(method="gptq", **options)
    quantize_checkpoint(checkpoint, chosen, output, preparation=GivenWindows(WINDOWS))
    return output


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_the_same_weights(family: str, tied: bool, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", family, tie_word_embeddings=tied)
    output = calibrated(source, tmp_path / "int4")
    tokens = random_tokens(32, 160)
    ours = TorchModel.load(open_checkpoint(str(output))).forward(tokens)
    model = transformers.AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0]
    assert largest_difference(ours, theirs) <= 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"symmetric": False},
        {"scheme_name": "scale-min", "bits": 3},
        {"scheme_name": "scale-min", "bits": 6, "head_bits": 8, "embedding_bits": 4},
        {"bits": 8},
        {"group_size": -1},
        {"head_bits": 8},
        {"head_bits": 16},
        {"embedding_bits": 8},
    ],
    ids=str,
)
def test_every_scheme_can_be_calibrated(options: dict[str, Any], tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "qwen2")
    output = calibrated(source, tmp_path / "out", **options)
    tokens = random_tokens(32, 160)
    logits = TorchModel.load(open_checkpoint(str(output))).forward(tokens)
    assert torch.isfinite(logits).all()


def test_a_bias_takes_back_what_is_lost_on_average(tmp_path: Path) -> None:
    """On the first layer, whose inputs the reference knows exactly."""
    source = tiny_checkpoint(tmp_path / "model", "qwen2")
    output = calibrated(source, tmp_path / "out", bits=4, group_size=-1)
    before = load_file(source / "model.safetensors")
    after = open_checkpoint(str(output))
    norm = before["model.layers.0.input_layernorm.weight"].double()
    table = before["model.embed_tokens.weight"].double()
    rows = table[torch.tensor([token for window in WINDOWS for token in window])]
    epsilon = after.decoder.config.rms_norm_eps
    inputs = rows / (rows.square().mean(-1, keepdim=True) + epsilon).sqrt() * norm
    for name in ("q_proj", "k_proj", "v_proj"):
        module = f"model.layers.0.self_attn.{name}"
        lost = before[f"{module}.weight"].double() - torch.from_numpy(
            after.rows(f"{module}.weight", 0, len(before[f"{module}.weight"])).astype(np.float64)
        )
        moved = after.rows(f"{module}.bias", 0, len(lost)) - before[f"{module}.bias"].numpy()
        wanted = (lost @ inputs.mean(0)).numpy()
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(moved, wanted, atol=0.05 * np.abs(wanted).max())
    assert after.source.dtype("model.layers.0.self_attn.k_proj.bias") == "F32"


@needs_shared_data
def test_calibration_pays_on_a_real_model(tmp_path: Path) -> None:
    source = SHARED_DATA / "models" / "tinystories-656k"
    text = SHARED_DATA / "text" / "tinystories" / "train_sample_a.txt"
    checkpoint = open_checkpoint(str(source))
    windows = calibration_windows(
        checkpoint, CalibrationOptions((CalibrationSource(text),), 16384, 256)
    )
    tokens = calibration_windows(
        checkpoint, CalibrationOptions((CalibrationSource(text),), 200_000, 255)
    )[-8:]
    reference = TorchModel.load(checkpoint)
    divergences = {}
    for method in ("search", "gptq"):
        output = tmp_path / method
        options = QuantizeOptions(method=method, group_size=128)
        quantize_checkpoint(
            checkpoint,
            options,
            output,
            preparation=GivenWindows(windows if method == "gptq" else ()),
        )
        model = TorchModel.load(open_checkpoint(str(output)))
        divergences[method] = np.mean(
            [
                mean_divergence(reference.forward(part).numpy(), model.forward(part).numpy())
                for part in tokens
            ]
        )
    assert divergences["gptq"] < 0.7 * divergences["search"]


class Recorder(TorchOps):
    """A plain forward that notes the inputs of every group of matrices."""

    def __init__(self, weights: Weights, tokens: Sequence[int]) -> None:
        super().__init__(weights.__getitem__, torch.tensor(list(tokens)), KeyValueCache())
        self.seen: dict[tuple[str, ...], torch.Tensor] = {}

    def linears(self, x: torch.Tensor, group: Sequence[Linear]) -> list[torch.Tensor]:
        self.seen[tuple(linear.name for linear in group)] = x[0]
        return super().linears(x, group)

    def head(self, x: torch.Tensor, linear: Linear, tied_to: Table | None) -> torch.Tensor:
        self.seen[(linear.name,)] = x[0]
        return x


def group_inputs(
    checkpoint: Checkpoint, weights: Weights
) -> dict[tuple[str, ...], NDArray[np.float64]]:
    """Names of a group's matrices -> their inputs [positions, columns], in network order."""
    recorders = [Recorder(weights, window) for window in WINDOWS]
    for recorder in recorders:
        checkpoint.decoder.forward(recorder)
    return {
        group: torch.cat([recorder.seen[group] for recorder in recorders]).double().numpy()
        for group in recorders[0].seen
    }


@torch.inference_mode()
def textbook(checkpoint: Checkpoint, found: Checkpoint, scheme: Scheme, strength: float) -> Weights:
    """Group after group: the whole model is run again, moments and corrections are explicit.

    Groups before are taken from `found`: a single code that tips over would move all that follows.
    """
    original = {
        name: load_parameter(checkpoint, name, torch.float32) for name in checkpoint.parameters
    }
    weights, expected = dict(original), {}
    originals = group_inputs(checkpoint, original)
    for group, wanted in originals.items():
        given = group_inputs(checkpoint, weights)[group]
        count, columns = given.shape
        factor = factorize([(given.T @ given / count).astype(np.float32)], scheme)
        damped = given.T @ given / count
        damped += factor.damping * np.diagonal(damped).mean() * np.eye(columns)
        move = (wanted - given).T @ given / count @ np.linalg.inv(damped)
        for module in group:
            name = f"{module}.weight"
            matrix = original[name].double().numpy()
            target = (matrix + strength * matrix @ move).astype(np.float32)
            expected[name] = torch.from_numpy(gptq(target, factor, scheme).dequantize())
            weights[name] = load_parameter(found, name, torch.float32)
    return expected


@pytest.mark.parametrize(
    ("family", "scheme", "strength"),
    [
        ("llama", IntegerScheme(4, 32), 0.5),
        ("qwen3", ScaleMin(4), 1.0),
        ("llama", ScaleMin(4), 0.0),
        ("qwen3", IntegerScheme(4, 32), 0.0),
    ],
    ids=str,
)
def test_the_stream_equals_running_the_model_again_for_every_group(
    family: str,
    scheme: Scheme,
    strength: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibrated_module, "forward_dtype", lambda: torch.float32)
    source = tiny_checkpoint(tmp_path / "model", family)
    name = "scale-min" if isinstance(scheme, ScaleMin) else "integer"
    output = calibrated(source, tmp_path / "out", prefix_correction=strength, scheme_name=name)
    found = open_checkpoint(str(output))
    with single_threaded_libraries():  # the models are tiny
        wanted = textbook(open_checkpoint(str(source)), found, scheme, strength)
    assert len(wanted) == 15
    for name, matrix in wanted.items():
        # Sums in another order tip a code here and there.
        differing = np.abs(found.rows(name) - matrix.numpy()) > 1e-5
        assert differing.mean() < 0.03, name


def test_correction_of_the_prefix_brings_the_outputs_closer(tmp_path: Path) -> None:
    """Across layers, where without it every layer adds its error to the one before."""
    source = tiny_checkpoint(tmp_path / "model", "llama", num_hidden_layers=4)
    losses = []
    for strength in (0.0, 0.5):
        output = calibrated(source, tmp_path / str(strength), prefix_correction=strength)
        models = [TorchModel.load(open_checkpoint(str(path))) for path in (source, output)]
        with single_threaded_libraries():
            outputs = [torch.cat([model.forward(w) for w in WINDOWS]) for model in models]
        losses.append(float((outputs[0] - outputs[1]).square().mean()))
    assert losses[1] < 0.9 * losses[0]


SCHEMES: list[dict[str, Any]] = [
    {"symmetric": False, "embedding_bits": 8},
    {"scheme_name": "scale-min", "bits": 5, "embedding_bits": 6},
    {"prefix_correction": 0.0, "bits": 8},
]


@pytest.mark.parametrize("options", SCHEMES, ids=str)
def test_the_bytes_do_not_depend_on_the_threads(options: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 1280}  # several tiles of moments
    source = tiny_checkpoint(tmp_path / "model", "qwen2", **sizes)
    digests = {
        folder_hash(calibrated(source, tmp_path / str(threads), threads=threads, **options))
        for threads in (1, 2)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("options", SCHEMES, ids=str)
def test_activations_on_disk_give_the_same_bytes(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint(tmp_path / "model", "qwen2")
    stores: list[ActivationStore] = []

    class Remembered(ActivationStore):
        def __init__(self, folder: Path, max_bytes: int) -> None:
            super().__init__(folder, max_bytes)
            stores.append(self)

    monkeypatch.setattr(calibrated_module, "ActivationStore", Remembered)
    wanted = folder_hash(calibrated(source, tmp_path / "memory", **options))
    for share in (1e-9, 1e-5):  # nothing, or a few windows, in memory
        monkeypatch.setattr(calibration_budget, "ACTIVATION_SHARE", share)
        assert folder_hash(calibrated(source, tmp_path / str(share), **options)) == wanted
    assert stores[0].spilled_bytes == 0
    assert stores[1].spilled_bytes > stores[2].spilled_bytes > 0


@pytest.mark.parametrize("scheme_name", ["integer", "scale-min"])
def test_too_little_memory_ignores_correlations_between_blocks(
    scheme_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama")
    whole = calibrated(source, tmp_path / "whole", scheme_name=scheme_name)
    limits: list[list[tuple[int, int]]] = []

    def narrow(columns: int, group_size: int, max_bytes: int) -> list[tuple[int, int]]:
        limits.append(diagonal_blocks(columns, group_size, 1))
        return limits[-1]

    monkeypatch.setattr(calibrated_module, "diagonal_blocks", narrow)
    split = calibrated(source, tmp_path / "split", scheme_name=scheme_name)
    assert [(0, 32), (32, 64)] in limits
    assert folder_hash(whole) != folder_hash(split)
    logits = TorchModel.load(open_checkpoint(str(split))).forward(WINDOWS[0])
    assert torch.isfinite(logits).all()


def test_a_matrix_may_be_left_out_of_its_group(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama", tie_word_embeddings=True)
    output = calibrated(source, tmp_path / "out", head_bits=16, embedding_bits=16)
    checkpoint = open_checkpoint(str(output))
    assert checkpoint.scheme("model.embed_tokens.weight") is None
    manifest = json.loads((output / "dsconv.json").read_text())
    assert len(manifest["facts"]["matrices"]) == 14


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_activations_that_overflow_are_named(strength: float, tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight.fill_(3e38)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"inputs of model\.layers\.1\.mlp\.gate_proj are not"):
        calibrated(tmp_path / "model", tmp_path / "out", prefix_correction=strength)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_original_activations_that_overflow_are_named() -> None:
    difference = np.zeros((8, 8), np.float32)
    difference[3] = np.inf
    zeros = np.zeros(8, np.float32)
    statistics = InputStatistics([np.eye(8, dtype=np.float32)], [difference], zeros, zeros)
    with pytest.raises(InputError, match="inputs of lm_head are not finite"):
        calibrated_module._require_finite(statistics, "lm_head")


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, :2] = torch.nan
    model.save_pretrained(tmp_path / "model")
    name = r"model\.layers\.1\.mlp\.down_proj\.weight"
    with pytest.raises(InputError, match=rf"'{name}': 2 of 6144 values are NaN"):
        calibrated(tmp_path / "model", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ---------------------------------------------------------------- a crash, and the same again


def kill(source: Path, kind: str, points: list[tuple[str, int]]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "processes.killed_runs", source, json.dumps(points), kind],
        cwd=ROOT / "tests" / "support",
        timeout=120,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr


def partial(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def journaled(output: Path) -> list[str]:
    lines = (partial(output) / "journal.jsonl").read_text().splitlines()[1:]
    return [module for line in lines for module in json.loads(line)["modules"]]


@pytest.mark.parametrize("kind", RUNS)
def test_a_killed_run_goes_on_to_the_same_bytes(kind: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "qwen2")
    whole = run(source, tmp_path / "whole", kind)
    wanted = folder_hash(tmp_path / "whole")
    is_calibrated = kind != "not calibrated"
    commits = 4 if is_calibrated else 16  # per residual addition, or per matrix
    points = [("commit", count) for count in range(1, commits + 1)]
    points += [("write", count) for count in (1, 6, 12, 15)]
    kill(source, kind, points)
    for point, count in points:
        output = tmp_path / f"{point}{count}"
        assert not output.exists()
        done = journaled(output)
        if point == "commit":
            assert done
        told = run(source, output, kind)
        assert told.weights == open_checkpoint(str(source)).parameter_count
        assert not set(told.matrices) & set(done)
        assert told.matrices == [name for name in whole.matrices if name not in done]
        assert folder_hash(output) == wanted
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_may_be_killed_again_and_again(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama")
    run(source, tmp_path / "whole", "asymmetric")
    kill(source, "asymmetric", [("commit", 1)] * 4)  # each goes on where the one before was killed
    lines = (tmp_path / "commit1.partial" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["addition"] for line in lines[1:]] == [1, 2, 3, 4]
    run(source, tmp_path / "commit1", "asymmetric")
    assert folder_hash(tmp_path / "commit1") == folder_hash(tmp_path / "whole")


def interrupt(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch, commits: int = 2
) -> list[str]:
    """Stop a run as Ctrl-C does, after some commits -> the matrices in its journal."""
    append = Journal.append
    left = commits

    def counted(journal: Journal, record: Any, files: Any) -> None:
        nonlocal left
        append(journal, record, files)
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "due", lambda journal: True)
        patch.setattr(Journal, "append", counted)
        with pytest.raises(KeyboardInterrupt):
            run(source, output, "asymmetric")
    return journaled(output)


def test_control_c_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama")
    run(source, tmp_path / "whole", "asymmetric")
    done = interrupt(source, tmp_path / "out", monkeypatch)
    assert len(done) == 8
    told = run(source, tmp_path / "out", "asymmetric")
    assert len(told.matrices) == 15 - 7  # the embedding is not reported
    assert folder_hash(tmp_path / "out") == folder_hash(tmp_path / "whole")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}
    assert not any(name.startswith(("journal", "residual", "activations")) for name in names)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"bits": 8}, r"options bits 4 \(now 8\)"), ({"damping": 0.02}, r"damping 0.01 \(now 0.02")],
)
def test_another_command_does_not_go_on(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama")
    output = tmp_path / "out"
    interrupt(source, output, monkeypatch)
    before = folder_hash(partial(output))
    with pytest.raises(OutputError, match=words):
        run(source, output, "asymmetric", **changes)
    assert folder_hash(partial(output)) == before
    told = run(source, output, "asymmetric", overwrite=True, **changes)
    assert len(told.matrices) == 15
    run(source, tmp_path / "whole", "asymmetric", **changes)
    assert folder_hash(output) == folder_hash(tmp_path / "whole")


def test_other_text_or_other_weights_do_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama")
    output = tmp_path / "out"
    interrupt(source, output, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(killed_runs, "WINDOWS", [*WINDOWS[:3], [5, 6, 7], *WINDOWS[4:]])
        with pytest.raises(OutputError, match="calibration"):
            run(source, output, "asymmetric")
    tiny_checkpoint(source, "llama", seed=1)
    with pytest.raises(OutputError, match=r"inputs model\.safetensors"):
        run(source, output, "asymmetric")


def test_threads_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama")
    run(source, tmp_path / "whole", "asymmetric")
    interrupt(source, tmp_path / "out", monkeypatch)
    run(source, tmp_path / "out", "asymmetric", threads=1)
    assert folder_hash(tmp_path / "out") == folder_hash(tmp_path / "whole")


def test_overwrite_goes_on_with_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old output stays until the new one is complete."""
    source = tiny_checkpoint(tmp_path / "model", "llama")
    output = tmp_path / "out"
    done = interrupt(source, output, monkeypatch)
    run(source, tmp_path / "whole", "asymmetric")
    output.mkdir()
    (output / "dsconv.json").write_text("{}")
    told = run(source, output, "asymmetric", overwrite=True)
    assert not set(told.matrices) & set(done)
    assert folder_hash(output) == folder_hash(tmp_path / "whole")


@pytest.mark.parametrize(
    ("sqnr", "rounded", "flat_rows", "doubtful"),
    [
        (20, 18, 0, False),
        (5, 4, 0, True),
        (20, 18, 1, True),
        (18, 20, 0, True),
        (19.5, 20, 0, False),
    ],
)
def test_what_a_guard_marks(sqnr: float, rounded: float, flat_rows: int, doubtful: bool) -> None:
    entry = MatrixReport("m", sqnr, rounded, 0.01, 1.0, flat_rows)
    assert entry.doubtful is doubtful
    assert "seconds" not in entry.facts()


def test_the_error_is_that_of_the_outputs_aimed_at(tmp_path: Path) -> None:
    """Weights that make up for the layers before are nearer to the original's outputs than rounded
    ones, though not always to what the original weights would give for the same inputs."""
    source = tiny_checkpoint(tmp_path / "model", "llama")
    options = QuantizeOptions(method="gptq", bits=4, group_size=32, prefix_correction=1.0)
    quantize_checkpoint(
        open_checkpoint(str(source)), options, tmp_path / "out", preparation=GivenWindows(WINDOWS)
    )
    facts = json.loads((tmp_path / "out/dsconv.json").read_text())["facts"]["matrices"]
    gains = [fact["sqnr"] - fact["sqnr_rounded"] for fact in facts.values()]
    assert min(gains) > 0


def test_a_row_whose_codes_are_all_alike_is_marked(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama")
    path = source / "model.safetensors"
    tensors = load_file(path)
    module = "model.layers.0.mlp.up_proj"
    weights = tensors[f"{module}.weight"].float()
    weights[3] = 0.25
    weights[3, 5] = 0.251953125  # the next bfloat16
    tensors[f"{module}.weight"] = weights.to(tensors[f"{module}.weight"].dtype)
    save_file(tensors, path, {"format": "pt"})
    options = QuantizeOptions(method="gptq", group_size=-1, prefix_correction=0.0, threads=1)
    result = quantize_checkpoint(
        open_checkpoint(str(source)), options, tmp_path / "out", preparation=GivenWindows(WINDOWS)
    )
    facts = json.loads((tmp_path / "out/dsconv.json").read_text())["facts"]["matrices"]
    assert facts[module]["flat_rows"] == 1
    assert module in result.doubtful
