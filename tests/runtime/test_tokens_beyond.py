"""A token that the embedding has no row for is refused by every command and every runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import assert_refused, dsconv
from small_models import VOCABULARY, write_checkpoint
from tokenizers import AddedToken, Tokenizer

from dsconv.convert.files.safetensors import read_rows, read_tensor_infos
from dsconv.convert.formats.native.export import export_native
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.errors import InputError
from dsconv.runtime.sessions.load import load

ADDED = "<extra>"


def with_added_token(folder: Path, **changes: Any) -> Path:
    """A tokenizer with a token behind the table, whose padding rows are taken."""
    write_checkpoint(folder, **changes)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fillers = [f"<filler{number}>" for number in range(tokenizer.get_vocab_size(), VOCABULARY)]
    tokenizer.add_tokens([AddedToken(mark) for mark in [*fillers, ADDED]])
    assert tokenizer.token_to_id(ADDED) == VOCABULARY
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of every runtime, the embedding quantized too: ONNX's lookup of such has no bounds."""
    scratch = tmp_path_factory.mktemp("beyond")
    model = with_added_token(scratch / "model")
    quantized = scratch / "quantized"
    options = QuantizeOptions(bits=4, embedding_bits=4, method="rtn")
    quantize_checkpoint(open_checkpoint(str(model)), options, quantized)
    checkpoint = open_checkpoint(str(quantized))
    assert dsconv("export", quantized, "-o", scratch / "onnx").code == 0
    export_native(checkpoint, scratch / "model.dsq")
    return {
        "model": model,
        "quantized": quantized,
        "onnx": scratch / "onnx",
        "native": scratch / "model.dsq",
    }


@pytest.mark.parametrize("kind", ["model", "quantized", "onnx", "native"])
@pytest.mark.parametrize("token", [VOCABULARY, 2**31 - 1, 2**40, -1])
def test_no_runtime_reads_beyond_its_table(
    artifacts: dict[str, Path], kind: str, token: int
) -> None:
    session = load(str(artifacts[kind])).session
    for wrong in (session.prefill, session.extend, session.score):
        with pytest.raises(InputError, match=f"token {token} is beyond the embedding"):
            wrong([1, token])
    session.reset()
    session.prefill([1])
    with pytest.raises(InputError, match=f"token {token} is beyond the embedding"):
        session.decode(token)
    assert np.isfinite(session.decode(VOCABULARY - 1)).all()  # padding has rows


@pytest.mark.parametrize("kind", ["model", "onnx", "native"])
def test_run_names_the_token_and_its_text(artifacts: dict[str, Path], kind: str) -> None:
    outcome = dsconv("run", artifacts[kind], "--raw", "-p", f"a {ADDED}")
    assert_refused(outcome, 3, f"token {VOCABULARY}", repr(ADDED), "resize_token_embeddings")


def test_verify_and_calibration_name_it(artifacts: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(f"some words {ADDED} and more " * 400)
    found = dsconv(
        "verify", artifacts["native"], "--reference", artifacts["model"], "--text", text
    )  # fmt: skip
    assert_refused(found, 3, f"token {VOCABULARY}", repr(ADDED))
    found = dsconv(
        *("quantize", artifacts["model"], "--calibration", text, "--calibration-tokens", 1024),
        *("-o", tmp_path / "out"),
    )
    assert found.code == 3
    assert f"token {VOCABULARY}" in found.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_special_tokens_beyond_the_table(tmp_path: Path, file: str, key: str) -> None:
    folder = write_checkpoint(tmp_path / "m")
    content = json.loads((folder / file).read_text())
    content[key] = [257, VOCABULARY] if key == "eos_token_id" else VOCABULARY
    (folder / file).write_text(json.dumps(content))
    for command in (
        ("quantize", folder, "--method", "rtn", "-o", tmp_path / "out"),
        ("export", folder, "-o", tmp_path / "out"),
        ("run", folder, "-p", "hi"),
        ("plan", folder),
    ):
        outcome = dsconv(*command)
        assert_refused(outcome, 3, f"{file}: {key} {VOCABULARY} is beyond", "264 rows")
    assert not (tmp_path / "out").exists()


def test_rows_of_another_tensor_are_never_read(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    infos = read_tensor_infos(folder / "model.safetensors")
    with pytest.raises(IndexError):
        read_rows(infos["model.norm.weight"], 60, 65)
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(IndexError):
        checkpoint.rows("model.embed_tokens.weight", VOCABULARY, VOCABULARY + 1)
