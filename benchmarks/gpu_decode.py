"""Decode speed of torch sessions and of ONNX Runtime on a GPU, against its memory bandwidth.

    python benchmarks/gpu_decode.py [--device cuda] [--shape 7b|tiny] [--scratch FOLDER]

The shape is that of DeepSeek-R1-Distill-Qwen-7B; weights are random, 4 bits in groups of 128, the
embedding in bfloat16. A step must read every weight once, but for the embedding's table, and the
keys and values of the context; that over its time is the bandwidth it reached, and what is compared
with the bandwidth that the device reads its own memory at. The ONNX graph (`--target cuda`) runs on
the provider of the same device and must predict what the torch session does; both see the same
tokens. `--shape tiny --device cpu` tries the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint
from dsconv.convert.checkpoint.jobs import tensors_of
from dsconv.convert.families import read_family
from dsconv.convert.families.inventory import Role
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.files.safetensors import DTYPES, PlannedTensor, SafetensorsWriter
from dsconv.convert.formats.onnx.export import export_onnx
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.plan import plan
from dsconv.convert.targets.choice import choose_options
from dsconv.convert.targets.table import TARGETS
from dsconv.runtime.sessions.onnx import OnnxSession
from dsconv.runtime.sessions.session import Session
from dsconv.runtime.sessions.torch_device_session import AcceleratorSession

QWEN_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
TINY = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 512}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
SHAPES = {"7b": QWEN_7B, "tiny": QWEN_7B | TINY}
CHUNK = 1 << 24
COMPARED = 32  # tokens whose logits are compared


class Blank:
    """Stands for the tensors of a model of which only the shape matters."""

    def dtype(self, name: str) -> str:
        return "BF16"


def write_checkpoint(folder: Path, config: dict[str, Any]) -> Path:
    """Random codes; scales that keep activations in range."""
    folder.mkdir(parents=True)
    decoder = read_family(ConfigReader(config, CONFIG))
    shape = Checkpoint(folder, config, decoder, Blank(), {})  # type: ignore[arg-type]
    options = QuantizeOptions(bits=4, group_size=128, method="rtn", embedding_bits=16)
    quantized, jobs = plan(shape, options)
    sizes = {f"{job.module}.weight_shape": job.parameter.shape for job in jobs if job.scheme}
    norms = {j.parameter.name for j in jobs if j.parameter.role is Role.VECTOR}
    random = np.random.default_rng(0)
    tensors = tensors_of(jobs)
    with SafetensorsWriter(folder / "model.safetensors", tensors) as writer:
        for tensor in tensors:
            if tensor.name in sizes:
                writer.write(tensor.name, np.array(sizes[tensor.name], np.int64))
                continue
            count = int(np.prod(tensor.shape))
            for start in range(0, count, CHUNK):
                part = min(CHUNK, count - start)
                writer.write(tensor.name, _values(tensor, part, tensor.name in norms, random))
    (folder / CONFIG).write_text(json.dumps(quantized), encoding="utf-8")
    return folder


def _values(
    tensor: PlannedTensor, count: int, is_norm: bool, random: np.random.Generator
) -> NDArray[Any]:
    if tensor.dtype == "I32":
        return random.integers(0, 1 << 32, count, np.uint32).view(np.int32)
    if tensor.dtype == "F16":
        return random.uniform(0.002, 0.004, count).astype(np.float16)
    if is_norm and tensor.name.endswith("norm.weight"):
        return np.ones(count, DTYPES[tensor.dtype])
    values = np.float32(0.02) * random.standard_normal(count, np.float32)
    return values.astype(DTYPES[tensor.dtype])


def read_bandwidth(device: str, size: int) -> float:
    """Bytes per second of a copy inside the device's memory, read and written; median of ten."""
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    copy = torch.empty_like(source)
    rates = []
    for _ in range(12):
        _wait(device)
        start = time.perf_counter()
        copy.copy_(source)
        _wait(device)
        rates.append(2 * size / (time.perf_counter() - start))
    return statistics.median(rates[2:])


def _wait(device: str) -> None:
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))


def bytes_per_step(checkpoint: Checkpoint, context: int) -> tuple[int, int]:
    """-> weights, keys and values (2 bytes an element) that a step must read."""
    table = f"{checkpoint.decoder.table.name}."
    source, c = checkpoint.source, checkpoint.decoder.config
    names = [name for name in source.names() if not name.startswith(table)]
    positions = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 2
    return sum(source.nbytes(name) for name in names), positions * context


def decode_rate(session: Session, context: int, tokens: int, rounds: int) -> float:
    """Tokens per second behind `context` tokens; median of rounds, after one that is not timed."""
    random = np.random.default_rng(1)
    prompt = [int(token) for token in random.integers(0, session.vocabulary, context)]
    rates = []
    for _ in range(rounds + 1):
        session.reset()
        session.prefill(prompt)
        session.decode(0)  # a graph that is captured first is no step
        start = time.perf_counter()
        for token in range(tokens):
            session.decode(token)
        rates.append(tokens / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def agreement(left: Session, right: Session) -> tuple[float, float]:
    """-> mean KL in nats, share of equal first choices, over the same random tokens."""
    random = np.random.default_rng(2)
    tokens = [int(token) for token in random.integers(0, left.vocabulary, COMPARED)]
    p, q = (
        torch.from_numpy(np.array(session.score(tokens))).double().log_softmax(-1)
        for session in (left, right)
    )
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    return float(divergence), float((p.argmax(-1) == q.argmax(-1)).double().mean())


def versions(device: str) -> str:
    named = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    wheels = []
    for wheel in ("torch", "onnxruntime-gpu", "onnxruntime"):
        try:
            wheels.append(f"{wheel} {importlib.metadata.version(wheel)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{named}; {', '.join(wheels)}; {datetime.date.today()}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="keeps the checkpoint for the next time")
    parser.add_argument("--no-onnx", action="store_true")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = a.scratch or Path(temporary)
        folder = scratch / f"random-{a.shape}"
        checkpoint = open_checkpoint(
            str(folder if folder.exists() else write_checkpoint(folder, SHAPES[a.shape]))
        )
        measure(a, checkpoint, scratch / f"onnx-{a.shape}")


def measure(a: argparse.Namespace, checkpoint: Checkpoint, output: Path) -> None:
    on_cpu = a.device == "cpu"
    bandwidth = read_bandwidth(a.device, (1 << 28) if on_cpu else (1 << 31))
    weights, cache = bytes_per_step(checkpoint, a.context + a.tokens // 2)
    print(f"{versions(a.device)}\nmemory: {bandwidth / 1e9:.0f} GB/s")
    print(f"a step reads {weights / 1e6:.1f} MB of weights, {cache / 1e6:.1f} MB of cache")

    def report(name: str, session: Session) -> None:
        rate = decode_rate(session, a.context, a.tokens, a.rounds)
        share = rate * (weights + cache) / bandwidth
        print(f"{name}: {rate:.1f} tokens/s, {share:.0%} of the bandwidth")

    session = AcceleratorSession(checkpoint, a.device)
    report(f"torch:{a.device}", session)
    if a.no_onnx:
        return
    target = TARGETS["cpu" if on_cpu else "cuda"]
    options = choose_options(target, checkpoint, context_length=2 * (a.context + a.tokens))
    export_onnx(checkpoint, options, output, overwrite=True)
    graph = OnnxSession(output, a.device)
    report(f"onnxruntime {a.device}", graph)
    divergence, same = agreement(session, graph)
    print(f"onnxruntime against torch: KL {divergence:.2g} nats, {same:.0%} equal first choices")


if __name__ == "__main__":
    main()
