"""Open whatever was given: an exported artifact, or a checkpoint (run by the torch reference)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..convert.onnx.names import FIXED_SHAPES, GENAI_CONFIG
from ..errors import UnsupportedError, UsageError
from .providers import refuse_unknown
from .session import Session

DTYPES = ("float32", "bfloat16")
DEFAULT_CACHE = "fp16"


@dataclass(frozen=True)
class Loaded:
    """A session, and the files that came with it (tokenizer, chat template, generation config)."""

    session: Session
    side_files: Mapping[str, bytes]
    config: Mapping[str, object]
    runtime: str
    provider: str


def is_native_file(path: Path) -> bool:
    return path.suffix == ".dsq" and os.path.isfile(path)


def is_onnx_artifact(path: Path) -> bool:
    return os.path.isfile(path / GENAI_CONFIG) or has_fixed_shapes(path)


def has_fixed_shapes(path: Path) -> bool:
    return os.path.isfile(path / FIXED_SHAPES)


def refuse_unknown_dtype(dtype: str) -> None:
    """Raises UsageError: the torch reference does not compute in it."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype: {dtype!r} is not known", f"choose {' or '.join(DTYPES)}")


def load(
    path: str,
    provider: str = "cpu",
    threads: int = 0,
    dtype: str = "float32",
    kv: str = DEFAULT_CACHE,
) -> Loaded:
    """Open an artifact or a checkpoint for running.

    Args:
        threads: 0 leaves the choice to the runtime (one per core).
        dtype: of the torch reference, float32 or bfloat16.
        kv: what the native engine keeps keys and values in, fp16 or int8.

    Raises:
        UsageError, InputError, UnsupportedError, ProviderError, DownloadError: with the cure.
    """
    refuse_unknown(provider)
    refuse_unknown_dtype(dtype)
    folder = Path(path).expanduser()
    if is_native_file(folder):
        return _load_native(folder, provider, threads, kv)
    if kv != DEFAULT_CACHE:
        raise UsageError(f"--kv {kv}: {path} is no native file", "leave out --kv")
    if is_onnx_artifact(folder):
        from ..convert.checkpoint import CONFIG, open_side_files
        from ..convert.json_file import read_json_object
        from .fixed_onnx_session import FixedOnnxSession
        from .onnx_session import OnnxSession

        kind = FixedOnnxSession if has_fixed_shapes(folder) else OnnxSession
        session: Session = kind(folder, provider, threads)
        config = read_json_object(folder / CONFIG)
        return Loaded(session, open_side_files(folder), config, "onnxruntime", provider)
    if provider != "cpu":
        raise UnsupportedError(
            f"{path}: a checkpoint runs on the torch reference, not on provider {provider!r}",
            "export it first: dsconv export --format onnx",
        )
    from ..convert.checkpoint import open_checkpoint
    from .torch_session import TorchSession

    checkpoint = open_checkpoint(path)
    torch_session = TorchSession(checkpoint, dtype, threads=threads)
    return Loaded(torch_session, checkpoint.side_files, checkpoint.config, "torch", "cpu")


def _load_native(path: Path, provider: str, threads: int, kv: str) -> Loaded:
    from ..convert.native.file import open_native_file
    from .native_session import NativeOptions, NativeSession

    if provider != "cpu":
        raise UnsupportedError(
            f"{path}: the native engine runs on the CPU, not on provider {provider!r}",
            "leave out --provider, or export with --format onnx",
        )
    options = NativeOptions(threads=threads, cache=kv)
    file = open_native_file(path)
    session = NativeSession(file, options)
    return Loaded(session, file.side_files, file.metadata.config, "native", provider)
