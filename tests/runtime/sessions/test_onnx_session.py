"""Prefill, decode and scores on ONNX Runtime agree with each other, however the cache grows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import VOCABULARY, write_checkpoint

from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.errors import InputError, ProviderError, UsageError
from dsconv.runtime.sessions.onnx import FIRST_BUFFER, PREFILL_CHUNK, OnnxSession
from dsconv.runtime.sessions.torch_reference import TorchSession

DIALECTS = ("contrib", "std24", "std17")
LONG = 2 * FIRST_BUFFER + 40


def tokens(count: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, VOCABULARY, count)]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("session")
    source = open_checkpoint(str(write_checkpoint(folder / "m")))
    quantize_checkpoint(source, QuantizeOptions(), folder / "q")
    return folder / "q"


@pytest.fixture(scope="module", params=DIALECTS)
def artifact(request: pytest.FixtureRequest, quantized: Path) -> Path:
    output = quantized.parent / str(request.param)
    options = ExportOptions(dialect=request.param, accuracy_level=0)
    export_onnx(open_checkpoint(str(quantized)), options, output)
    return output


@pytest.fixture(scope="module")
def session(artifact: Path) -> OnnxSession:
    return OnnxSession(artifact, threads=2)


@pytest.fixture(scope="module")
def expected(quantized: Path) -> NDArray[np.float32]:
    """Logits of the torch reference after every token of LONG."""
    return TorchSession(open_checkpoint(str(quantized)), threads=2).score(tokens(LONG))


def assert_close(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(found, wanted, atol=2e-3 * float(np.abs(wanted).max()))


def test_scores_over_many_chunks_are_the_references(
    session: OnnxSession, expected: NDArray[np.float32]
) -> None:
    assert LONG > 4 * PREFILL_CHUNK
    assert_close(session.score(tokens(LONG)), expected)
    assert session.position == LONG


@pytest.mark.parametrize("length", [1, PREFILL_CHUNK, PREFILL_CHUNK + 1, FIRST_BUFFER + 1])
def test_prefill_gives_the_last_row_of_the_scores(
    session: OnnxSession, expected: NDArray[np.float32], length: int
) -> None:
    session.reset()
    assert_close(session.prefill(tokens(LONG)[:length]), expected[length - 1])
    assert session.position == length


def test_decoding_across_the_growth_of_the_cache(
    session: OnnxSession, expected: NDArray[np.float32]
) -> None:
    sequence, start = tokens(LONG), FIRST_BUFFER - 3
    session.reset()
    session.prefill(sequence[:start])
    for position in range(start, start + 8):
        assert_close(session.decode(sequence[position]), expected[position])
    assert session.position == start + 8


def test_decoding_from_the_first_token(session: OnnxSession, expected: NDArray[np.float32]) -> None:
    session.reset()
    for position, token in enumerate(tokens(LONG)[:12]):
        assert_close(session.decode(token), expected[position])


def test_prefill_and_decode_may_alternate(
    session: OnnxSession, expected: NDArray[np.float32]
) -> None:
    sequence = tokens(LONG)
    session.reset()
    session.prefill(sequence[:5])
    session.decode(sequence[5])
    session.prefill(sequence[6:FIRST_BUFFER])  # fills the first buffer to the last position
    assert_close(session.decode(sequence[FIRST_BUFFER]), expected[FIRST_BUFFER])
    assert_close(session.prefill(sequence[FIRST_BUFFER + 1 : LONG]), expected[LONG - 1])
    session.decode(0)
    assert session.position == LONG + 1


def test_a_sequence_is_forgotten_after_reset(session: OnnxSession) -> None:
    session.reset()
    first = session.prefill(tokens(9)).copy()
    session.decode(3)
    session.reset()
    assert session.position == 0
    np.testing.assert_array_equal(session.prefill(tokens(9)), first)


def test_scores_start_from_an_empty_cache(session: OnnxSession) -> None:
    session.reset()
    first = session.score(tokens(9))
    np.testing.assert_array_equal(session.score(tokens(9)), first)


def test_decode_reuses_its_array_and_prefill_does_not(session: OnnxSession) -> None:
    session.reset()
    kept = session.prefill(tokens(4))
    copy = kept.copy()
    one = session.decode(1)
    two = session.decode(2)
    assert np.shares_memory(one, two)
    np.testing.assert_array_equal(kept, copy)


def test_two_sessions_do_not_share_a_cache(artifact: Path) -> None:
    one, two = OnnxSession(artifact, threads=1), OnnxSession(artifact, threads=1)
    one.prefill(tokens(5, seed=1))
    two.prefill(tokens(5, seed=2))
    alone = OnnxSession(artifact, threads=1)
    alone.prefill(tokens(5, seed=1))
    np.testing.assert_array_equal(one.decode(7), alone.decode(7))


def test_sizes_come_from_the_artifact(session: OnnxSession) -> None:
    assert session.vocabulary == VOCABULARY
    assert session.context_length == 2048


def test_the_last_position_of_a_short_context(quantized: Path, tmp_path: Path) -> None:
    options = ExportOptions(accuracy_level=0, context_length=600)
    export_onnx(open_checkpoint(str(quantized)), options, tmp_path / "x")
    session = OnnxSession(tmp_path / "x", threads=2)
    sequence = tokens(600)
    session.prefill(sequence[:599])
    last = session.decode(sequence[599]).copy()
    reference = TorchSession(open_checkpoint(str(quantized)), threads=2)
    assert_close(last, reference.prefill(sequence))


def test_an_unknown_provider_is_a_usage_error(artifact: Path) -> None:
    with pytest.raises(UsageError, match="'abacus' is not known"):
        OnnxSession(artifact, "abacus")


def test_a_provider_that_is_not_installed_is_never_replaced_by_the_cpu(artifact: Path) -> None:
    with pytest.raises(ProviderError, match=r"'qnn': the installed onnxruntime .* has no QNN"):
        OnnxSession(artifact, "qnn")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", None),
        ("search", []),
        ("model.vocab_size", "264"),
        ("model.context_length", 0),
        ("model.decoder", None),
        ("model.decoder.filename", 3),
        ("model.decoder.num_hidden_layers", True),
        ("model.decoder.filename", "../model.onnx"),
        ("model.decoder.filename", "missing.onnx"),
        ("model.decoder.num_hidden_layers", 3),
        ("model.decoder.head_size", 8),
        ("model.vocab_size", 10),
    ],
)
def test_a_damaged_genai_config_is_refused(
    artifact: Path, tmp_path: Path, key: str, value: object
) -> None:
    for path in artifact.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / "genai_config.json").read_text())
    *parents, last = key.split(".")
    inner = content
    for name in parents:
        inner = inner[name]
    inner[last] = value
    (tmp_path / "genai_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError):
        OnnxSession(tmp_path).decode(0)
