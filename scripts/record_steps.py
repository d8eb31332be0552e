"""The command lines that record.py runs, in stages: steps of a stage need nothing of each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

COMMANDS = (
    *("pull", "quantize", "plan", "export", "lint", "targets", "run", "verify", "sign", "bench"),
    *("inspect", "doctor", "demo", "build", "recipes"),
)
TARGETS = (
    *("cpu", "cuda", "tensorrt", "openvino", "openvino-npu", "qnn", "webgpu", "migraphx", "cann"),
    *("musa", "torch:cuda", "torch:npu", "torch:musa", "torch:xpu", "ascend-om", "nowhere"),
)


@dataclass(frozen=True)
class Step:
    """One command line, and the outputs of it that are hashed."""

    line: str
    outputs: tuple[str, ...] = ()


def wrote(line: str, output: str, *more: str) -> Step:
    return Step(f"{line} -o {output}", (output, *more))


CALIBRATED = "--calibration text.txt --calibration-tokens 1536 --threads 2 --json"


def stages() -> Iterator[list[Step]]:
    """Steps of a stage need nothing of each other."""
    yield [Step(f"{name} --help") for name in COMMANDS]
    yield [Step("--help"), Step("--version"), Step(""), Step("nonsense"), Step("recipes --json")]
    yield list(_quantize())
    yield list(_quantize_again())
    yield list(_export())
    yield list(_use())


def _quantize() -> Iterator[Step]:
    yield wrote("quantize qwen2 --method rtn --json", "int4-rtn")
    yield wrote("quantize qwen2 --method search", "int4-search")
    yield wrote("quantize qwen2 --bits 8 --json", "int8")
    yield wrote("quantize tied --bits 8 --embedding-bits 8 --head-bits 8 --json", "int8-tied")
    yield wrote("quantize llama --method rtn --asymmetric --group-size 64 --json", "asymmetric")
    yield wrote("quantize llama --method rtn --group-size -1 --json", "rows")
    yield wrote("quantize llama --scheme scale-min --bits 5 --method rtn --json", "scale-min-rtn")
    yield wrote(f"quantize qwen2 {CALIBRATED}", "int4")
    yield wrote(f"quantize qwen2 --asymmetric {CALIBRATED}", "int4-asymmetric")
    yield wrote(f"quantize tied --scheme scale-min {CALIBRATED}", "scale-min")
    yield wrote(f"quantize qwen2 --scheme scale-min --target-bpw 4.5 {CALIBRATED}", "target")
    yield wrote(f"quantize qwen2 --target-bpw 6 --bits 4 {CALIBRATED}", "target-integer")
    yield wrote(f"quantize qwen2 --max-kl 0.01 {CALIBRATED}", "target-kl")
    yield wrote(f"quantize qwen2 --target-size 200KB {CALIBRATED}", "target-size")
    yield wrote(f"quantize llama --bits 8 --activations int8 {CALIBRATED}", "w8a8-llama")
    yield wrote(f"quantize qwen2 --bits 8 --activations int8 {CALIBRATED}", "w8a8")
    yield wrote(f"quantize qwen2 --tuning-epochs 1 {CALIBRATED}", "tuned")
    yield wrote(
        f"quantize tied --scheme scale-min --tuning-epochs 1 --prefix-correction 1 {CALIBRATED}",
        "tuned-scale-min",
    )
    yield wrote(f"quantize qwen2 --max-memory 16MiB --damping 0.02 {CALIBRATED}", "little-memory")
    yield wrote("quantize tied --calibration-tokens 256 --threads 2 --json", "self-calibrated")
    yield Step("quantize broken --method rtn -o broken-out --json")
    yield Step("quantize nowhere/at-all/no --method rtn -o broken-out")
    yield Step("quantize qwen2 --bits 5 -o refused-1")
    yield Step("quantize qwen2 --bits 4 --activations int8 -o refused-2")
    yield Step("quantize qwen2 --scheme scale-min --group-size 64 -o refused-3")
    yield Step("quantize qwen2 --method rtn --calibration text.txt -o refused-4")
    yield Step("quantize qwen2 --method rtn --target-bpw 4.5 -o refused-5")
    yield Step("quantize qwen2 --method nonsense -o refused-6")
    yield Step("quantize qwen2 --method rtn --group-size 48 -o refused-7")
    yield Step("quantize qwen2 --method rtn --embedding-bits 5 -o refused-8")
    yield Step("quantize qwen2 --method rtn --tuning-epochs 1 -o refused-9")
    yield Step("quantize qwen2 --method rtn --prefix-correction 0.5 -o refused-10")
    yield Step("quantize qwen2 --prefix-correction 2 -o refused-11")
    yield Step("quantize qwen2 --max-memory nonsense -o refused-12")
    yield Step("quantize qwen2 --scheme nonsense -o refused-13")
    yield Step("quantize qwen2 --target-bpw 1 -o refused-14")
    yield Step("plan qwen2 --json")
    yield Step("plan qwen2 --bits 8 --activations int8 --calibration text.txt --json")
    yield Step("plan llama --scheme scale-min --target-bpw 4.5 --json")
    yield Step("plan llama --method search --embedding-bits 4 --json")
    yield Step("plan llama --tuning-epochs 1 --json")
    yield Step("plan llama --bits 7")
    yield Step("inspect qwen2 --json")
    yield Step("inspect llama")
    yield Step("inspect broken")
    yield Step("targets --json")
    yield Step("targets")
    yield Step("pull some/model")
    yield Step("pull hf:nonsense")


def _quantize_again() -> Iterator[Step]:
    yield Step("quantize qwen2 --method rtn --json -o int4-rtn")
    yield wrote(f"quantize qwen2 --recipe target/dsconv.json {CALIBRATED}", "by-recipe")
    for name in ("int4", "scale-min", "w8a8", "target"):
        yield Step(f"inspect {name} --json")
        yield Step(f"verify {name} --integrity --json")


def _export() -> Iterator[Step]:
    for source in ("qwen2", "int4", "int8-tied", "asymmetric", "rows", "scale-min", "w8a8", "tied"):
        yield wrote(f"export {source} --format onnx --json", f"{source}-onnx")
        yield wrote(f"export {source} --format native --json", f"{source}.dsq")
        yield wrote(f"export {source} --format gguf --json", f"{source}.gguf")
        yield wrote(f"export {source} --format compressed-tensors --json", f"{source}-ct")
        yield wrote(f"export {source} --format ascend --json", f"{source}-ascend")
    for source in ("target", "target-integer", "tuned-scale-min", "scale-min-rtn", "w8a8-llama"):
        yield wrote(f"export {source} --format native", f"{source}.dsq")
        yield wrote(f"export {source} --format gguf", f"{source}-gguf")
    for target in TARGETS:
        yield wrote(f"export int4 --target {target} --json", f"int4-for-{target.replace(':', '-')}")
    for target in ("qnn", "openvino", "cann", "cuda"):
        yield wrote(f"export asymmetric --target {target}", f"asymmetric-for-{target}")
        yield wrote(f"export tied --target {target} --context-length 64", f"tied-for-{target}")
    for dialect in ("std24", "std21", "std17", "std17-nbits", "nonsense"):
        line = f"export int8 --dialect {dialect} --accuracy-level 0 --context-length 128 --copy"
        yield wrote(line, f"int8-{dialect}")
    yield wrote("export int4 --target qnn --prefill-length 16", "int4-qnn-16")
    yield Step("export int4 --format nonsense -o refused-15")
    yield Step("export broken --format onnx -o refused-16")
    yield Step("export int4 --target cuda --dialect std17 -o refused-17")
    for name in ("native", "onnx", "gguf"):
        yield wrote(f"build {name}.toml --threads 2 --json", f"built-{name}")
    yield Step("build native.toml -o dry --dry-run")
    yield Step("build native.toml -o built-failing --set verify.max_kl=1e-9 --threads 2")
    yield Step("build wrong.toml -o refused-18")
    yield Step("build no-such-recipe -o refused-19")


def _use() -> Iterator[Step]:
    greedy = "--temperature 0 --max-tokens 8 --threads 2"
    for artifact in ("int4-onnx", "int4.dsq", "qwen2", "tied.gguf"):
        yield Step(f"run {artifact} -p Hello {greedy} --json")
    yield Step(f"run int4.dsq -p Hello {greedy} --kv int8 --raw")
    yield Step("run int4.dsq -p Hello --seed 3 --top-k 5 --max-tokens 8 --threads 2")
    yield Step("run int4.dsq -p Hello --max-tokens 8 --threads 2 --speculate 4 --temperature 0")
    yield Step(f"run int4-for-qnn -p Hello {greedy} --json")
    yield Step("run int4-onnx -p Hello --provider cuda")
    yield Step("run int4-onnx -p Hello --provider nonsense")
    yield Step("run qwen2 -p Hello --provider torch:cuda")
    shared = "--reference qwen2 --text text.txt --window 32 --max-tokens 128 --threads 2"
    for artifact in ("int4-onnx", "int4.dsq", "asymmetric.dsq", "target.dsq"):
        reference = shared.replace("qwen2", "llama") if "asym" in artifact else shared
        yield Step(f"verify {artifact} {reference} --max-kl 1 --json")
    line = (
        f"verify int4.dsq {shared} --max-kl 1e-9 --min-top1 0.99 --integrity --free-running 1 "
        "--task questions.jsonl --task-questions 1 --task-seeds 1 --task-tokens 8 --json "
        "--junit junit.xml --report report.html --github"
    )
    yield Step(line, ("junit.xml", "report.html"))
    yield Step(f"verify int4-onnx {shared} --no-layers --dtype bfloat16")
    yield Step("verify int4.dsq")
    yield Step("verify int4.dsq --max-kl 0.1")
    yield Step(f"verify int4.dsq {shared} --min-top1 7")
    yield Step("verify int4 --integrity")
    yield Step("verify int4-onnx --integrity --json")
    for artifact in ("int4-onnx", "int4.dsq", "int4.gguf", "int8-tied-ct", "w8a8-ascend"):
        yield Step(f"inspect {artifact} --json")
    yield Step("inspect int4-onnx")
    for target in ("cpu", "qnn", "cann", "openvino", "cuda", "nowhere"):
        yield Step(f"lint int4-onnx --target {target} --json")
    yield Step("lint int4-for-qnn --target qnn")
    yield Step("lint int8-std17 --target cann")
    yield Step("bench int4.dsq int4-onnx --prefill 16 --decode 4 --rounds 1 --threads 2 --json")
    yield Step("bench nothing --rounds 1")
    yield Step("sign int4-onnx --private-key no-key.pem")
    yield Step("doctor native --json")
    yield Step("doctor nonsense")
