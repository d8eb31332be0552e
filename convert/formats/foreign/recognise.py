"""Who quantized a checkpoint, and what its settings say: config.json, or a file beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from dsconv.convert.checkpoint.quantization_config import METHOD
from dsconv.convert.files.json_file import ConfigReader, read_json_object
from dsconv.errors import UnsupportedError

from .awq import read_awq
from .bitsandbytes import read_bitsandbytes
from .compressed_tensors import read_compressed_tensors
from .config_keys import FROM_THE_ORIGINAL, refuse_others
from .fp8 import read_fp8, read_modelopt, read_quark
from .gptq import read_gptq
from .layout import Rules
from .mlx import read_mlx

CONFIG_KEY, MLX_KEY = "quantization_config", "quantization"
MODELOPT_FILE = "hf_quant_config.json"
# Of checkpoints older than `quantization_config`.
FILES: Mapping[str, Callable[[ConfigReader], Rules]] = {
    "quantize_config.json": read_gptq,
    "quant_config.json": read_awq,
    MODELOPT_FILE: read_modelopt,
}


def read_auto_round(reader: ConfigReader) -> Rules:
    """AutoRound's own settings around the packing of GPTQ or AWQ.

    Raises:
        InputError, UnsupportedError: with the key and the cure.
    """
    form = reader.string("packing_format", reader.string("backend", "auto_round"))
    refuse_others(reader, {"data_type": ("int",), "extra_config": ({},)})
    plain = {key: reader.data[key] for key in ("bits", "group_size", "sym") if reader.has(key)}
    if "auto_gptq" in form:
        return read_gptq(ConfigReader(plain, reader.where))
    if "auto_awq" in form:
        return read_awq(ConfigReader(plain, reader.where))
    raise UnsupportedError(
        f"{reader.where}: packing_format {form!r} of AutoRound is not supported",
        f"supported: auto_round:auto_gptq, auto_round:auto_awq; or {FROM_THE_ORIGINAL}",
    )


METHODS: Mapping[str, Callable[[ConfigReader], Rules]] = {
    "gptq": read_gptq,
    "awq": read_awq,
    "bitsandbytes": read_bitsandbytes,
    "fp8": read_fp8,
    "fbgemm_fp8": read_fp8,
    "modelopt": read_modelopt,
    "modelopt_fp4": read_modelopt,
    "quark": read_quark,
    METHOD: read_compressed_tensors,
    "auto-round": read_auto_round,
    "auto_round": read_auto_round,
    "intel/auto-round": read_auto_round,
}
# What is known and not read, and why.
UNREAD: Mapping[str, str] = {
    "hqq": "HQQ keeps its groups in an order of its own",
    "aqlm": "AQLM adds vectors of codebooks",
    "exl2": "EXL2 mixes widths within one matrix, in the order of its kernel",
    "exl3": "EXL3 stores the path through a trellis",
    "spqr": "SpQR keeps outliers in a sparse matrix beside the codes",
    "torchao": "torchao stores tensor classes of its own",
    "vptq": "VPTQ stores indices into codebooks of vectors",
    "quip": "QuIP# rotates the weights",
    "higgs": "HIGGS rotates the weights",
    "fp_quant": "FP-Quant rotates the weights",
    "quanto": "Quanto stores tensor classes of its own",
    "eetq": "EETQ packs weights for one kernel",
    "bitnet": "BitNet's network rounds its activations",
    "mxfp4": "this method is that of mixtures of experts, which are no family here",
    "gguf": "config.json names GGUF, which is a file of its own: give its path",
    "marlin": "Marlin packs weights for one kernel",
    "squeezellm": "SqueezeLLM stores a table of values per row",
    "qqq": "QQQ packs weights for one kernel",
    "paroquant": "ParoQuant rotates the weights",
    "sinq": "SINQ has scales along both axes",
}


def recognise(folder: Path, config: Mapping[str, object], where: str) -> Rules | None:
    """The rules that a checkpoint's settings give; None where nobody quantized it.

    Raises:
        InputError, UnsupportedError: with the key and the cure.
    """
    reader = ConfigReader(config, where)
    child = reader.child(CONFIG_KEY)
    mlx = reader.child(MLX_KEY)
    if child is not None and child.has("quant_method"):
        method = child.string("quant_method")
        read = METHODS.get(method.lower())
        if read is None:
            raise _unknown(child, method)
        return read(child)
    if mlx is not None or (child is not None and child.has("bits")):
        return read_mlx(mlx or child)  # type: ignore[arg-type]
    if child is not None:
        if child.has("quant_algo") or child.has("producer"):
            return read_modelopt(child)
        if child.data:
            raise _unknown(child, "")
    for name, read in FILES.items():
        path = folder / name
        if os.path.lexists(path):
            return read(ConfigReader(read_json_object(path), str(path)))
    return None


def _unknown(reader: ConfigReader, method: str) -> UnsupportedError:
    why = UNREAD.get(method.lower())
    what = f": {why}" if why else ""
    return UnsupportedError(
        f"{reader.where}: quant_method {method[:60]!r} is not supported{what}",
        f"supported: {', '.join(sorted({*METHODS, 'MLX'}))}; or {FROM_THE_ORIGINAL}",
    )
