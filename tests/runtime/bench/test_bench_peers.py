"""Other runtimes, each on what it makes of a tiny checkpoint by its own tools."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import call_main
from gguf import GGUFReader
from numpy.typing import NDArray
from reference_models import tiny_model, write_tokenizer
from small_models import gpt2_tokenizer_json

from dsconv.errors import InputError, UnsupportedError, UsageError
from dsconv.runtime.bench.against import Against
from dsconv.runtime.bench.peers import PEERS, Peer, find_peer
from dsconv.runtime.bench.peers.building import run_tool
from dsconv.runtime.bench.peers.openvino_peer import weight_bytes_per_token as openvino_bytes
from dsconv.runtime.bench.process import Worker
from dsconv.runtime.bench.subject import Subject
from dsconv.runtime.bench.worker import tokens_of

SIZES = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 300}


def needs(name: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(PEERS[name].imported) is None
    return pytest.mark.skipif(missing, reason=f"{PEERS[name].package} is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the tokenizer of GPT-2's kind, which every runtime knows."""
    folder = tmp_path_factory.mktemp("peers") / "m"
    tiny_model("qwen2", **SIZES).save_pretrained(folder)
    write_tokenizer(folder, 300)
    (folder / "tokenizer.json").write_text(gpt2_tokenizer_json(), encoding="utf-8")
    return folder


def timed(subject: Subject, context: int) -> None:
    """A process loads it and answers, also after going back to the context."""
    worker = Worker(subject)
    opened = worker.open()
    assert (opened.runtime, opened.context_length) == (subject.runtime, 512)
    assert opened.load_seconds > 0
    assert worker.prefill(20).value > 0
    times = [worker.decode(context, 5).value for _ in range(3)]
    assert min(times) > 0
    assert worker.batch_limit(context + 5) >= 16
    assert all(worker.decode_many(context, batch, 5).value > 0 for batch in (1, 3, 3, 2))
    assert worker.decode(context, 5).value > 0
    worker.close()


@needs("onnxruntime-genai")
@pytest.mark.parametrize("bits", [4, 8])
def test_genai(bits: int, checkpoint: Path, tmp_path: Path) -> None:
    peer = find_peer("onnxruntime-genai")
    peer.build(str(checkpoint), bits, tmp_path / "built")
    graph = onnx.load(str(tmp_path / "built" / "model.onnx")).graph
    matrices = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert {attribute.i for n in matrices for attribute in n.attribute if attribute.name == "bits"}
    arrays = {t.name: len(onnx.numpy_helper.to_array(t).tobytes()) for t in graph.initializer}
    codes = sum(arrays[name] for node in matrices for name in node.input[1:3])
    vectors = 40_000  # norms and biases at most
    assert codes <= peer.weight_bytes_per_token(tmp_path / "built") <= codes + vectors
    timed(Subject(str(tmp_path / "built"), 1, peer.name), 30)
    with pytest.raises(UnsupportedError, match="int8 cache"):
        peer.open_runner(str(tmp_path / "built"), 1, "int8")


@needs("llama.cpp")
@pytest.mark.parametrize("bits", [4, 8])
def test_llama_cpp(bits: int, checkpoint: Path, tmp_path: Path) -> None:
    peer = find_peer("llama.cpp")
    peer.build(str(checkpoint), bits, tmp_path / "built")
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["model.gguf"]
    tensors = {t.name: t for t in GGUFReader(tmp_path / "built" / "model.gguf").tensors}
    kind = tensors["blk.0.ffn_gate.weight"].tensor_type.name
    assert kind == {4: "Q4_0", 8: "Q8_0"}[bits]
    total = sum(int(t.n_bytes) for t in tensors.values())
    read = peer.weight_bytes_per_token(tmp_path / "built")
    assert read == total - int(tensors["token_embd.weight"].n_bytes)
    for kv in ("fp16", "int8"):
        timed(Subject(str(tmp_path / "built"), 1, peer.name, kv=kv), 30)


