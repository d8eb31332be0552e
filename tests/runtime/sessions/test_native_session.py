"""The native engine against the torch reference, and against itself in every way it can run."""

from __future__ import annotations

import json
import platform
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logits import largest_difference, mean_divergence
from native_models import CASES, Floats, exported, native_checkpoint, reference_logits, some_tokens
from places import SHARED_DATA, needs_shared_data, smollm2_path
from small_models import LLAMA, QWEN3

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.formats.native.file import NativeFile
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.errors import UsageError
from dsconv.runtime.sessions.native import (
    NativeOptions,
    NativeSession,
    available_kernels,
    load_engine_module,
)

LENGTH = 64
# Keys and values are kept in half precision: logits of up to 9 differ by no more than this.
TOLERANCE = 0.02
SCHEMES: dict[str, dict[str, Any]] = {
    "int4 g32": {"bits": 4, "embedding_bits": 4},
    "int4 g64 zero points": {"bits": 4, "group_size": 64, "symmetric": False},
    "int4 row, head 8": {"bits": 4, "group_size": -1, "head_bits": 8, "embedding_bits": 8},
    "int8 g32": {"bits": 8},
    "int8 row zero points": {"bits": 8, "group_size": -1, "symmetric": False},
    "scale-min 3": {"bits": 3, "scheme_name": "scale-min", "embedding_bits": 4},
    "scale-min 4": {"bits": 4, "scheme_name": "scale-min"},
    "scale-min 5": {"bits": 5, "scheme_name": "scale-min"},
    "scale-min 6": {"bits": 6, "scheme_name": "scale-min", "embedding_bits": 6},
}


@pytest.fixture(scope="module", params=CASES)
def float_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, NativeFile]:
    folder = tmp_path_factory.mktemp("float")
    model = native_checkpoint(folder / "model", **CASES[request.param])
    return model, exported(model, folder / "model.dsq")


@pytest.fixture(scope="module")
def demanding(tmp_path_factory: pytest.TempPathFactory) -> NativeFile:
    """Odd sizes, head norms, biases and a quantized embedding in one model."""
    folder = tmp_path_factory.mktemp("demanding")
    model = native_checkpoint(
        folder / "model",
        **{**QWEN3, "attention_bias": True, "head_dim": 24, "vocab_size": 270, "hidden_size": 96},
    )
    return exported(_quantized(model, folder / "q", bits=4, embedding_bits=4), folder / "m.dsq")


def _quantized(model: Path, output: Path, **options: Any) -> Checkpoint:
    quantize_checkpoint(
        open_checkpoint(str(model)), QuantizeOptions(method="rtn", threads=2, **options), output
    )
    return open_checkpoint(str(output))


def session(file: NativeFile, **options: Any) -> NativeSession:
    return NativeSession(file, NativeOptions(**{"threads": 2, **options}))


def in_steps(running: NativeSession, tokens: list[int], sizes: list[int]) -> Floats:
    """Logits after each step of so many tokens."""
    running.reset()
    rows, start = [], 0
    for size in sizes:
        piece = tokens[start : start + size]
        rows.append(running.decode(piece[0]).copy() if size == 1 else running.prefill(piece))
        start += size
    assert running.position == start == len(tokens)
    return np.stack(rows)


# ---------------------------------------------------------------- the build


def test_every_instruction_set_of_this_machine_is_there() -> None:
    """Fails where the extension was not built: nothing below would mean anything."""
    names = available_kernels()
    assert names[0] == "scalar"
    if platform.machine() in ("aarch64", "arm64"):
        assert len(names) > 1
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        flags = set(Path("/proc/cpuinfo").read_text().split())
        wanted = {
            "avx2": {"avx2", "fma", "f16c"},
            "avx512_vnni": {"avx512_vnni", "avx512vl"},
            "amx_int8": {"amx_int8", "avx512_vnni"},
        }
        for name, needed in wanted.items():
            assert (name in names) == (needed <= flags)
        assert ("avx_vnni" in names) == ({"avx_vnni", "avx2"} <= flags)


def test_the_extension_uses_the_stable_abi() -> None:
    assert ".abi3." in load_engine_module().__file__ or platform.system() == "Windows"


# ---------------------------------------------------------------- against the reference


def test_float_models(float_model: tuple[Path, NativeFile]) -> None:
    model, file = float_model
    tokens = some_tokens(LENGTH)
    wanted = reference_logits(model, tokens)
    running = session(file)
    assert largest_difference(running.score(tokens), wanted) <= TOLERANCE
    assert mean_divergence(wanted, running.score(tokens)) <= 1e-5
    for sizes in ([LENGTH], [1] * LENGTH, [17, 1, 1, 30, 15], [63, 1], [5, 3, 56]):
        ends = np.cumsum(sizes) - 1
        got = in_steps(running, tokens, sizes)
        assert largest_difference(got, wanted[ends]) <= TOLERANCE


