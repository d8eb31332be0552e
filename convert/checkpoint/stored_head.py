"""A head of its own beside the embedding, though config.json says that they share one matrix.

Whoever trains the head alone, or adds tokens to both, and merges, leaves such a file. Other readers
compare the two and use the head where it differs; so does this.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dsconv.convert.families import read_family
from dsconv.convert.files.json_file import ConfigReader

from .check import checked
from .checkpoint import CONFIG, Checkpoint, module_of
from .jobs import chunks_of
from .tensors import SafetensorsSource

TIED = "tie_word_embeddings"


def with_tied_name(source: SafetensorsSource, table: str, head: str) -> SafetensorsSource:
    """Some tied checkpoints store the one matrix under the head's name; give it the embedding's."""
    table_weight, head_weight = f"{table}.weight", f"{head}.weight"
    if table_weight in source.infos or head_weight not in source.infos:
        return source
    return source.with_infos({**source.infos, table_weight: source.infos[head_weight]})


def with_own_head(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, untied where the files hold a head that differs from the embedding.

    Reads both, in pieces, as far as they are equal.
    """
    decoder = checkpoint.decoder
    head = decoder.head_linear.name
    stored = [name for name in checkpoint.source.names() if module_of(name) == head]
    if not decoder.config.tie_word_embeddings or not any(
        0 not in checkpoint.source.shape(name) for name in stored
    ):
        return checkpoint
    config = {**checkpoint.config, TIED: False}
    untied = replace(
        checkpoint,
        config=config,
        decoder=read_family(ConfigReader(config, str(checkpoint.origin / CONFIG))),
        notes=(
            *checkpoint.notes,
            f"{checkpoint.origin}: {head!r} in the files differs from the embedding, though "
            f"config.json says {TIED}: the stored head is used",
        ),
    )
    return checkpoint if _is_the_embedding(untied) else untied


def _is_the_embedding(untied: Checkpoint) -> bool:
    """Does the head hold the numbers of the embedding, in whatever type?"""
    checked(untied)  # before anything is read of it
    table = f"{untied.decoder.table.name}.weight"
    head = f"{untied.decoder.head_linear.name}.weight"
    for start, stop in chunks_of(untied.parameters[table]):
        one, other = untied.rows(table, start, stop), untied.rows(head, start, stop)
        if not np.array_equal(one, other, equal_nan=True):
            return False
    return True
