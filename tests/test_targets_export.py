"""What `export --target` writes, run by ONNX Runtime on the CPU, against the torch reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import largest_difference, quantized, random_tokens
from numpy.typing import NDArray
from small_models import VOCABULARY, write_checkpoint

from dsconv.convert.checkpoint import Checkpoint, open_checkpoint
from dsconv.convert.onnx.export import ExportOptions, export_onnx
from dsconv.convert.torch_ops import TorchModel
from dsconv.runtime.load import load

TOKENS = random_tokens(40, VOCABULARY)


def reference(checkpoint: Checkpoint) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = TorchModel.load(checkpoint).forward(TOKENS).numpy()
    return logits


def run(folder: Path) -> NDArray[np.float32]:
    """A prompt in uneven pieces, a step back, then single tokens -> logits of all positions."""
    session = load(str(folder), threads=1).session
    first = np.array(session.extend(TOKENS[:21]))
    session.extend(TOKENS[:9])
    session.truncate(21)
    steps = [np.array(session.decode(token)) for token in TOKENS[21:]]
    return np.concatenate([first, np.array(steps)])


@pytest.fixture(scope="module", params=[{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", **request.param)


QUANTIZED: dict[str, dict[str, Any] | None] = {
    "float": None,
    "4 bits": {},
    "4 bits asymmetric, embedding 4": {"symmetric": False, "embedding_bits": 4},
    "8 bits per row": {"bits": 8, "group_size": -1},
}
FORMS = {
    "contrib half": ExportOptions("contrib", 0, precision="float16"),
    "contrib plain products": ExportOptions("contrib", 0, fused_products=False),
    "std17 half": ExportOptions("std17", 0, precision="float16", rotary_tables=True),
    "std17 half fixed": ExportOptions(
        "std17", 0, precision="float16", context_length=64, prefill_length=16
    ),
    "std21 fixed": ExportOptions(
        "std21",
        0,
        context_length=64,
        prefill_length=8,
        explicit_zero_points=True,
        packed_embedding=False,
    ),
    "std21": ExportOptions("std21", 0),
    "nbits": ExportOptions("std17-nbits", 0, packed_embedding=False),
    "nbits fixed, one graph": ExportOptions(
        "std17-nbits", 0, context_length=64, prefill_length=1, packed_embedding=False
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weights", QUANTIZED)
def test_every_form_computes_the_reference(
    source: Path, weights: str, form: str, tmp_path: Path
) -> None:
    options = QUANTIZED[weights]
    checkpoint = (
        open_checkpoint(str(source))
        if options is None
        else quantized(source, tmp_path / "q", **options)
    )
    export_onnx(checkpoint, FORMS[form], tmp_path / "onnx")
    limit = 2e-2 if FORMS[form].precision == "float16" else 1e-3
    assert largest_difference(run(tmp_path / "onnx"), reference(checkpoint)) <= limit


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("std")])
def test_standard_graphs_are_valid(source: Path, form: str, tmp_path: Path) -> None:
    checkpoint = quantized(source, tmp_path / "q")
    export_onnx(checkpoint, FORMS[form], tmp_path / "onnx")
    for path in (tmp_path / "onnx").glob("*.onnx"):
        model = onnx.load(str(path), load_external_data=False)
        assert {node.domain for node in model.graph.node} == {""}
