"""Calibrated quantization of whole checkpoints, and the text it is calibrated on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from command_line import assert_refused, call_main, dsconv
from helpers import (
    SHARED_DATA,
    folder_hash,
    largest_difference,
    mean_divergence,
    needs_shared_data,
    random_tokens,
    tiny_checkpoint,
)

from dsconv.convert.calibrating_ops import second_moment
from dsconv.convert.checkpoint import open_checkpoint
from dsconv.convert.parallel import Workers
from dsconv.convert.quantization_plan import QuantizeOptions
from dsconv.convert.quantized import quantize_checkpoint
from dsconv.convert.torch_ops import TorchModel
from dsconv.errors import InputError
from dsconv.runtime.calibration import CalibrationOptions, calibration_windows

WINDOWS = [random_tokens(48, 160, seed) for seed in range(24)]


def calibrated(source: Path, output: Path, **options: Any) -> Path:
    checkpoint = open_checkpoint(str(source))
    chosen = QuantizeOptions(method="gptq", **options)
    quantize_checkpoint(checkpoint, chosen, output, windows=WINDOWS)
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


@needs_shared_data
def test_calibration_pays_on_a_real_model(tmp_path: Path) -> None:
    source = SHARED_DATA / "models" / "tinystories-656k"
    text = SHARED_DATA / "text" / "tinystories" / "train_sample_a.txt"
    checkpoint = open_checkpoint(str(source))
    windows = calibration_windows(checkpoint, CalibrationOptions((text,), 16384, 256))
    tokens = calibration_windows(checkpoint, CalibrationOptions((text,), 200_000, 255))[-8:]
    reference = TorchModel.load(checkpoint)
    divergences = {}
    for method in ("search", "gptq"):
        output = tmp_path / method
        options = QuantizeOptions(method=method, group_size=128)
        quantize_checkpoint(
            checkpoint, options, output, windows=windows if method == "gptq" else ()
        )
        model = TorchModel.load(open_checkpoint(str(output)))
        divergences[method] = np.mean(
            [
                mean_divergence(reference.forward(part).numpy(), model.forward(part).numpy())
                for part in tokens
            ]
        )
    assert divergences["gptq"] < 0.7 * divergences["search"]


def test_second_moment_is_the_mean_outer_product() -> None:
    parts = [torch.randn(1, length, 12) for length in (5, 9, 1, 7, 7, 7, 7, 7, 7, 3)]
    rows = torch.cat([part[0] for part in parts]).double().numpy()
    with Workers(2) as workers:
        found = second_moment(parts, "layer", workers)
    np.testing.assert_allclose(found, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_infinite_activations_are_named() -> None:
    inputs = [torch.full((1, 4, 8), torch.inf)]
    with Workers(1) as workers, pytest.raises(InputError, match=r"layers\.3\.mlp\.down_proj"):
        second_moment(inputs, "model.layers.3.mlp.down_proj", workers)


def test_the_bytes_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "qwen2", hidden_size=128, intermediate_size=2560)
    digests = {
        folder_hash(calibrated(source, tmp_path / str(threads), threads=threads))
        for threads in (1, 2, 3)
    }
    assert len(digests) == 1


def write_documents(folder: Path) -> dict[str, Path]:
    words = " ".join(f"w{index}" for index in range(400))
    lines = {
        "text": {"text": words},
        "messages": {"messages": [{"role": "user", "content": words}]},
        "question": {"question": words, "answer": words},
    }
    files = {name: folder / f"{name}.jsonl" for name in lines}
    for name, entry in lines.items():
        files[name].write_text(json.dumps(entry) + "\n\n", encoding="utf-8")
    files["plain"] = folder / "plain.txt"
    files["plain"].write_text(words, encoding="utf-8")
    return files


@pytest.mark.parametrize("kind", ["text", "messages", "question", "plain"])
def test_files_become_windows(kind: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "model", "llama")))
    path = write_documents(tmp_path)[kind]
    windows = calibration_windows(checkpoint, CalibrationOptions((path,), 96, 32))
    assert [len(window) for window in windows] == [32, 32, 32]
    assert all(0 <= token < 160 for window in windows for token in window)


def test_files_share_the_budget_and_windows_spread_over_them(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "model", "llama")))
    files = write_documents(tmp_path)
    one = calibration_windows(checkpoint, CalibrationOptions((files["plain"],), 10**6, 16))
    both = calibration_windows(
        checkpoint, CalibrationOptions((files["plain"], files["text"]), 8 * 16, 16)
    )
    assert len(both) == 8
    assert both[0] == one[0]
    assert both[1] == one[len(one) // 4]


@pytest.mark.parametrize("line", ['{"other": 1}', "[1]", '{"messages": []}', "not json"])
def test_lines_without_text_are_refused_by_number(line: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "model", "llama")))
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2"):
        calibration_windows(checkpoint, CalibrationOptions((path,)))


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "model", "llama")))
    path = tmp_path / "short.txt"
    path.write_text("one two", encoding="utf-8")
    with pytest.raises(InputError, match="at least 512"):
        calibration_windows(checkpoint, CalibrationOptions((path,)))


def test_the_command_calibrates(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "qwen2", max_position_embeddings=64)
    path = write_documents(tmp_path)["plain"]
    output = tmp_path / "int4"
    outcome = dsconv(
        *("quantize", source, "--method", "gptq", "--calibration", path),
        *("--calibration-tokens", "256", "-o", output, "--json"),
    )
    assert outcome.code == 0, outcome.stderr
    manifest = json.loads((output / "dsconv.json").read_text(encoding="utf-8"))
    assert manifest["recipe"]["method"] == "gptq"
    assert manifest["facts"]["calibration_tokens"] == 256


@pytest.mark.parametrize(
    "arguments", [("--method", "gptq"), ("--method", "search", "--calibration", "x.txt")]
)
def test_method_and_text_belong_together(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcome = call_main(
        monkeypatch, capsys, "quantize", tmp_path, *arguments, "-o", tmp_path / "out"
    )
    assert_refused(outcome, 2, "calibration files")
