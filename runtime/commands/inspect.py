"""`dsconv inspect`."""

from typing import TYPE_CHECKING

from .options import Json, Model, print_json

if TYPE_CHECKING:
    from dsconv.convert.inspect import Description

EXAMPLE = "dsconv inspect r1-int4 --json"


def inspect(model: Model, as_json: Json = False) -> None:
    """Show what is in a checkpoint, GGUF file or artifact: family, bits, sizes, tensors."""
    from dsconv.convert.inspect import describe
    from dsconv.runtime.model_paths import say_notes

    description = describe(model)
    say_notes(description.notes)
    print_json(description.to_json()) if as_json else show(description)


def show(description: "Description") -> None:
    from rich.console import Console
    from rich.table import Table

    from dsconv.runtime.console import size_text

    d = description
    table = Table(
        title=f"{d.kind}, family {d.family}: {d.parameters:,} parameters, "
        f"{d.bits_per_weight:.2f} bits per weight, {size_text(d.size_bytes)}",
        title_justify="left",
    )
    for column, justify in (("tensor", "left"), ("shape", "right"), ("stored", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("bytes", justify="right")
    for row in d.tensors:
        shape = " × ".join(map(str, row.shape))
        table.add_row(row.name, shape, row.storage, f"{row.size_bytes:,}")
    Console().print(table)
