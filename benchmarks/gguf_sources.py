"""KL of a GGUF file in IQ4_NL or MXFP4 from its float original: dsconv's reading, and llama.cpp's.

    python benchmarks/gguf_sources.py MODEL TEXT [POSITIONS]

MODEL is a GGUF file of any other type; what its weights stand for is the original. Its matrices are
rounded to the nearest value of the type, the largest of every block to the largest value. llama.cpp
(the package xllamacpp) rounds activations to 8 bits where it multiplies such blocks; dsconv does
not; so it also runs the same values in float32, as the package gguf decodes them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from dsconv.convert.open import open_checkpoint
from dsconv.runtime.sessions.torch_reference import TorchSession
from dsconv.runtime.text.tokenizer import TextTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from processes.llama_cpp_process import next_token_log_probabilities

Floats = NDArray[np.float64]
BLOCK = 32
IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])  # twice the values


def packed(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The first half of a block in low nibbles, the second in high ones."""
    return codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << 4


def nearest(values: Floats, table: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.abs(values[..., None] - table).argmin(-1).astype(np.uint8)


def iq4_nl(matrix: Floats) -> NDArray[np.uint8]:
    blocks = matrix.reshape(len(matrix), -1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scales = (largest / -127).astype(np.float16)
    codes = nearest(blocks / np.where(scales == 0, 1, scales), IQ4_NL)
    return np.concatenate([scales.view(np.uint8), packed(codes)], -1).reshape(len(matrix), -1)


def mxfp4(matrix: Floats) -> NDArray[np.uint8]:
    blocks = matrix.reshape(len(matrix), -1, BLOCK)
    largest = np.abs(blocks).max(-1, keepdims=True)
    exponents = np.floor(np.log2(np.where(largest == 0, 1, largest))) - 2
    codes = nearest(blocks / 2.0 ** (exponents - 1), E2M1)
    bytes_ = (exponents + 127).astype(np.uint8)
    return np.concatenate([bytes_, packed(codes)], -1).reshape(len(matrix), -1)


TYPES = {Kind.IQ4_NL: iq4_nl, Kind.MXFP4: mxfp4}


def rounded(source: Path, kind: Kind, path: Path, decoded: bool = False) -> Path:
    """The same file with its matrices in another type; decoded: what that stands for in float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        if field.name.startswith("dsconv."):  # a seal over other bytes
            continue
        item = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], item)
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if data.ndim == 2:
            blocks = TYPES[kind](data.astype(np.float64))
            if decoded:
                writer.add_tensor(tensor.name, gguf.quants.dequantize(blocks, kind))
            else:
                writer.add_tensor(tensor.name, blocks, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def log_softmax(logits: NDArray[np.float32]) -> Floats:
    wide = logits.astype(np.float64)
    return wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)


def mean_kl(reference: Floats, other: Floats) -> float:
    return float((np.exp(reference) * (reference - other)).sum(-1).mean())


def main(model: Path, text: Path, positions: int) -> None:
    original = open_checkpoint(str(model))
    tokenizer = TextTokenizer(original.side_files)
    tokens = tokenizer.encode(text.read_text(encoding="utf-8")[:20_000])
    places = np.linspace(16, 255, positions).astype(int)
    prompts = [tokens[: place + 1] for place in places]
    reference = log_softmax(TorchSession(original).score(tokens[:256])[places])
    with tempfile.TemporaryDirectory() as scratch:
        for kind in TYPES:
            path = rounded(model, kind, Path(scratch, f"{kind.name}.gguf"))
            decoded = rounded(model, kind, Path(scratch, "decoded.gguf"), decoded=True)
            session = TorchSession(open_checkpoint(str(path)))
            found = [log_softmax(session.score(tokens[:256])[places])]
            for file in (path, decoded):
                found.append(
                    next_token_log_probabilities(file, prompts, reference.shape[1], exact=True)
                )
            ours, maker, in_float = (mean_kl(reference, other) for other in found)
            print(
                f"{kind.name:8} KL {ours:.5f}, llama.cpp {maker:.5f} (ratio {ours / maker:.4f}), "
                f"llama.cpp in float32 {in_float:.5f} (ratio {ours / in_float:.4f})"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 16)
