"""Open whatever was given: an exported artifact, or a checkpoint (run by the torch reference)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dsconv.convert.formats.onnx.names import FIXED_SHAPES, GENAI_CONFIG
from dsconv.errors import UnsupportedError, UsageError
from dsconv.runtime.console import working

from .placement import Placement
from .providers import choose_provider, refuse_unknown, torch_device_name
from .session import Session

DTYPES = ("float32", "bfloat16")
DEFAULT_CACHE = "fp16"


@dataclass(frozen=True)
class Loaded:
    """A session, and the files that came with it (tokenizer, chat template, generation config).

    placement: which nodes run where, for an execution provider other than the CPU's.
    """

    session: Session
    side_files: Mapping[str, bytes]
    config: Mapping[str, object]
    runtime: str
    provider: str
    placement: Placement | None = None

    @property
    def nodes_on_provider(self) -> float:
        """Share of the nodes on the provider asked for; shape arithmetic may be the CPU's."""
        if self.placement is None:
            return 1.0
        return self.placement.node_share(choose_provider(self.provider).provider.name)


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
    allow_fallback: bool = False,
) -> Loaded:
    """Open an artifact or a checkpoint for running.

    Args:
        provider: `NAME[:DEVICE]` of an execution provider, or `torch:DEVICE` for a checkpoint.
        threads: 0 leaves the choice to the runtime (one per core).
        dtype: of the torch reference, float32 or bfloat16.
        kv: what the native engine keeps keys and values in, fp16 or int8.
        allow_fallback: an execution provider may leave nodes to the CPU.

    Raises:
        UsageError, InputError, UnsupportedError, ProviderError, DownloadError: with the cure.
    """
    refuse_unknown(provider)
    refuse_unknown_dtype(dtype)
    with working(f"load {Path(path).name or path}"):
        return _load(path, provider, threads, dtype, kv, allow_fallback)


def load_rounding(path: str, threads: int, kv: str, activations: str) -> Loaded:
    """Open a native file whose activations are rounded alike in every pass, as in a batch.

    Raises:
        UsageError, InputError, ProviderError: with the cure.
    """
    file = Path(path).expanduser()
    if not is_native_file(file):
        raise UsageError(
            f"--activations {activations}: {path} is no native file", "leave out --activations"
        )
    with working(f"load {file.name}"):
        return _load_native(file, "cpu", threads, kv, activations)


def _load(
    path: str, provider: str, threads: int, dtype: str, kv: str, allow_fallback: bool
) -> Loaded:
    folder = Path(path).expanduser()
    if is_native_file(folder):
        return _load_native(folder, provider, threads, kv)
    if kv != DEFAULT_CACHE:
        raise UsageError(f"--kv {kv}: {path} is no native file", "leave out --kv")
    if is_onnx_artifact(folder):
        from dsconv.convert.checkpoint.checkpoint import CONFIG, open_side_files
        from dsconv.convert.files.json_file import read_json_object

        from .onnx import OnnxSession
        from .onnx_fixed import FixedOnnxSession

        if torch_device_name(provider) is not None:
            raise UnsupportedError(
                f"{path}: torch runs checkpoints, not ONNX graphs", "use the checkpoint"
            )
        kind = FixedOnnxSession if has_fixed_shapes(folder) else OnnxSession
        session = kind(folder, provider, threads, allow_fallback)
        config = read_json_object(folder / CONFIG)
        files = open_side_files(folder)
        return Loaded(session, files, config, "onnxruntime", provider, session.placement)
    return _load_checkpoint(path, provider, threads, dtype)


def _load_checkpoint(path: str, provider: str, threads: int, dtype: str) -> Loaded:
    """By the reference on the CPU, or by the torch path of an accelerator."""
    device = torch_device_name(provider)
    if device is None and provider != "cpu":
        raise UnsupportedError(
            f"{path}: a checkpoint runs on torch, not on provider {provider!r}",
            "export it first (dsconv export --format onnx), or use --provider torch:DEVICE",
        )
    from dsconv.runtime.model_paths import open_model

    from .torch_device import find_device, import_torch

    session: Session
    if device is not None:
        found = find_device(device)
        from .torch_device_session import AcceleratorSession

        checkpoint = open_model(path)
        session = AcceleratorSession(checkpoint, found, threads)
    else:
        import_torch()
        from .torch_reference import TorchSession

        checkpoint = open_model(path)
        session = TorchSession(checkpoint, dtype, threads=threads)
    return Loaded(session, checkpoint.side_files, checkpoint.config, "torch", provider)


def _load_native(
    path: Path, provider: str, threads: int, kv: str, activations: str | None = None
) -> Loaded:
    from dsconv.convert.formats.native.file import open_native_file

    from .native import NativeOptions, NativeSession

    if provider != "cpu":
        raise UnsupportedError(
            f"{path}: the native engine runs on the CPU, not on provider {provider!r}",
            "leave out --provider, or export with --format onnx",
        )
    options = NativeOptions(threads=threads, cache=kv)
    if activations is not None:
        options = replace(options, decode=activations, prefill=activations, score=activations)
    file = open_native_file(path)
    session = NativeSession(file, options)
    return Loaded(session, file.side_files, file.metadata.config, "native", provider)
