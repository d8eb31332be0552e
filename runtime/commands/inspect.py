"""`dsconv inspect`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsconv.runtime.console.units import count_text, size_text

from .options import Json, Model, print_json

if TYPE_CHECKING:
    from dsconv.convert.inspect.description import Description
    from dsconv.convert.inspect.model_facts import Architecture, Origin

EXAMPLE = "dsconv inspect r1-int4 --json"


def inspect(model: Model, as_json: Json = False) -> None:
    """Show what is in a model or artifact: sizes, layers, context, tokenizer, source, tensors.

    A GGUF, safetensors or ONNX file that dsconv cannot use is shown too, with the reason.
    """
    from dsconv.convert.inspect.describe import survey

    description = survey(model)
    print_json(description.to_json()) if as_json else show(description)


def show(description: "Description") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(_title(description)))
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(description):
        facts.add_row(Text(name), Text(value))
    console.print(facts)
    table = Table()
    for column, justify in (("tensor", "left"), ("shape", "right"), ("stored", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("bytes", justify="right")
    for row in description.tensors:
        shape = " × ".join(map(str, row.shape))
        table.add_row(Text(row.name), shape, row.storage, f"{row.size_bytes:,}")
    console.print(table)


def _title(d: "Description") -> str:
    size = size_text(d.size_bytes)
    if not d.parameters:
        return f"{d.kind}, family {d.family}: {len(d.tensors)} tensors, {size}"
    count = count_text(d.parameters)
    exact = "" if count == str(d.parameters) else f"{count} = "
    return (
        f"{d.kind}, family {d.family}: {exact}{d.parameters:,} parameters, "
        f"{d.bits_per_weight:.2f} bits per weight, {size}"
    )


def _facts(d: "Description") -> Iterator[tuple[str, str]]:
    if d.problem is not None:
        yield "problem", f"dsconv can show it and no more: {d.problem.message}"
        yield "", f"hint: {d.problem.hint}"
    if d.architecture is not None:
        yield from _sizes(d.architecture)
    if d.text is not None:
        yield "chat template", "yes" if d.text.chat_template else "no"
        tokens = [f"{name} {token}" for name, token in d.text.special_tokens.items()]
        if tokens:
            yield "special tokens", ", ".join(tokens)
        if d.text.eos_token_ids:
            yield "ends at", ", ".join(map(str, d.text.eos_token_ids))
    if d.sampling:
        yield "sampling", ", ".join(f"{name} {value}" for name, value in d.sampling.items())
    if d.origin is not None:
        yield from _source(d.origin)
    for note in d.notes:
        yield "note", note


def _sizes(a: "Architecture") -> Iterator[tuple[str, str]]:
    if a.layers is not None:
        yield "layers", str(a.layers)
    if a.heads is not None:
        kv_heads = (
            f", {a.kv_heads} for keys and values" if a.kv_heads not in (None, a.heads) else ""
        )
        size = f", of {a.head_size} features" if a.head_size else ""
        yield "heads", f"{a.heads}{kv_heads}{size}"
    if a.hidden_size is not None:
        feed = f", {a.feed_forward_size} in the MLP" if a.feed_forward_size else ""
        yield "hidden size", f"{a.hidden_size}{feed}"
    if a.context_length is not None:
        yield "context", f"{a.context_length:,} tokens{_scaled(a)}"
    if a.vocabulary is not None:
        tied = {True: ", head and embedding are one", False: ", a head of its own", None: ""}
        yield "vocabulary", f"{a.vocabulary:,}{tied[a.tied_embeddings]}"


def _scaled(a: "Architecture") -> str:
    if not a.rope_scaling:
        return ""
    scaling = dict(a.rope_scaling)
    kind = scaling.pop("type", scaling.pop("rope_type", ""))
    rest = ", ".join(f"{name} {value}" for name, value in scaling.items())
    return f" by rotary scaling {kind} ({rest})"


def _source(origin: "Origin") -> Iterator[tuple[str, str]]:
    def at(commit: str | None) -> str:
        return f" at {commit[:12]}" if commit else ""

    yield "name", f"{origin.name}{at(origin.commit)}"
    if origin.made_from is not None:
        yield "made from", f"{origin.made_from}{at(origin.made_from_commit)}"
    if origin.quantized_by is not None:
        yield "quantized by", origin.quantized_by
