"""Tiny checkpoints made with the tools of others, judged by dsconv and run by those tools.

    python benchmarks/foreign_formats.py MODEL FOLDER [gptq awq fp8 bitsandbytes mlx]

MODEL is a small float checkpoint. For every tool that is installed here (gptqmodel, autoawq,
transformers, bitsandbytes, mlx-lm) a quantized copy is written to FOLDER; printed is the mean KL
that `dsconv verify` finds against MODEL, and that of the tool's own runtime on the same tokens.

bitsandbytes' int8 rounds activations as it runs, which dsconv does not: NF4 is compared here.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from dsconv.convert.open import open_checkpoint
from dsconv.runtime.sessions.load import load
from dsconv.runtime.sessions.torch_reference import TorchSession
from dsconv.runtime.verify.checks import WantedChecks
from dsconv.runtime.verify.measure import VerifyOptions, built_in_text, plan_windows
from dsconv.runtime.verify.reference import open_reference
from dsconv.runtime.verify.run import VerifyRequest, run_verify

TOKENS, WINDOW = 1024, 256
SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
GROUP = 64
Logits = Callable[[Sequence[int]], np.ndarray]


def float_model(model: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()


def logits_of(model: Any) -> Logits:
    def run(window: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(torch.tensor([list(window)])).logits[0].float().numpy())

    return run


def make_gptq(model: Path, folder: Path) -> Logits:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    tokens = torch.randint(3, 2000, (16, 64), generator=torch.Generator().manual_seed(0))
    texts = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in tokens]
    made = GPTQModel.load(str(model), QuantizeConfig(bits=4, group_size=GROUP, device="cpu"))
    made.quantize(texts, batch_size=1)
    made.save(str(folder))
    loaded = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16)
    return logits_of(loaded.model)


def make_awq(model: Path, folder: Path) -> Logits:
    from awq.modules.linear.gemm import WQLinear_GEMM

    made = float_model(model, torch.float16)
    for layer in made.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(part, name, _awq_linear(linear, WQLinear_GEMM))
    _save(made, folder, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"})
    return logits_of(made)


def _awq_linear(linear: torch.nn.Linear, kind: Any) -> Any:
    """Rounded to the range of each group, as AutoAWQ rounds what it has scaled."""
    rows, columns = linear.weight.shape
    parts = linear.weight.data.float().reshape(rows, columns // GROUP, GROUP)
    low, high = parts.amin(-1), parts.amax(-1)
    scales = ((high - low).clamp(min=1e-5) / 15).half()
    zeros = (-torch.round(low / scales.float())).clamp(0, 15)
    codes = torch.clamp(torch.round(parts / scales.float()[..., None]) + zeros[..., None], 0, 15)
    rounded = (codes - zeros[..., None]) * scales.float()[..., None]
    linear.weight.data = rounded.reshape(rows, columns).half()
    return kind.from_linear(
        linear, 4, GROUP, scales=scales.t().contiguous(), zeros=zeros.t().contiguous()
    )


def make_fp8(model: Path, folder: Path) -> Logits:
    made = float_model(model)
    tensors, block = {}, 128
    for name, weight in made.state_dict().items():
        if ".layers." not in name or weight.ndim != 2:
            tensors[name] = weight.contiguous()
            continue
        rows, columns = weight.shape
        scales = torch.empty(-(-rows // block), -(-columns // block))
        codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                place = np.s_[i * block : (i + 1) * block, j * block : (j + 1) * block]
                scales[i, j] = weight[place].abs().max() / 448
                codes[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
        tensors[name], tensors[f"{name}_scale_inv"] = codes, scales
    settings = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
    }
    _save(made, folder, settings, tensors)
    config = transformers.FineGrainedFP8Config(dequantize=True)
    return logits_of(
        transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype=torch.float32
        ).eval()
    )


def make_bitsandbytes(model: Path, folder: Path) -> Logits:
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    made = transformers.AutoModelForCausalLM.from_pretrained(
        model, quantization_config=settings, dtype=torch.float32, device_map="cpu"
    )
    made.save_pretrained(folder)
    return logits_of(made)


def make_mlx(model: Path, folder: Path) -> Logits:
    import mlx.core as mx
    from mlx_lm import convert
    from mlx_lm import load as load_mlx

    mx.set_default_device(mx.cpu)
    convert(str(model), str(folder), quantize=True, q_bits=4, q_group_size=GROUP)
    made = load_mlx(str(folder))[0]

    def run(window: Sequence[int]) -> np.ndarray:
        return np.array(made(mx.array([list(window)])).astype(mx.float32))[0]

    return run


MAKERS: dict[str, Callable[[Path, Path], Logits]] = {
    "gptq": make_gptq,
    "awq": make_awq,
    "fp8": make_fp8,
    "bitsandbytes": make_bitsandbytes,
    "mlx": make_mlx,
}


def _save(made: Any, folder: Path, settings: dict[str, Any], tensors: Any = None) -> None:
    folder.mkdir(parents=True)
    state = tensors or {name: t.contiguous() for name, t in made.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = {**made.config.to_dict(), "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config, default=str))


def kl(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean over the positions that have a next token."""
    logs = [x - x.max(-1, keepdims=True) for x in (reference.astype(float), other.astype(float))]
    logs = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logs]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)[:-1].mean())


def main() -> None:
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    options = VerifyOptions(window=WINDOW, max_tokens=TOKENS)
    reference = TorchSession(open_checkpoint(str(model)), "float32")
    for name in sys.argv[3:] or MAKERS:
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        try:
            logits = MAKERS[name](model, place)
        except ImportError as error:
            print(f"{name}: not installed: {error}")
            continue
        for file in SIDE_FILES:
            if (model / file).exists():
                shutil.copy(model / file, place)
        request = VerifyRequest(
            str(place), str(model), options=options, checks=WantedChecks(layers=False)
        )
        mine = run_verify(request).summary.kl_mean
        windows = plan_windows(
            load(str(place)), open_reference(str(model)), built_in_text(), options
        )
        theirs = []
        for window in windows:
            reference.reset()
            theirs.append((kl(reference.extend(list(window)), logits(window)), len(window) - 1))
        total = sum(value * count for value, count in theirs) / sum(count for _, count in theirs)
        share = 100 * (mine / total - 1)
        print(f"{name}: dsconv verify KL {mine:.5f}, its own runtime {total:.5f} ({share:+.2f} %)")


if __name__ == "__main__":
    main()