def test_key_biases_do_not_enter_the_half_precision_cache(tmp_path: Path) -> None:
    """Keys of 150 in half precision would be off by up to 0.06, and queries multiply that."""
    model = native_checkpoint(tmp_path / "model", bias=1000.0)
    tokens = some_tokens(LENGTH)
    wanted = reference_logits(model, tokens)
    file = exported(model, tmp_path / "m.dsq")
    assert mean_divergence(wanted, session(file).score(tokens)) <= 1e-5
    assert mean_divergence(wanted, session(file, cache="int8").score(tokens)) <= 1e-3


def test_a_long_context(tmp_path: Path) -> None:
    """Several segments of the cache, several passes, and decoding at the end of them."""
    model = native_checkpoint(tmp_path / "model", seed=3)
    file = exported(model, tmp_path / "m.dsq")
    tokens = some_tokens(1100, seed=1)
    wanted = reference_logits(model, tokens)
    for cache, limit in (("fp32", 1e-8), ("fp16", 4e-5), ("int8", 1e-2)):
        running = session(file, cache=cache)
        assert mean_divergence(wanted, running.score(tokens)) <= limit
        got = in_steps(running, tokens, [1000, 24, 1, 5, 1, 1, 60, *[1] * 8])
        ends = np.cumsum([1000, 24, 1, 5, 1, 1, 60, *[1] * 8]) - 1
        assert mean_divergence(wanted[ends], got) <= limit


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_quantized_models(tmp_path: Path, scheme: str, dtype: str) -> None:
    """The same codes as the reference has; the rest is the rounding of the activations."""
    model = native_checkpoint(tmp_path / "model", dtype=dtype, intermediate_size=112)
    checkpoint = _quantized(model, tmp_path / "q", **SCHEMES[scheme])
    tokens = some_tokens(LENGTH)
    wanted = reference_logits(checkpoint, tokens)
    file = exported(checkpoint, tmp_path / "m.dsq")
    exact = session(file, decode="int16", prefill="int16", score="int16")
    assert mean_divergence(wanted, exact.score(tokens)) <= 2e-5
    assert mean_divergence(wanted, in_steps(exact, tokens, [1] * LENGTH)) <= 2e-5
    fast = session(file, decode="int8", prefill="int8", score="int8")
    assert mean_divergence(wanted, fast.score(tokens)) <= 2e-2


@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_models(tmp_path: Path, tied: bool) -> None:
    model = native_checkpoint(tmp_path / "model", dtype="bfloat16", tie_word_embeddings=tied)
    tokens = some_tokens(LENGTH)
    file = exported(model, tmp_path / "m.dsq")
    wanted = reference_logits(model, tokens)
    assert largest_difference(session(file).score(tokens), wanted) <= TOLERANCE


def test_attention_does_not_see_the_future(demanding: NativeFile) -> None:
    tokens = some_tokens(300)
    running = session(demanding)
    before = running.score(tokens)
    changed = [*tokens[:280], *some_tokens(20, seed=9)]
    after = running.score(changed)
    np.testing.assert_array_equal(before[:280], after[:280])
    assert largest_difference(before[280:], after[280:]) > 0.1


# ---------------------------------------------------------------- against itself


@pytest.mark.parametrize("cache", ["fp16", "int8", "fp32"])
def test_the_same_bits_for_all_threads_and_kernels(demanding: NativeFile, cache: str) -> None:
    """Integer sums are exact and every float operation has one order, so nothing may differ."""
    tokens = some_tokens(330)
    sizes = [290, 1, 7, 1, 31]

    def run(**options: Any) -> tuple[Floats, Floats]:
        running = session(demanding, cache=cache, **options)
        return running.score(tokens), in_steps(running, tokens, sizes)

    scores, steps = run(kernels="scalar", threads=1)
    for kernels in available_kernels():
        for threads in (1, 2, 3):
            running = session(demanding, kernels=kernels, threads=threads)
            assert (running.kernels, running.threads) == (kernels, threads)
            got = run(kernels=kernels, threads=threads)
            np.testing.assert_array_equal(got[0], scores, f"{kernels}, {threads} threads")
            np.testing.assert_array_equal(got[1], steps, f"{kernels}, {threads} threads")