@needs("llama.cpp")
def test_llama_cpp_goes_back_to_the_context(checkpoint: Path, tmp_path: Path) -> None:
    from dsconv.runtime.bench.peers.llama_cpp_peer import LlamaCppRunner

    peer = find_peer("llama.cpp")
    peer.build(str(checkpoint), 8, tmp_path / "built")
    runner = LlamaCppRunner(tmp_path / "built" / "model.gguf", 1, "fp16")
    found: list[NDArray[np.float32]] = []
    for room in (40, 40, 90):  # a longer one needs another cache
        runner.start(tokens_of(30), room)
        for _ in range(2):
            runner.rewind(30)
            for token in (7, 8, 9):
                runner._token = token
                runner.step()
                logits = runner._api.llama_get_logits_ith(runner._context, -1)
                found.append(np.ctypeslib.as_array(logits, (300,)).copy())
    for first in range(3):
        for other in range(first, len(found), 3):
            np.testing.assert_array_equal(found[first], found[other])
    assert np.abs(found[0] - found[1]).max() > 0.01


@needs("llama.cpp")
def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    worker = Worker(Subject(str(tmp_path), 1, "llama.cpp"))
    with pytest.raises(InputError, match=r"model\.gguf"):
        worker.open()
    worker.close()


def test_openvinos_weights_are_its_constants_but_the_embedding(tmp_path: Path) -> None:
    layer = '<layer name="{}" type="{}"><data size="{}"/></layer>'
    layers = [
        layer.format("self.model.embed_tokens.weight/scale", "Const", 1000),
        layer.format("self.model.layers.0.mlp.up_proj.weight", "Const", 200),
        layer.format("self.lm_head.weight", "Const", 30),
        layer.format("self.lm_head", "MatMul", 4),
        '<layer name="end" type="Result"/>',
    ]
    text = f"<net><layers>{''.join(layers)}</layers></net>"
    (tmp_path / "openvino_model.xml").write_text(text)
    assert openvino_bytes(tmp_path) == 230


def test_a_tool_that_fails_is_quoted() -> None:
    with pytest.raises(
        InputError, match=r"json\.tool failed with exit code 2: .*--no-such-option"
    ) as caught:
        run_tool("json.tool", "--no-such-option")
    assert "--peers" in caught.value.hint


def test_unknown_peers_are_refused() -> None:
    with pytest.raises(UsageError, match="'vllm'") as caught:
        find_peer("vllm")
    assert all(name in caught.value.hint for name in PEERS)


@needs("onnxruntime-genai")
def test_what_was_built_is_kept_and_found(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    built: list[str] = []
    build = Peer.build

    def count(peer: Peer, source: str, bits: int, output: Path) -> None:
        built.append(source)
        build(peer, source, bits, output)

    monkeypatch.setattr(Peer, "build", count)
    few = ["--rounds", 1, "--prefill", 8, "--decode", 2, "--context", 0, "--threads", 1, "--json"]
    arguments = ["bench", checkpoint, *few, "--against", "onnxruntime-genai"]
    keeping = [*arguments, "--peers", tmp_path / "kept"]
    first = call_main(monkeypatch, capsys, *keeping, "--checkpoint", checkpoint)
    assert first.code == 0, first.err
    assert "building its own int4" in first.err
    ours, theirs = first.json["artifacts"]
    assert (ours["runtime"], theirs["runtime"]) == ("torch", "onnxruntime-genai")
    assert theirs["path"] == str(tmp_path / "kept" / "onnxruntime-genai-int4")
    assert theirs["decode_tokens_per_second"] > 0
    assert 0 < theirs["weight_bytes_per_token"] < ours["weight_bytes_per_token"]
    assert built == [str(checkpoint)]
    again = Against(("onnxruntime-genai",), folder=tmp_path / "kept")  # needs no checkpoint now
    assert again.kept(PEERS["onnxruntime-genai"]) == Path(theirs["path"])
