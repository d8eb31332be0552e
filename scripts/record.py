"""Record what dsconv prints and writes, and compare: for changes that must change neither.

python scripts/record.py write FILE     run the commands, keep what they did
python scripts/record.py compare FILE   run them again; every difference is named, exit code 1

A fixed list of commands on tiny random models in a scratch folder. Kept are the help of every
command, exit codes, stdout and stderr, and the SHA-256 of every output file; figures of time,
speed and memory are masked. The models are made here, by NumPy alone, so that the list runs on any
state of the code (PYTHONPATH chooses it). Threads are fixed; the processor must be the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from record_steps import Step, stages
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BYTES, BOS, EOS, VOCABULARY = 256, 257, 258, 264
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n"
    "{% endfor %}assistant:"
)
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "torch_dtype": "float16",
}
TEXT = "The quick brown fox jumps over the lazy dog. Nobody knows why, and nobody asks. "
RECIPE = """description = "a recipe of the record"
source = "SOURCE"
[quantize]
bits = 8
embedding_bits = 8
method = "rtn"
[export]
format = "FORMAT"
[verify]
max_kl = 0.5
window = 32
max_tokens = 64
"""
# ---------------------------------------------------------------- sources


def parameters(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a Llama or Qwen2 model."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    narrow = width * config["num_key_value_heads"] // config["num_attention_heads"]
    has_biases = config["model_type"] == "qwen2"
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for name, rows in (("q_proj", width), ("k_proj", narrow), ("v_proj", narrow)):
            yield f"{layer}.self_attn.{name}.weight", (rows, width)
            if has_biases:
                yield f"{layer}.self_attn.{name}.bias", (rows,)
        yield f"{layer}.self_attn.o_proj.weight", (width, width)
        yield f"{layer}.mlp.gate_proj.weight", (inner, width)
        yield f"{layer}.mlp.up_proj.weight", (inner, width)
        yield f"{layer}.mlp.down_proj.weight", (width, inner)
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], width)


def write_model(folder: Path, seed: int, **changes: Any) -> None:
    config = {**CONFIG, **changes}
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in parameters(config):
        values = random.standard_normal(shape, np.float32)
        is_norm = name.endswith("norm.weight")
        tensors[name] = (1 + 0.1 * values if is_norm else 0.15 * values).astype(np.float16)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """A token per byte, one of two letters (llama.cpp needs a merge), `<s>`, `</s>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {mark: i for i, mark in enumerate(alphabet)} | {"th": BYTES}
    tokenizer = Tokenizer(models.BPE(words, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    (folder / "tokenizer.json").write_text(str(tokenizer.to_str()), encoding="utf-8")
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    generation = {"bos_token_id": BOS, "eos_token_id": EOS}
    (folder / "generation_config.json").write_text(json.dumps(generation))


def write_sources(scratch: Path) -> None:
    write_model(scratch / "qwen2", 1)
    write_model(scratch / "tied", 2, tie_word_embeddings=True)
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    odd = {"hidden_size": 100, "intermediate_size": 90, "num_attention_heads": 5}
    write_model(scratch / "llama", 3, **llama, **odd, num_key_value_heads=1, head_dim=20)
    write_model(scratch / "broken", 4)
    damaged = (scratch / "broken" / "model.safetensors").read_bytes()[:-100]
    (scratch / "broken" / "model.safetensors").write_bytes(damaged)
    (scratch / "text.txt").write_text(TEXT * 90)
    (scratch / "questions.jsonl").write_text(
        json.dumps({"question": "1 + 1?", "answer": "#### 2"}) + "\n"
    )
    for format in ("native", "onnx", "gguf"):
        recipe = RECIPE.replace("SOURCE", "qwen2").replace("FORMAT", format)
        (scratch / f"{format}.toml").write_text(recipe)
    wrong = (scratch / "native.toml").read_text().replace("bits = 8\ne", "bitz = 8\ne")
    (scratch / "wrong.toml").write_text(wrong)


# ---------------------------------------------------------------- masks

MEASURED = re.compile(
    "seconds|per_second|rss|bandwidth|foreign|discarded|disturbed|spread|memory|free_disk|rounds"
    "|time_share|machine|speedup|speeds|reasons|fits|when|date|python|provenance"
)
NUMBER = re.compile(r"\d+(\.\d+)?(e-?\d+)?")
# Words around figures of time, speed and memory in lines for people.
TIMED = re.compile(r"second|tokens/s| s\b|\bs:|MB/s|GB/s|memory|GiB|MiB|free|load|ETA|minutes")


def masked_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: "…" if MEASURED.search(k) else masked_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [masked_json(item) for item in value]
    return value


def masked_text(text: str) -> Any:
    try:
        return masked_json(json.loads(text))
    except ValueError:
        lines = text.splitlines()
        return [untimed(line) if TIMED.search(line) else line for line in lines]


def untimed(line: str) -> str:
    """Without figures, and without the blanks that columns have before them."""
    return " ".join(NUMBER.sub("…", line).split())


def masked_hash(path: Path) -> str:
    """Of a file; where times stand in it, of its text without them; of a page, that it is there."""
    data = path.read_bytes()
    if path.name in ("verdict.json", "build.json"):
        data = json.dumps(masked_json(json.loads(data)), sort_keys=True).encode()
    elif path.name in ("README.md", "junit.xml"):
        data = NUMBER.sub("…", data.decode()).encode()
    elif path.name == "dsconv.json" and b'"verdict.json"' in data:  # of a build
        content = json.loads(data)
        del content["self_sha256"], content["sha256"]
        data = json.dumps(masked_json(content), sort_keys=True).encode()
    return "page" if path.name == "report.html" else hashlib.sha256(data).hexdigest()


def hashes(path: Path) -> dict[str, str]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {file.relative_to(path.parent).as_posix(): masked_hash(file) for file in files}
    return {path.name: masked_hash(path)} if path.exists() else {path.name: "missing"}


# ---------------------------------------------------------------- running


def run_step(step: Step, scratch: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        **{"COLUMNS": "100", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"},
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "HOME": str(scratch),
    }
    command = [sys.executable, "-m", "dsconv", *step.line.split()]
    done = subprocess.run(
        command, cwd=scratch, env=environment, capture_output=True, encoding="utf-8"
    )
    found: dict[str, Any] = {"code": done.returncode}
    for name, text in (("stdout", done.stdout), ("stderr", done.stderr)):
        found[name] = masked_text(text.replace(str(scratch), "SCRATCH"))
    for output in step.outputs:
        found.setdefault("sha256", {}).update(hashes(scratch / output))
    return found


def record() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name).resolve()
        write_sources(scratch)
        found = {}
        for steps in stages():
            with ThreadPoolExecutor(2) as pool:
                done = pool.map(lambda step: run_step(step, scratch), steps)
                found.update({step.line: result for step, result in zip(steps, done, strict=True)})
            print(f"{len(found)} commands", file=sys.stderr)
        return found


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from differences(before.get(key), after.get(key), f"{place} > {key}")
    elif before != after:
        yield f"{place}\n  before: {before}\n  after:  {after}"


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "compare"):
        sys.exit(__doc__)
    file = Path(sys.argv[2])
    found = json.loads(json.dumps(record()))
    if sys.argv[1] == "write":
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
        return
    changed = list(differences(json.loads(file.read_text(encoding="utf-8")), found))
    print("\n".join(changed) or f"equal: {len(found)} commands")
    sys.exit(1 if changed else 0)


if __name__ == "__main__":
    main()
