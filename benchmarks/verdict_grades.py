"""The evidence for the grades of docs/verify.md: honest conversions and broken ones.

    python benchmarks/verdict_grades.py MODEL_FOLDER SCRATCH_FOLDER [WORD ...]

MODEL_FOLDER is unquantized. Every row is a checkpoint that the torch reference runs, so no
runtime's rounding counts: mean KL, top-1 agreement and perplexity ratio from the original on the
built-in text, and the grade. WORDs choose the rows that have one in their name.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import dsconv
from dsconv.runtime.verify.checks import WantedChecks
from dsconv.runtime.verify.measure import VerifyOptions
from dsconv.runtime.verify.run import VerifyRequest, run_verify

TOKENS, CALIBRATION_TOKENS = 4096, 8192
Weights = dict[str, NDArray[np.float32]]
HONEST: tuple[tuple[str, dict[str, object]], ...] = (
    ("int8, search", {"bits": 8, "method": "search"}),
    ("int8 weights and inputs", {"bits": 8, "activations": "int8"}),
    ("int4 asymmetric, calibrated", {"bits": 4, "symmetric": False, "embedding_bits": 8}),
    ("int4, calibrated", {"bits": 4, "embedding_bits": 8}),
    ("int4, search", {"bits": 4, "embedding_bits": 8, "method": "search"}),
    ("int4, to nearest", {"bits": 4, "embedding_bits": 8, "method": "rtn"}),
    ("int4 all, to nearest, groups of 128", {"bits": 4, "group_size": 128, "embedding_bits": 4,
                                             "method": "rtn"}),
    ("4 bits scale-min, calibrated", {"bits": 4, "scheme": "scale-min"}),
    ("3 bits scale-min, calibrated", {"bits": 3, "scheme": "scale-min"}),
    ("3 bits scale-min, search", {"bits": 3, "scheme": "scale-min", "embedding_bits": 4,
                                  "method": "search"}),
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    config: dict[str, object]
    weights: Weights


def _theta(factor: float) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        theta = float(str(model.config.get("rope_theta", 10000.0)))
        model.config["rope_theta"] = theta * factor

    return change


def _swap_layers(model: Model) -> None:
    count = int(str(model.config["num_hidden_layers"]))
    a, b = f"model.layers.{count // 2 - 1}.", f"model.layers.{count // 2}."
    for name in [name for name in model.weights if name.startswith(a)]:
        other = b + name.removeprefix(a)
        model.weights[name], model.weights[other] = model.weights[other], model.weights[name]


def _scale(factor: float) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        count = int(str(model.config["num_hidden_layers"]))
        model.weights[f"model.layers.{count // 2}.mlp.down_proj.weight"] *= np.float32(factor)

    return change


def _scale_all(model: Model) -> None:
    for name in model.weights:
        if name.endswith("down_proj.weight"):
            model.weights[name] *= np.float32(1.25)


def _lose_norm(model: Model) -> None:
    name = f"model.layers.{int(str(model.config['num_hidden_layers'])) // 2}.input_layernorm.weight"
    model.weights[name] = np.ones_like(model.weights[name])


def _lose_norms(model: Model) -> None:
    for name in model.weights:
        if name.endswith("input_layernorm.weight"):
            model.weights[name] = np.ones_like(model.weights[name])


def _transpose_heads(model: Model) -> None:
    """Rotary pairs stored interleaved where halves are meant, as an import might forget."""
    heads = int(str(model.config["num_attention_heads"]))
    for name, weight in model.weights.items():
        if name.endswith("q_proj.weight"):
            parts = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2)
            model.weights[name] = np.ascontiguousarray(parts.reshape(weight.shape))


BROKEN: tuple[tuple[str, Callable[[Model], None]], ...] = (
    ("broken: one matrix scaled by 1.25", _scale(1.25)),
    ("broken: one matrix scaled by 2", _scale(2.0)),
    ("broken: every down_proj scaled by 1.25", _scale_all),
    ("broken: two layers swapped", _swap_layers),
    ("broken: rope_theta divided by 10", _theta(0.1)),
    ("broken: rope_theta times 10", _theta(10.0)),
    ("broken: one norm without its weight", _lose_norm),
    ("broken: all input norms without theirs", _lose_norms),
    ("broken: queries with the other order of rotary pairs", _transpose_heads),
)


def variants(source: Path, scratch: Path) -> Iterator[tuple[str, Callable[[], Path]]]:
    """Name of a row, and what makes its checkpoint."""
    for name, options in HONEST:
        yield name, lambda options=options: _quantized(source, scratch, options)  # type: ignore[misc]
    for name, change in BROKEN:
        yield name, lambda change=change: _damaged(source, scratch, change)  # type: ignore[misc]


def _quantized(source: Path, scratch: Path, options: dict[str, object]) -> Path:
    settings = {"calibration_tokens": CALIBRATION_TOKENS, **options}
    dsconv.quantize(source, scratch / "variant", overwrite=True, **settings)
    return scratch / "variant"


def _damaged(source: Path, scratch: Path, change: Callable[[Model], None]) -> Path:
    folder = scratch / "variant"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    found: Weights = {}
    for path in sorted(source.glob("*.safetensors")):
        found |= {name: np.asarray(w, np.float32) for name, w in load_file(path).items()}
    config = json.loads((source / "config.json").read_text())
    config.update(config.pop("rope_parameters", None) or {})
    model = Model(config, found)
    change(model)
    (folder / "config.json").write_text(json.dumps(model.config))
    save_file(model.weights, folder / "model.safetensors")
    return folder


def main(source: Path, scratch: Path, words: list[str]) -> None:
    scratch.mkdir(exist_ok=True)
    print("| what | bits | mean KL | top-1 | perplexity × | grade |\n|---|---|---|---|---|---|")
    for name, make in variants(source, scratch):
        if words and not any(word in name for word in words):
            continue
        artifact = make()
        request = VerifyRequest(
            str(artifact),
            str(source),
            options=VerifyOptions(512, TOKENS),
            cache=scratch / "reference",
            checks=WantedChecks(layers=False),
        )
        verdict = run_verify(request)
        s, bits = verdict.summary, verdict.circumstances.bits
        print(
            f"| {name} | {bits:.1f} | {s.kl_mean:.4f} ± {s.kl_stderr:.4f} | {s.top1_agreement:.3f} "
            f"| {s.perplexity_ratio:.3f} | {verdict.grade} |",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
