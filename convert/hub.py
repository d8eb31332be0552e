"""The only module that talks to the network: models of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import DownloadError, InputError, UnsupportedError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
NEEDED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "LICENSE")
NOT_NEEDED = ("*/*", "*consolidated*", "onnx/*", "original/*")


def looks_like_hub_name(model: str) -> bool:
    return HUB_NAME.fullmatch(model) is not None


def config_folder(model: str) -> Path:
    """Download nothing but config.json -> local folder, which may hold more from before."""
    return snapshot(model, ("config.json",))


def snapshot(model: str, needed: Sequence[str] = NEEDED) -> Path:
    """Download the needed files of `name` or `name@revision` at a pinned commit -> local folder.

    Raises:
        DownloadError: the hub cannot be reached, or has no such model.
        InputError: the hub does not allow such a name.
        UnsupportedError: the model has no safetensors files.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    name, _, revision = model.partition("@")
    try:
        found = HfApi().model_info(name, revision=revision or None)
        if not any(file.rfilename.endswith(".safetensors") for file in found.siblings or ()):
            raise UnsupportedError(
                f"{model}: no safetensors files (pickle files can run code and are not fetched)",
                "choose a model that has them",
            )
        return Path(
            snapshot_download(
                name,
                revision=found.sha,
                allow_patterns=list(needed),
                ignore_patterns=list(NOT_NEEDED),
            )
        )
    except HFValidationError as error:
        raise InputError(
            f"{model}: neither a file or folder nor a hub name: {error}",
            "give a folder, a .gguf file, or a hub name (org/model)",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DownloadError(
            f"{model}: cannot download: {first_line}",
            "check the name and the network; HF_ENDPOINT chooses a mirror, HF_TOKEN grants access",
        ) from error
    except Exception as error:  # the HTTP library's own transport errors
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore2", "requests"):
            raise
        raise DownloadError(
            f"{model}: cannot reach the hub: {type(error).__name__}",
            "check the network; the variable HF_ENDPOINT chooses a mirror",
        ) from error
