"""Logits of foreign checkpoints: our reading against transformers on what the codes stand for.

The weights come from the textbook packer, so neither our readers nor our network take part in the
expected values. Makers' own runtimes compute in half precision, which is coarser than this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_models import Awq, BnbFourBits, BnbInt8, Fp8, Gptq, Mlx, write_foreign
from safetensors.torch import load_file
from small_models import small_config

from dsconv.convert.open import open_checkpoint
from dsconv.runtime.sessions.torch_reference import TorchSession

MLX = ({"group_size": 32, "bits": 4}, "quantization", ())
SETTINGS = "quantization_config"
CASES: dict[str, tuple[Any, Any, str, tuple[str, ...]]] = {
    name: (packer, packer.config(), SETTINGS, ("lm_head", "embed_tokens"))
    for name, packer in {
        "gptq": Gptq(),
        "gptq-asymmetric": Gptq(symmetric=False),
        "gptq-act-order": Gptq(ordered=True),
        "awq": Awq(),
        "nf4": BnbFourBits(),
        "bnb-int8": BnbInt8(),
        "fp8-blocks": Fp8(),
    }.items()
} | {"mlx": (Mlx(), *MLX)}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    packer, settings, key, floats = CASES[name]
    model = write_foreign(tmp_path / "m", packer, settings, key, floats)
    stored = load_file(model.folder / "model.safetensors")
    reference = Qwen2ForCausalLM(Qwen2Config(**small_config(torch_dtype="float32"))).eval()
    state = {}
    for parameter in reference.state_dict():
        if parameter in model.weights:
            state[parameter] = torch.from_numpy(np.asarray(model.weights[parameter], np.float32))
        else:
            state[parameter] = stored[parameter].float()
    reference.load_state_dict(state)
    tokens = list(np.random.default_rng(3).integers(0, 250, 24))
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    found = TorchSession(open_checkpoint(str(model.folder))).score([int(t) for t in tokens])
    assert np.abs(expected).max() > 0.01
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
