"""Which files of a model are worth fetching: one set of weights, and what belongs to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from dsconv.convert.checkpoint.checkpoint import CONFIG
from dsconv.convert.checkpoint.tensors import read_weight_map
from dsconv.convert.checkpoint.weight_files import (
    ADAPTER_CONFIG,
    MERGE_FIRST,
    SUFFIX,
    choose_weight_files,
    index_of,
)
from dsconv.convert.files.gguf_parts import part_names
from dsconv.errors import DownloadError, UnsupportedError

from .listing import Listing, RemoteFile, find
from .model_name import ModelReference
from .name_checks import check_file_names

NEEDED = ("*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "LICENSE")
NOT_NEEDED = ("*/*", "*consolidated*")
NOT_A_MODEL = re.compile(r"(?:^|[-._/])(?:mmproj|imatrix|mtmd)(?:[-._]|$)")
SHOWN = 24  # names in a message


def side_files(listing: Listing, patterns: Sequence[str] = NEEDED) -> tuple[RemoteFile, ...]:
    """Everything but the weights; small.

    Raises:
        DownloadError: two of them collide.
    """
    files = tuple(
        file
        for file in listing.files
        if any(fnmatch(file.name, pattern) for pattern in patterns)
        and not any(fnmatch(file.name, pattern) for pattern in NOT_NEEDED)
    )
    check_file_names((file.name for file in files), str(listing.reference))
    return files


def weights(listing: Listing, folder: Path) -> tuple[RemoteFile, ...]:
    """The shards that the index names (`folder` holds it already), or all there are without one.

    Raises:
        DownloadError: the index names what the hub does not have, or names collide.
        InputError: the index is damaged, or there is no whole set.
    """
    model = str(listing.reference)
    names = [file.name for file in listing.files]
    index = index_of(names)
    weight_map = read_weight_map(folder / index) if index else None
    chosen = choose_weight_files(model, names, weight_map)
    found = tuple(file for file in listing.files if file.name in chosen.files)
    missing = sorted(set(chosen.files) - {file.name for file in found})
    if missing:
        raise DownloadError(
            f"{model}: {index} names {missing[0]!r}, which the hub does not have",
            "choose another revision",
        )
    check_file_names((file.name for file in found), model)
    return found


def refuse_without_weights(listing: Listing) -> None:
    """Before anything is fetched.

    Raises:
        UnsupportedError: no safetensors files, or those of an adapter only.
        InputError: not one whole set of them.
    """
    model, names = str(listing.reference), [file.name for file in listing.files]
    if index_of(names) is not None:
        return
    if not has_safetensors(listing) and (models := gguf_models(listing)):
        raise only_ggufs(listing, models)
    if ADAPTER_CONFIG in names and CONFIG not in names:
        raise UnsupportedError(f"{model}: holds an adapter and no model", MERGE_FIRST)
    choose_weight_files(model, names)


def one_file(listing: Listing, name: str) -> RemoteFile:
    """Raises DownloadError when the model has no such file."""
    found = find(listing.files, name)
    if found is None:
        raise DownloadError(f"{listing.reference}: no file {name}", _hint(gguf_models(listing)))
    check_file_names([name], str(listing.reference))
    return found


def has_safetensors(listing: Listing) -> bool:
    return any(file.name.endswith(SUFFIX) and "/" not in file.name for file in listing.files)


def gguf_models(listing: Listing) -> list[tuple[RemoteFile, ...]]:
    """The GGUF models of a repository, each with all its parts that are there.

    What llama.cpp takes beside a model is none: the projector of images, a matrix of importance.
    """
    found: dict[tuple[str, ...], list[RemoteFile]] = {}
    for file in listing.files:
        name = file.name.lower()
        if name.endswith(".gguf") and not NOT_A_MODEL.search(name):
            found.setdefault(part_names(file.name), []).append(file)
    return [tuple(files) for files in found.values()]


def chosen_gguf(listing: Listing, reference: ModelReference) -> tuple[RemoteFile, ...]:
    """The parts of the GGUF model that is asked for; of no particular one, the only one.

    Nothing where none is asked for and there are safetensors files, or several GGUF models.

    Raises:
        DownloadError: the model has no such file, or not all parts of it, or several.
    """
    if reference.file is not None:
        names = part_names(reference.file)
    elif reference.label is not None:
        names = part_names(_by_label(listing, reference.label))
    else:
        models = gguf_models(listing)
        if has_safetensors(listing) or len(models) != 1:
            return ()
        names = part_names(models[0][0].name)
    return tuple(one_file(listing, name) for name in names)


def _by_label(listing: Listing, label: str) -> str:
    word = re.compile(rf"(?:^|[-._/]){re.escape(label)}(?:[-./]|$)", re.IGNORECASE)
    models = gguf_models(listing)
    found = [files for files in models if word.search(files[0].name)]
    if len(found) == 1:
        return found[0][0].name
    if found:
        raise DownloadError(
            f"{listing.reference}: {label} stands in {_count(found)}: {_names(found)}",
            f"name one of them: hf://{listing.reference}/{found[0][0].name}",
        )
    raise DownloadError(f"{listing.reference}: no GGUF file of {label}", _hint(models))


def _count(models: Sequence[Sequence[RemoteFile]]) -> str:
    return f"{len(models)} GGUF model{'s' if len(models) > 1 else ''}"


def _names(models: Sequence[Sequence[RemoteFile]]) -> str:
    shown = [
        f"{files[0].name}{f' ({len(files)} parts)' if len(files) > 1 else ''}"
        for files in models[:SHOWN]
    ]
    more = [f"and {len(models) - SHOWN} more"] if len(models) > SHOWN else []
    return ", ".join(shown + more)


def _hint(models: Sequence[Sequence[RemoteFile]]) -> str:
    return f"it has {_names(models)}" if models else "it has no GGUF files"


def only_ggufs(listing: Listing, models: Sequence[Sequence[RemoteFile]]) -> UnsupportedError:
    """The refusal of a repository without safetensors files."""
    return UnsupportedError(
        f"{listing.reference}: no safetensors files, {_count(models)}: {_names(models)}",
        f"name one of them: hf://{listing.reference}/{models[0][0].name}",
    )
