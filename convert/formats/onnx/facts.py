"""What a graph says of itself, in the `metadata_props` of the file."""

from __future__ import annotations

from collections import Counter

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.manifest import announced_provenance
from dsconv.quant.labels import label_of


def facts_of(checkpoint: Checkpoint, dialect: str) -> dict[str, str]:
    """Of the checkpoint that is exported: family, source, and how its matrices are stored."""
    source = announced_provenance(checkpoint).to_json()
    while isinstance(source["made_from"], dict):  # back to the model that was quantized first
        source = {"commit": None, "made_from": None, **source["made_from"]}
    found = {
        "dsconv.model_type": checkpoint.decoder.model_type,
        "dsconv.dialect": dialect,
        "dsconv.quantization": _quantization(checkpoint),
        "dsconv.source": str(source.get("name", "")),
        "dsconv.source_commit": str(source["commit"] or ""),
    }
    return {key: value for key, value in found.items() if value}


def _quantization(checkpoint: Checkpoint) -> str:
    """`int4-g32: 14, int8-g32: 1`: label and number of matrices, the most frequent first."""
    names = (name for name, p in checkpoint.parameters.items() if len(p.shape) == 2)
    counts = Counter(label_of(checkpoint.scheme(name)) for name in names)
    return ", ".join(f"{label}: {count}" for label, count in counts.most_common())
