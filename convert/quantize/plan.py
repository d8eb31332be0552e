"""What a quantization run will write: the config of its output, and one job per parameter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint, module_of
from dsconv.convert.checkpoint.jobs import Job
from dsconv.convert.checkpoint.quantization_config import build_quantization_config
from dsconv.convert.families import read_family
from dsconv.convert.families.inventory import Role, parameters_of
from dsconv.convert.files.json_file import ConfigReader, read_json_object
from dsconv.errors import InputError, UsageError
from dsconv.quant.labels import parse_label
from dsconv.quant.schemes import Scheme

from .options import CALIBRATED, FLOAT_BITS, QuantizeOptions


def read_allocation(path: Path) -> dict[str, str]:
    """The bits per matrix that an earlier run wrote to its manifest.

    Raises:
        InputError: there are none.
    """
    recipe = read_json_object(path).get("recipe")
    labels = recipe.get("allocation") if isinstance(recipe, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise InputError(
            f"{path}: no recipe.allocation",
            "use the dsconv.json of a run with --target-bpw, --target-size or --max-kl",
        )
    for module, label in labels.items():
        if not isinstance(label, str):
            raise InputError(f"{path}: {module}: not a label", "write e.g. int4-g32")
        parse_label(label)
    return labels


def plan(checkpoint: Checkpoint, options: QuantizeOptions) -> tuple[dict[str, Any], list[Job]]:
    """Decide every parameter's scheme -> (config.json of the output, jobs in network order).

    A tied matrix is stored once when it is quantized as a whole. When only the head is to be
    quantized the two part: the head gets codes of its own and the embedding stays as it is.
    """
    decoder = checkpoint.decoder
    tied = decoder.config.tie_word_embeddings
    head_bits = options.head_bits
    if head_bits is None:
        shared = tied and options.embedding_bits != FLOAT_BITS
        head_bits = options.embedding_bits if shared else options.bits
    elif tied and options.embedding_bits != FLOAT_BITS and head_bits != options.embedding_bits:
        raise UsageError(
            f"head bits {head_bits} differ from embedding bits {options.embedding_bits}, "
            "but this model shares one matrix between them",
            "quantize both with the same bits, or leave the embedding at 16",
        )
    config = dict(checkpoint.config)
    if (
        tied
        and not options.allocation
        and options.embedding_bits == FLOAT_BITS
        and head_bits != FLOAT_BITS
    ):
        config["tie_word_embeddings"] = False
    bits = {
        Role.LINEAR: options.bits,
        Role.EMBEDDING: options.embedding_bits,
        Role.HEAD: head_bits,
        Role.VECTOR: FLOAT_BITS,
    }
    jobs = []
    for parameter in parameters_of(read_family(ConfigReader(config, CONFIG))):
        scheme = options.scheme(bits[parameter.role], parameter.role)
        label = options.allocation.get(module_of(parameter.name))
        if label is not None and parameter.role is not Role.VECTOR:
            scheme = parse_label(label)
        if scheme and scheme.rounds_inputs and parameter.role is not Role.LINEAR:
            raise UsageError(
                f"{label} for {module_of(parameter.name)}", "embedding and head take weights only"
            )
        if scheme is not None:
            scheme = scheme.for_columns(parameter.shape[1])
        in_source = parameter.name in checkpoint.parameters
        source = parameter.name if in_source else f"{decoder.table.name}.weight"
        jobs.append(Job(parameter, source, scheme, checkpoint.float_dtype(source)))
    schemes = {job.module: job.scheme for job in jobs if job.parameter.role is not Role.VECTOR}
    # A tied head is a module too, though it has no tensor of its own.
    schemes.setdefault(decoder.head_linear.name, schemes[decoder.table.name])
    if any(schemes.values()):
        config["quantization_config"] = build_quantization_config(
            schemes, [decoder.table.name], decoder.head_linear.name
        )
    if options.method == CALIBRATED:
        jobs = [_with_room_for_correction(job, schemes.get(job.module)) for job in jobs]
    return config, jobs


def _with_room_for_correction(job: Job, scheme: Scheme | None) -> Job:
    """Calibration adds to the biases of what it quantizes, often less than their type resolves."""
    corrected = scheme is not None and not scheme.rounds_inputs
    wide = corrected and job.parameter.name.endswith(".bias")
    return replace(job, float_dtype="F32") if wide else job
