"""From a target to the options of an export, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families.inventory import Role
from dsconv.convert.formats.onnx.export import ExportOptions
from dsconv.errors import UnsupportedError
from dsconv.quant.schemes import WHOLE_ROW

from .lint import lint
from .target import GraphRecipe, Target


def choose_format(target: Target, wanted: str | None) -> str:
    """The format asked for, or the target's first.

    Raises:
        UnsupportedError: the target reads no such artifact.
    """
    if not target.artifacts:
        reason = target.notes[0].text if target.notes else "no artifact of ours is read there"
        raise UnsupportedError(
            f"target {target.name}: {reason}",
            "the nearest: --format compressed-tensors, a checkpoint that vendors start from",
        )
    if wanted is not None and wanted not in target.artifacts:
        raise UnsupportedError(
            f"target {target.name} does not read format {wanted!r}",
            f"leave out --format, or choose {', '.join(target.artifacts)}",
        )
    return wanted or target.artifacts[0]


def choose_options(
    target: Target,
    checkpoint: Checkpoint,
    accuracy_level: int = 4,
    context_length: int | None = None,
    prefill_length: int | None = None,
    copy: bool = False,
) -> ExportOptions:
    """How to write the ONNX artifact for the target.

    Args:
        prefill_length: tokens per run of a prompt, for a target with fixed shapes; None: its own.

    Raises:
        UnsupportedError: no graph for the target can hold this checkpoint.
    """
    recipe = target.recipe
    if recipe is None:
        raise UnsupportedError(
            f"target {target.name} takes no ONNX graph", f"use --format {target.artifacts[0]}"
        )
    if prefill_length is not None and recipe.prefill_length is None:
        raise UnsupportedError(
            f"--prefill-length {prefill_length}: target {target.name} has open shapes",
            "leave it out: prompts of any length run there",
        )
    _check_size(target, checkpoint)
    _check_weights(target.name, recipe, checkpoint)
    return ExportOptions(
        recipe.dialect,
        accuracy_level,
        context_length,
        copy,
        recipe.precision,
        prefill_length or recipe.prefill_length,
        recipe.rotary_tables,
        recipe.packed_embedding,
        recipe.bfloat16,
        recipe.explicit_zero_points,
        recipe.fused_products,
        target.name,
    )


def _check_size(target: Target, checkpoint: Checkpoint) -> None:
    """Refuse before gigabytes are written; what is just below the limit, lint decides."""
    limit = target.rules.graph_bytes if target.rules else None
    size = 2 * checkpoint.parameter_count  # in float16, which targets with a limit are written in
    if limit is not None and size >= limit:
        raise UnsupportedError(
            f"{checkpoint.origin}: {size} bytes in float16; target {target.name} takes a graph of "
            f"less than {limit}",
            "use --format compressed-tensors, for the vendor's torch and vLLM",
        )


def _check_weights(name: str, recipe: GraphRecipe, checkpoint: Checkpoint) -> None:
    """Are the matrices quantized in a way that the target multiplies?"""
    if recipe.precision == "float16" and recipe.dialect != "contrib":
        return  # matrices are written in float16, whatever they were
    for parameter in checkpoint.parameters.values():
        scheme = checkpoint.scheme(parameter.name)
        if (
            scheme is None
            or not scheme.is_plain
            or _is_table(checkpoint, parameter.name, parameter.role)
        ):
            continue
        if recipe.symmetric and not scheme.symmetric:
            raise UnsupportedError(
                f"{parameter.name}: stored zero points; target {name} takes symmetric codes",
                "quantize with --symmetric, or export with --target cpu",
            )
        if recipe.group_sizes is not None and scheme.group_size not in recipe.group_sizes:
            allowed = ", ".join(map(_group_text, recipe.group_sizes))
            raise UnsupportedError(
                f"{parameter.name}: {_group_text(scheme.group_size)}; target {name} multiplies "
                f"{allowed}",
                f"quantize with --group-size {recipe.group_sizes[0]}, or export with --target cpu",
            )


def _is_table(checkpoint: Checkpoint, name: str, role: Role) -> bool:
    """An embedding that only gathers: it is written in float16 there."""
    return role is Role.EMBEDDING and not checkpoint.decoder.config.tie_word_embeddings


def _group_text(size: int) -> str:
    return "whole rows" if size == WHOLE_ROW else f"groups of {size}"


def checker(target: Target) -> Callable[[Path], None]:
    """-> what refuses an exported folder that breaks the target's own rules."""

    def check(folder: Path) -> None:
        findings = lint(folder, target).findings
        if not findings:
            return
        first = findings[0]
        where = f"{first.node} ({first.operator}): " if first.node else ""
        more = f"; {len(findings) - 1} more" if len(findings) > 1 else ""
        by_torch = "compressed-tensors" in target.artifacts
        raise UnsupportedError(
            f"target {target.name} would not run this: {where}{first.message}{more}",
            f"use {'--format compressed-tensors' if by_torch else '--target cpu'}; or: {first.fix}",
        )

    return check
