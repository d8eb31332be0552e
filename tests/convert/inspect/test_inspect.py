"""What is in models, and in files that are none of ours: every figure against what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call_main
from gguf import GGMLQuantizationType as Kind
from gguf_models import metadata, plain_tensors, tiny_file, write_gguf
from outputs import quantized
from safetensors.numpy import save_file
from small_models import EOS, LLAMA3, write_checkpoint, write_json

from dsconv.convert.inspect.describe import describe, survey
from dsconv.convert.inspect.description import Description
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError, UnsupportedError

SAMPLING = {"temperature": 0.6, "top_p": 0.95, "do_sample": True}


def test_a_model_of_the_hub(tmp_path: Path) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    folder = tmp_path / "models--org--small" / "snapshots" / commit
    write_checkpoint(folder, rope_scaling=LLAMA3, tie_word_embeddings=True)
    write_json(folder / "generation_config.json", {"eos_token_id": [EOS, 3], **SAMPLING})
    found = describe(str(folder))
    assert found.problem is None
    assert found.architecture is not None
    assert found.architecture.to_json() == {
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 16,
        "hidden_size": 64,
        "feed_forward_size": 96,
        "context_length": 2048,
        "rope_scaling": {
            "type": "llama3",
            **{key: value for key, value in LLAMA3.items() if key != "rope_type"},
        },
        "vocabulary": 264,
        "tied_embeddings": True,
    }
    assert found.text is not None
    assert found.text.to_json() == {
        "chat_template": True,
        "special_tokens": {"bos_token": "<s>", "eos_token": "</s>"},
        "eos_token_ids": [EOS, 3],
    }
    assert found.sampling == SAMPLING
    assert found.origin is not None
    assert (found.origin.name, found.origin.commit) == ("org/small", commit)
    out = quantized(folder, tmp_path / "q")
    made = describe(str(out.origin)).origin
    assert made is not None
    assert (made.made_from, made.made_from_commit) == ("org/small", commit)
    assert made.quantized_by is not None
    assert made.quantized_by.startswith("dsconv ")


def test_outputs_name_what_they_were_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from small_models import LLAMA, gpt2_checkpoint

    quantized(gpt2_checkpoint(tmp_path / "original", **LLAMA), tmp_path / "q")
    for number, name in enumerate(("m.dsq", "m.gguf", "onnx")):
        form = ("native", "gguf", "onnx")[number]
        output = tmp_path / name
        outcome = call_main(
            monkeypatch, capsys, "export", tmp_path / "q", "--format", form, "-o", output
        )
        assert outcome.code == 0, outcome.err
        found = describe(str(output))
        assert found.origin is not None
        assert found.origin.made_from == "original", name
        assert found.origin.quantized_by is not None
        assert found.origin.quantized_by.startswith("dsconv "), name
        assert found.architecture is not None
        assert (found.architecture.layers, found.architecture.vocabulary) == (2, 264)
        assert found.text is not None
        assert found.text.chat_template


def assert_shown(found: Description, message: str) -> None:
    assert found.problem is not None
    assert message in found.problem.message
    assert found.problem.hint
    assert found.tensors
    assert found.size_bytes == sum(row.size_bytes for row in found.tensors)
    json.dumps(found.to_json())


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "architectures": ["Other"], "model_type": "x"})
    with pytest.raises(UnsupportedError, match="not supported"):
        survey(str(folder))


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "num_hidden_layers": 3})
    with pytest.raises(InputError, match="is missing"):
        survey(str(folder))


def test_a_file_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": np.ones((3, 4), np.float16), "b": np.ones(5, np.int32)}, path)
    found = survey(str(path))
    assert_shown(found, "one file of a model")
    assert (found.kind, found.parameters, found.size_bytes) == ("safetensors", 0, 44)
    assert any("not counted" in note for note in found.notes)
    assert {(row.name, row.shape, row.storage) for row in found.tensors} == {
        ("a", (3, 4), "F16"),
        ("b", (5,), "I32"),
    }


def test_an_adapter(tmp_path: Path) -> None:
    save_file({"base_model.model.q.lora_A.weight": np.ones((4, 8), np.float32)}, adapter(tmp_path))
    found = survey(str(tmp_path))
    assert_shown(found, "adapter of 'org/base'")
    assert (found.kind, found.parameters) == ("adapter", 32)
    assert "r 4" in found.notes[0]


def adapter(folder: Path) -> Path:
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 4}
    write_json(folder / "adapter_config.json", config)
    return folder / "adapter_model.safetensors"


def test_gguf_of_another_architecture(tmp_path: Path) -> None:
    keys = {**metadata("gemma2"), "general.quantized_by": "somebody", "general.name": "Gemma"}
    keys["tokenizer.chat_template"] = "{{ messages }}"
    found = survey(str(write_gguf(tmp_path / "g.gguf", "gemma2", keys, plain_tensors("llama"))))
    assert_shown(found, "gemma2")
    assert found.family == "gemma2"
    assert found.architecture is not None
    assert (found.architecture.layers, found.architecture.head_size) == (2, 64)
    assert found.architecture.tied_embeddings is False
    assert found.text is not None
    assert found.text.chat_template
    assert found.text.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert found.origin is not None
    assert (found.origin.made_from, found.origin.quantized_by) == ("Gemma", "somebody")


def test_gguf_of_an_unknown_type(tmp_path: Path) -> None:
    tensors = {**plain_tensors("llama"), "blk.0.ffn_up.weight": (np.ones((9, 8), np.int8), Kind.I8)}
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata("llama"), tensors)
    data = path.read_bytes()
    place = data.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 16
    path.write_bytes(data[:place] + bytes([99]) + data[place + 1 :])
    found = survey(str(path))
    assert_shown(found, "number 99")
    (row,) = (row for row in found.tensors if row.name == "blk.0.ffn_up.weight")
    assert (row.shape, row.storage) == ((9, 8), "number 99")
    assert 72 <= row.size_bytes < 72 + 32  # up to the next tensor, which is aligned


def test_one_part_of_several(tmp_path: Path) -> None:
    path = tiny_file(tmp_path, **{"split.count": 2, "split.no": 0})
    part = path.rename(tmp_path / "m-00001-of-00002.gguf")
    assert_shown(survey(str(part)), "m-00002-of-00002.gguf is not beside it")


def test_a_graph_of_somebody_else(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        *([node], "g", [value("x", TensorProto.FLOAT, [1, 4])]),
        *([value("y", TensorProto.FLOAT, [1, 3])], [weight]),
    )
    opset = [helper.make_opsetid("", 20)]
    save(helper.make_model(graph, producer_name="maker", opset_imports=opset), tmp_path / "g.onnx")
    for place in (tmp_path, tmp_path / "g.onnx"):
        found = survey(str(place))
        assert_shown(found, "")
        assert found.kind == "onnx"
        assert [(row.name, row.size_bytes) for row in found.tensors] == [("w", 48)]
        assert "ai.onnx 20, made by maker" in found.notes[0]


@pytest.mark.parametrize("name", ["x.bin", "x.txt", "x.safetensors", "x.gguf", "x.onnx"])
def test_what_has_nothing_to_show_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"nothing of interest")
    for place in (tmp_path / name, tmp_path):
        with pytest.raises((InputError, UnsupportedError)):
            survey(str(place))


def test_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "m")
    write_json(folder / "generation_config.json", SAMPLING)
    outcome = call_main(monkeypatch, capsys, "inspect", folder)
    words = (
        "95.8k = 95,808 parameters",
        "4, 2 for keys and values, of 16 features",
        "2,048 tokens",
    )
    for word in (*words, "a head of its own", "temperature 0.6", "eos_token </s>"):
        assert word in outcome.out, word
    save_file({"t": np.ones(2, np.float32)}, adapter(tmp_path))
    outcome = call_main(monkeypatch, capsys, "inspect", tmp_path)
    assert outcome.code == 0
    assert "problem" in outcome.out
    assert "merge it into its base model" in outcome.out


def test_every_key_is_there(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_checkpoint(tmp_path / "m")))
    report: dict[str, Any] = describe(str(checkpoint.origin)).to_json()
    assert report["provenance"]["name"] == "m"
    assert report["problem"] is None