@pytest.mark.parametrize("kernels", available_kernels())
def test_every_kernel_against_the_reference(tmp_path: Path, kernels: str) -> None:
    model = native_checkpoint(tmp_path / "model", **{**LLAMA, "head_dim": 20})
    tokens = some_tokens(LENGTH)
    running = session(exported(model, tmp_path / "m.dsq"), kernels=kernels)
    assert largest_difference(running.score(tokens), reference_logits(model, tokens)) <= TOLERANCE


def test_extend_continues_and_score_starts_anew(demanding: NativeFile) -> None:
    tokens = some_tokens(40)
    running = session(demanding)
    whole = running.score(tokens)
    running.reset()
    pieces = [running.extend(tokens[:13]), running.extend(tokens[13:])]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(running.score(tokens), whole)
    assert running.position == 40


def test_decode_reuses_its_array_and_prefill_does_not(demanding: NativeFile) -> None:
    running = session(demanding)
    first = running.prefill([1, 2, 3])
    kept = first.copy()
    second = running.decode(4)
    np.testing.assert_array_equal(first, kept)
    assert running.decode(5) is second


# ---------------------------------------------------------------- refused


def test_options_that_do_not_exist(demanding: NativeFile) -> None:
    with pytest.raises(UsageError, match="int4"):
        NativeOptions(cache="int4")
    with pytest.raises(UsageError, match="float64"):
        NativeOptions(decode="float64")
    with pytest.raises(UsageError, match="sse9"):
        session(demanding, kernels="sse9")


@pytest.mark.parametrize(
    "arguments",
    [
        ([], None, 0, False),
        ([1] * 100_000, None, 0, False),
        ([-1], None, 0, False),
        ([270], None, 0, False),
        ([2**70], None, 0, False),
        (["a"], None, 0, False),
        ((1,), None, 0, False),
        ([1], bytearray(8), 0, False),
        ([1], bytearray(270 * 4), 4, False),
        ([1], bytearray(270 * 4 + 2), 2, False),
        ([1], bytearray(270 * 4), -4, False),
        ([1, 2], bytearray(270 * 4), 0, True),
        ([1], bytes(270 * 4), 0, False),
        ([1],),
    ],
    ids=lambda arguments: str(arguments)[:30],
)
def test_the_engine_refuses_what_would_leave_its_memory(
    demanding: NativeFile, arguments: tuple[Any, ...]
) -> None:
    running = session(demanding)
    with pytest.raises((ValueError, TypeError, OverflowError)):
        running._engine.forward(*arguments)
    assert running.position == 0
    running.prefill([1, 2])


def test_an_engine_without_a_file_is_refused() -> None:
    engine = load_engine_module().Engine
    with pytest.raises(TypeError):
        engine()
    with pytest.raises(ValueError, match="No such file"):
        engine(b"/nowhere.dsq", 1, [], [], 1, "fp16", "", "int8", "int8", "int8")
    blank = engine.__new__(engine)
    with pytest.raises(ValueError, match="not initialised"):
        blank.forward([1], None, 0, False)


def test_two_threads_on_one_session(demanding: NativeFile) -> None:
    """Either they take turns or the second is told; nothing is mixed up in silence."""
    running = session(demanding)
    outcomes: list[str] = []

    def work() -> None:
        for _ in range(20):
            try:
                running.prefill(some_tokens(100))
                outcomes.append("done")
            except ValueError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) <= {"done", "the engine is busy"}
    assert running.position == 100 * outcomes.count("done")


# ---------------------------------------------------------------- recorded


def golden(name: str) -> list[dict[str, Any]]:
    entries = json.loads((SHARED_DATA / "golden" / "greedy_fp32.json").read_text())[name]
    assert entries
    return list(entries)


def greedy(running: NativeSession, prompt: list[int], count: int) -> list[int]:
    running.reset()
    logits, tokens = running.prefill(prompt), []
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        logits = running.decode(tokens[-1])
    return tokens


@needs_shared_data
def test_recorded_tokens_of_tinystories(tmp_path: Path) -> None:
    file = exported(SHARED_DATA / "models" / "tinystories-656k", tmp_path / "m.dsq")
    running = session(file)
    for entry in golden("tinystories-656k"):
        assert greedy(running, entry["ids"], len(entry["greedy64"])) == entry["greedy64"]


@needs_shared_data
def test_recorded_tokens_of_smollm2(tmp_path: Path) -> None:
    file = exported(open_checkpoint(str(smollm2_path())), tmp_path / "m.dsq")
    entry = golden("smollm2-135m-instruct")[0]
    tokens = greedy(session(file), entry["ids"], len(entry["greedy64"]))
    assert tokens == entry["greedy64"]
