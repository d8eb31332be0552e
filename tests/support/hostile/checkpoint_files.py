"""Files of a checkpoint in the layout of Hugging Face, and of one for Ascend."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from small_models import LLAMA, LLAMA3, QWEN3, write_checkpoint

from dsconv.convert.checkpoint.tensors import ASCEND_DESCRIPTION
from dsconv.convert.formats.ascend.export import export_ascend
from dsconv.convert.open import open_checkpoint

from .mutations import mutate_json, mutate_safetensors
from .subjects import SIZES, JsonFiles, Subject, quantized, read_all

YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
}
FAMILIES: tuple[Mapping[str, Any], ...] = (
    {"rope_scaling": YARN},
    {**LLAMA, "rope_scaling": LLAMA3, "attention_bias": True, "mlp_bias": True},
    {
        **QWEN3,
        "tie_word_embeddings": True,
        "layer_types": ["full_attention"],
        "rope_theta": 1e6,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0},
    },
)


class SafetensorsFiles:
    """Half of them the weights of a model, half a file of all dtypes."""

    def __init__(self, folder: Path) -> None:
        self.model = write_checkpoint(folder / "m", **SIZES)
        self.path = self.model / "model.safetensors"
        self.weights = self.path.read_bytes()
        self.loose = folder / "loose.safetensors"
        self.mixture = all_dtypes(self.loose)
        self.is_model = False

    def prepare(self, rng: random.Random) -> int:
        self.is_model = rng.random() < 0.5
        data = mutate_safetensors(rng, self.weights if self.is_model else self.mixture)
        (self.path if self.is_model else self.loose).write_bytes(data)
        return len(data)

    def drive(self) -> None:
        from dsconv.convert.checkpoint.manifest import hash_tensors
        from dsconv.convert.files.safetensors import read_metadata, read_rows, read_tensor_infos

        if self.is_model:
            read_all(open_checkpoint(str(self.model)))
            return
        read_metadata(self.loose)
        for info in read_tensor_infos(self.loose).values():
            rows = info.shape[0] if info.shape else 1
            read_rows(info, 0, min(rows, 2))
        hash_tensors(self.loose)


def all_dtypes(path: Path) -> bytes:
    from dsconv.convert.files.safetensors import DTYPES, PlannedTensor, SafetensorsWriter

    planned = [PlannedTensor(f"t.{dtype}", dtype, (2, 3)) for dtype in DTYPES]
    with SafetensorsWriter(path, planned, {"format": "pt", "note": "x"}) as writer:
        for tensor in planned:
            writer.write(tensor.name, np.zeros(tensor.nbytes, np.uint8))
    return path.read_bytes()


def indexes(folder: Path) -> JsonFiles:
    model = write_checkpoint(folder / "m", shards=3, **SIZES)
    path = model / "model.safetensors.index.json"
    return JsonFiles(path, [path.read_text()], lambda: read_all(open_checkpoint(str(model))))


def configs(folder: Path) -> Subject:
    """config.json of every family, with the weights that belong to it beside it."""

    class Configs:
        def __init__(self) -> None:
            self.models = [
                write_checkpoint(folder / f"m{index}", **{**SIZES, **family})
                for index, family in enumerate(FAMILIES)
            ]
            self.texts = [(model / "config.json").read_text() for model in self.models]
            self.model = self.models[0]

        def prepare(self, rng: random.Random) -> int:
            number = rng.randrange(len(self.models))
            self.model = self.models[number]
            data = mutate_json(rng, self.texts[number])
            (self.model / "config.json").write_bytes(data)
            return len(data)

        def drive(self) -> None:
            from dsconv.convert.checkpoint.checkpoint import eos_token_ids
            from dsconv.convert.config_only import open_announced

            announced = open_announced(self.model)
            announced.decoder.config.rope.frequencies()
            checkpoint = open_checkpoint(str(self.model))
            read_all(checkpoint)
            eos_token_ids(checkpoint)

    return Configs()


def quantizations(folder: Path) -> Subject:
    """config.json of quantized checkpoints, changed in its quantization_config."""

    class Quantizations:
        def __init__(self) -> None:
            model = write_checkpoint(folder / "m", **SIZES)
            ways: list[dict[str, Any]] = [
                {"bits": 4, "head_bits": 8, "embedding_bits": 4, "symmetric": False},
                {"bits": 8, "activations": "int8"},
                {"bits": 4, "scheme_name": "scale-min", "embedding_bits": 6},
            ]
            self.models = [quantized(model, folder / f"q{i}", **way) for i, way in enumerate(ways)]
            self.texts = [(model / "config.json").read_text() for model in self.models]
            self.model = self.models[0]

        def prepare(self, rng: random.Random) -> int:
            number = rng.randrange(len(self.models))
            self.model = self.models[number]
            content = json.loads(self.texts[number])
            part = mutate_json(rng, json.dumps(content.pop("quantization_config")))
            text = json.dumps(content)[:-1].encode() + b', "quantization_config": ' + part + b"}"
            (self.model / "config.json").write_bytes(text)
            return len(text)

        def drive(self) -> None:
            checkpoint = open_checkpoint(str(self.model))
            read_all(checkpoint)
            for name in checkpoint.parameters:
                if checkpoint.scheme(name) is not None:
                    checkpoint.quantized_rows(name, 0, 4)

    return Quantizations()


def descriptions(folder: Path) -> Subject:
    """quant_model_description.json of a folder for Ascend."""

    class Descriptions:
        def __init__(self) -> None:
            model = write_checkpoint(folder / "m", **SIZES)
            source = quantized(model, folder / "q", bits=8, activations="int8")
            self.folder = folder / "ascend"
            export_ascend(open_checkpoint(str(source)), self.folder)
            self.text = (self.folder / ASCEND_DESCRIPTION).read_text()

        def prepare(self, rng: random.Random) -> int:
            data = mutate_json(rng, self.text)
            (self.folder / ASCEND_DESCRIPTION).write_bytes(data)
            return len(data)

        def drive(self) -> None:
            read_all(open_checkpoint(str(self.folder)))

    return Descriptions()
