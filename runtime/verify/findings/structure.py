"""Does an artifact compute with the numbers that the original's config.json gives?

Sizes, theta, epsilon and their like are compared with the original's; then the graph or program
with what those give (weights are compared in `matrices.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint
from dsconv.convert.families.base import Decoder
from dsconv.convert.files.safetensors import read_rows
from dsconv.convert.formats.native.file import NativeFile
from dsconv.convert.formats.native.program import build_program
from dsconv.convert.formats.native.steps import (
    AttentionStep,
    EmbeddingStep,
    HeadStep,
    LinearStep,
    NormStep,
    ProgramStep,
)
from dsconv.runtime.sessions.load import is_onnx_artifact
from dsconv.runtime.verify.verdict import Finding

from .artifact_weights import NativeWeights, Weights

CURE = "export the artifact again from the model it was made from"
MAX_FINDINGS = 12  # a wrong head count changes every layer
# An export may untie what it quantizes differently; the weights are compared all the same.
FREE_FIELDS = ("tie_word_embeddings",)


def structure_findings(path: Path, artifact: Weights, reference: Decoder) -> tuple[Finding, ...]:
    """Everything but the weights' values; `path` is where `artifact` was opened.

    Raises:
        InputError: the graph cannot be read.
    """
    found = list(config_findings(artifact.decoder, reference))
    if isinstance(artifact, NativeWeights):
        found += program_findings(artifact.file, artifact.decoder)
    elif isinstance(artifact, Checkpoint) and is_onnx_artifact(path):
        from dsconv.convert.formats.onnx.graph_check import check_graph

        differences = check_graph(path, artifact)
        found += [Finding(entry.place, entry.message, CURE) for entry in differences]
    kept = found[:MAX_FINDINGS]
    if len(found) > MAX_FINDINGS:
        kept.append(Finding(path.name, f"{len(found)} such differences in all", CURE))
    return tuple(kept)


def config_findings(artifact: Decoder, reference: Decoder) -> Iterator[Finding]:
    """One per number or switch in which the two decoders differ."""
    if artifact.architecture != reference.architecture:
        what = f"is {artifact.architecture}, the original {reference.architecture}"
        yield Finding(CONFIG, f"architecture: {what}", CURE)
    for key, mine, theirs in _differences(artifact.config, reference.config, ""):
        if key not in FREE_FIELDS:
            yield Finding(CONFIG, f"{key} is {mine}, the original has {theirs}", CURE)


def _differences(mine: Any, theirs: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if is_dataclass(mine) and type(mine) is type(theirs):
        for field in fields(mine):
            name = f"{key}.{field.name}" if key else field.name
            yield from _differences(getattr(mine, field.name), getattr(theirs, field.name), name)
    elif isinstance(mine, float) and isinstance(theirs, float):
        if not math.isclose(mine, theirs, rel_tol=1e-6):  # GGUF keeps them in single precision
            yield key, mine, theirs
    elif mine != theirs:
        yield key, mine, theirs


def program_findings(file: NativeFile, decoder: Decoder) -> Iterator[Finding]:
    """The steps of a `.dsq` file against those that its own config gives."""
    program, ropes = build_program(decoder)
    found = file.metadata.program
    if len(found.steps) != len(program.steps) or found.buffers != program.buffers:
        what = f"{len(found.steps)} steps, the config gives {len(program.steps)}"
        yield Finding("program", what, CURE)
    for mine, theirs in zip(found.steps, program.steps, strict=False):
        for key, left, right in _differences(mine, theirs, ""):
            what = f"{key} is {left}, the config gives {right}"
            yield Finding(_place(theirs, decoder), what, CURE)
        if mine.op != theirs.op:
            what = f"is a step {mine.op!r}, not {theirs.op!r}"
            yield Finding(_place(theirs, decoder), what, CURE)
    for name, rope in ropes.items():
        info = file.tensors.get(name)
        if info is None or not np.array_equal(read_rows(info), rope.frequencies()):
            yield Finding(name, f"rotary frequencies are not those of theta {rope.theta:g}", CURE)
    length = file.metadata.context_length
    if length != decoder.config.max_position_embeddings:
        expected = decoder.config.max_position_embeddings
        yield Finding("context_length", f"is {length}, the config gives {expected}", CURE)


def _place(step: ProgramStep, decoder: Decoder) -> str:
    if isinstance(step, AttentionStep):
        return decoder.attention_name(step.layer)
    if isinstance(step, LinearStep):
        return ", ".join(matrix.weight.removesuffix(".weight") for matrix in step.matrices)
    if isinstance(step, NormStep):
        return step.norm.gain.removesuffix(".weight")
    if isinstance(step, (EmbeddingStep, HeadStep)):
        return step.weight.removesuffix(".weight")
    raise TypeError(f"step {step!r} is not known")
