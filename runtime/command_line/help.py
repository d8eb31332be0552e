"""Help in plain text, its options in groups.

Where an option stands is said here, by its name: a command names its groups in the order of its
help, and what is in none of them comes first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import typer.core

Groups = Mapping[str, tuple[str, ...]]  # heading -> names of parameters

ARGUMENTS, PLAIN = "Arguments", "Options"
OUTPUT: Groups = {"What is shown": ("as_json", "quiet", "verbose", "help")}
MACHINE: Groups = {"Where it runs": ("provider", "allow_fallback", "dtype", "threads", "kv")}
ROUNDING: Groups = {
    "How matrices are rounded": (
        "bits",
        "scheme",
        "group_size",
        "symmetric",
        "head_bits",
        "embedding_bits",
        "activations",
        "method",
    ),
    "Bits chosen per matrix": ("target_bpw", "target_size", "max_kl", "recipe"),
    "Calibration": (
        "calibration",
        "calibration_tokens",
        "prefix_correction",
        "damping",
        "tuning_epochs",
    ),
    "Resources": ("max_memory", "threads", "keep"),
}
COMMANDS: Mapping[str, Groups] = {
    "quantize": ROUNDING,
    "plan": ROUNDING,
    "export": {
        "What is written": ("format", "target", "copy", "overwrite"),
        "Of ONNX graphs": ("dialect", "accuracy_level", "context_length", "prefill_length"),
    },
    "run": {
        "The prompt": ("prompt", "prompt_file", "system", "chat", "raw"),
        "A file of prompts": ("prompts", "output", "overwrite", "parallel"),
        "Sampling": (
            "max_tokens",
            "stop",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "no_repeat_ngram_size",
            "seed",
            "speculate",
            "draft",
        ),
        **MACHINE,
    },
    "serve": {
        "Who may ask": ("host", "port", "name", "api_key", "cors"),
        "Limits": (
            "parallel",
            "cache_memory",
            "max_tokens",
            "queue",
            "max_body",
            "idle_timeout",
            "slow_timeout",
            "drain_timeout",
        ),
        **MACHINE,
    },
    "verify": {
        "Limits": (
            "max_kl",
            "max_kl_p99",
            "min_top1",
            "max_ppl_ratio",
            "min_accuracy",
            "max_accuracy_drop",
            "min_speedup",
            "max_probability_shift",
            "baseline",
        ),
        "The text": ("text", "window", "max_tokens", "reference_cache", "no_reference_cache"),
        "Further checks": (
            "layers",
            "integrity",
            "signature",
            "public_key",
            "free_running",
            "task",
            "task_questions",
            "task_seeds",
            "task_tokens",
            "task_shots",
            "task_shots_from",
            "parallel",
        ),
        "Files for others": ("report", "junit", "github"),
        **MACHINE,
    },
    "bench": {
        "What is measured": ("prefill", "decode", "context", "rounds", "max_foreign_load"),
        "Compared with others": ("against", "checkpoint", "bits", "peers"),
        **MACHINE,
    },
}
OF_COMMANDS: Groups = {
    "Models in": ("pull", "inspect", "plan", "quantize"),
    "Artifacts out": ("export", "targets", "lint"),
    "Use and judge": ("run", "serve", "verify", "sign", "bench"),
    "All in one": ("build", "recipes", "demo"),
    "This machine": ("doctor",),
}


class GroupedCommand(typer.core.TyperCommand):
    """A command whose help has a heading per group of options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[tuple[str, str]]] = {ARGUMENTS: [], PLAIN: []}
        headings = groups_of(self.name or "")
        rows.update({heading: [] for heading in headings})
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                rows[heading_of(parameter, headings)].append(record)
        _write(formatter, rows)


class GroupedCommands(typer.core.TyperGroup):
    """The list of commands, a heading per group of them."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = formatter.width - 6 - max(map(len, self.commands), default=0)
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in OF_COMMANDS}
        for name, command in self.commands.items():
            heading = next((key for key, names in OF_COMMANDS.items() if name in names), "More")
            rows.setdefault(heading, []).append((name, command.get_short_help_str(width)))
        _write(formatter, rows)


def groups_of(command: str) -> Groups:
    return {**COMMANDS.get(command, {}), **OUTPUT}


def first_clause(command: Callable[..., None]) -> str:
    """What the list of commands says of one: its docstring up to the first stop."""
    text = " ".join((command.__doc__ or "").split())
    return re.split(r"[.:;](?:\s|$)", text)[0]


def heading_of(parameter: Any, groups: Groups) -> str:
    if parameter.param_type_name == "argument":
        return ARGUMENTS
    return next((key for key, names in groups.items() if parameter.name in names), PLAIN)


def _write(formatter: Any, rows: Mapping[str, list[tuple[str, str]]]) -> None:
    for heading, lines in rows.items():
        if lines:
            with formatter.section(heading):
                formatter.write_dl(lines)
