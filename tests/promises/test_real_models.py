"""SmolLM2-135M on real execution providers, judged by `dsconv verify --provider`.

A provider's environment has no torch. The reference runs once in this one, which leaves what it
predicts in a folder; the verify in the other finds it there, as it would on a user's machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import dsconv
from places import smollm2_path
from safetensors.numpy import save_file
from small_models import write_json
from wheels import dsconv_in, environment

from dsconv.convert.families import read_family
from dsconv.convert.families.inventory import parameters_of
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.open import open_checkpoint

pytestmark = pytest.mark.provider

LIMITS = {"openvino": 1.2, "qnn": 2.0}  # of the mean KL, over that of the CPU's provider


def write_cut(folder: Path, layers: int) -> Path:
    """The first layers of SmolLM2 with its embedding and last norm, in float16."""
    whole = open_checkpoint(str(smollm2_path()))
    config = {**whole.config, "num_hidden_layers": layers}
    parameters = parameters_of(read_family(ConfigReader(config, "config.json")))
    tensors = {p.name: whole.rows(p.name).astype("float16") for p in parameters}
    folder.mkdir()
    write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for name, content in whole.side_files.items():
        (folder / name).write_bytes(content)
    return folder


def quantized_and_exported(reference: Path, folder: Path, target: str) -> Path:
    """By the commands that a user gives."""
    quantized, output = folder / "q", folder / target
    if not quantized.exists():
        outcome = dsconv("quantize", reference, "--bits", 4, "--method", "rtn", "-o", quantized)
        assert outcome.code == 0, outcome.err
    if not output.exists():
        outcome = dsconv(
            *("export", quantized, "--target", target, "-o", output),
            *(("--context-length", 128) if target == "qnn" else ()),
        )
        assert outcome.code == 0, outcome.err
    return output


def compare(reference: Path, folder: Path, name: str, tokens: int, window: int) -> dict[str, Any]:
    """Verify on the CPU here and on the provider there -> the latter's figures, checked."""
    environment(name)
    options = ("--reference", reference, "--reference-cache", folder / "cache", "--json")
    options += ("--max-tokens", tokens, "--window", window, "--max-kl", 10, "--no-layers")
    on_cpu = dsconv("verify", quantized_and_exported(reference, folder, "cpu"), *options)
    assert on_cpu.code == 0, on_cpu.err
    artifact = quantized_and_exported(reference, folder, name)
    there = dsconv_in(name, "verify", artifact, *options, "--provider", name)
    assert there.code == 0, there.err
    found = there.json
    print(f"{name}: KL {found['kl']['mean']:.4f}, on the CPU {on_cpu.json['kl']['mean']:.4f}")
    assert found["provider"] == name
    assert found["nodes_on_provider"] == 1.0
    assert found["tokens"] == on_cpu.json["tokens"]
    assert found["kl"]["mean"] <= LIMITS[name] * on_cpu.json["kl"]["mean"]
    return found


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cut(tmp_path_factory.mktemp("cut") / "m", 2)


@pytest.mark.parametrize("name", LIMITS)
def test_two_layers_of_a_real_model(name: str, cut: Path) -> None:
    compare(cut, cut.parent, name, 128, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tokens", "window"), [("openvino", 2048, 512), ("qnn", 128, 64)])
def test_a_real_model(name: str, tokens: int, window: int, tmp_path: Path) -> None:
    """A minute on QNN's emulator: three tokens per second, and two graphs to compile."""
    compare(smollm2_path(), tmp_path, name, tokens, window)
