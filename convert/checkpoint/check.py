"""Are the tensors of a checkpoint what its config promises?"""

from __future__ import annotations

from dataclasses import replace

from dsconv.errors import InputError

from .checkpoint import FLOAT_DTYPES, Checkpoint, module_of
from .leftovers import Leftovers, find_leftovers
from .matrix_layout import SHAPE, has_shape_tensor, stored_tensors

OTHER_MODEL = "the download is incomplete, or config.json belongs to another model"
# How a tensor's name ends -> whose quantized weights have it.
TRACES = (
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".g_idx", "GPTQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "FP8"),
    (".weight_codes", "dsconv"),
    (".absmax", "bitsandbytes"),
    (".quant_map", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_scale", "compressed-tensors, FP8 or ModelOpt"),
    (".scales", "MLX, GPTQ or AWQ"),
)


def checked(checkpoint: Checkpoint) -> Checkpoint:
    """Compare the files with what the config promises, by names, shapes and dtypes.

    Returns:
        The checkpoint, with notes on what is left aside.

    Raises:
        InputError: a tensor is missing or has another shape or kind of number, or one is there
            that the architecture does not know (ignoring it would change the model in silence).
    """
    present = set(checkpoint.source.names())
    _refuse_unsaid_quantization(checkpoint, present)
    promised = len(checkpoint.parameters)
    if promised > len(present) + 1:  # before anything is done for each of a thousand layers
        raise InputError(
            f"{checkpoint.origin}: {len(present)} tensors, config.json promises {promised} or "
            f"more: {_first_missing(checkpoint, present)}",
            OTHER_MODEL,
        )
    expected = _expected_tensors(checkpoint)
    for name, (shape, dtypes) in expected.items():
        if name not in present:
            raise _missing(checkpoint, name, sorted(present - expected.keys()))
        _check_tensor(checkpoint, name, shape, dtypes)
    decoder = checkpoint.decoder
    ignorable = (
        {f"{decoder.head_linear.name}.weight"} if decoder.config.tie_word_embeddings else set()
    )
    unknown = present - expected.keys() - ignorable
    leftovers = _leftovers(checkpoint, unknown)
    for name in sorted(unknown - leftovers.names):
        raise InputError(
            f"{checkpoint.origin}: tensor {name!r} is not part of {decoder.architecture}",
            _unknown_hint(checkpoint, name),
        )
    notes = tuple(f"{checkpoint.origin}: {note}" for note in leftovers.notes)
    return replace(checkpoint, notes=(*checkpoint.notes, *notes))


def holds_plain_floats(checkpoint: Checkpoint) -> bool:
    """Is every weight there as plain numbers, and nothing that would scale them?"""
    source, parameters = checkpoint.source, checkpoint.parameters
    present = set(source.names())
    head = f"{checkpoint.decoder.head_linear.name}.weight"
    if not parameters.keys() <= present:
        return False
    unknown = present - parameters.keys() - {head}
    return all(
        source.dtype(name) in FLOAT_DTYPES and source.shape(name) == parameter.shape
        for name, parameter in parameters.items()
    ) and not (unknown - _leftovers(checkpoint, unknown).names)


def _leftovers(checkpoint: Checkpoint, unknown: set[str]) -> Leftovers:
    return find_leftovers((name, checkpoint.source.shape(name)) for name in sorted(unknown))


def _refuse_unsaid_quantization(checkpoint: Checkpoint, present: set[str]) -> None:
    if checkpoint.quantization is not None:
        return
    for name in sorted(present - checkpoint.parameters.keys()):
        owner = next((owner for ending, owner in TRACES if name.endswith(ending)), None)
        if owner is not None:
            raise InputError(
                f"{checkpoint.origin}: tensor {name!r} belongs to quantized weights ({owner}), and "
                "config.json has no quantization_config",
                "download config.json again: the one that came with these weights says how to "
                "read them",
            )


def _check_tensor(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]
) -> None:
    source, where = checkpoint.source, checkpoint.origin
    found = source.shape(name)
    if found != shape:
        raise InputError(
            f"{where}: tensor {name!r} has shape {list(found)}, config.json gives {list(shape)}",
            _shape_hint(checkpoint, name, found, shape),
        )
    if source.dtype(name) not in dtypes:
        raise InputError(
            f"{where}: tensor {name!r} is stored as {source.dtype(name)}, "
            f"expected {' or '.join(dtypes)}",
            "it was quantized by another tool; start from the unquantized checkpoint",
        )


def _shape_hint(
    checkpoint: Checkpoint, name: str, found: tuple[int, ...], shape: tuple[int, ...]
) -> str:
    decoder = checkpoint.decoder
    is_vocabulary = module_of(name) in (decoder.table.name, decoder.head_linear.name)
    if 0 in found:
        return "it was saved empty, as sharded training does: gather the weights when saving"
    if is_vocabulary and found[1:] == shape[1:]:
        return f"if tokens were added or removed, set vocab_size to {found[0]} in config.json"
    return "config.json belongs to another model"


def _unknown_hint(checkpoint: Checkpoint, name: str) -> str:
    decoder = checkpoint.decoder
    number = name.removeprefix(f"{decoder.layers_name}.").partition(".")[0]
    layers = decoder.config.num_hidden_layers
    if number.isdigit() and int(number) >= layers:
        return (
            f"config.json says num_hidden_layers {layers}: correct it, or remove the layers that "
            "are not the model's"
        )
    return "config.json belongs to another model, or it needs a setting that enables it"


def _missing(checkpoint: Checkpoint, name: str, unknown: list[str]) -> InputError:
    decoder = checkpoint.decoder
    if module_of(name) != decoder.head_linear.name:
        beside = f", while {unknown[0]!r} is there" if unknown else ""
        return InputError(f"{checkpoint.origin}: tensor {name!r} is missing{beside}", OTHER_MODEL)
    said = "is false" if "tie_word_embeddings" in checkpoint.config else "is not set"
    return InputError(
        f"{checkpoint.origin}: tensor {name!r} is missing (the head), and tie_word_embeddings "
        f"{said} in config.json, so that the embedding may not be used in its place",
        "if the model shares one matrix between embedding and head, set tie_word_embeddings to "
        "true; else the download is incomplete",
    )


def _first_missing(checkpoint: Checkpoint, present: set[str]) -> str:
    modules = {module_of(name) for name in present}
    missing = (name for name in checkpoint.parameters if module_of(name) not in modules)
    return f"tensor {next(missing, '…')!r} is missing"


def _expected_tensors(
    checkpoint: Checkpoint,
) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Name, shape and allowed dtypes of everything the files must hold."""
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
    for name, parameter in checkpoint.parameters.items():
        scheme = checkpoint.scheme(name)
        if scheme is None:
            expected[name] = (parameter.shape, FLOAT_DTYPES)
            continue
        rows, columns = parameter.shape
        module = module_of(name)
        for tensor in stored_tensors(module, (rows, columns), scheme):
            dtypes = FLOAT_DTYPES if tensor.dtype in FLOAT_DTYPES else (tensor.dtype,)
            expected[tensor.name] = (tensor.shape, dtypes)
        if has_shape_tensor(scheme):
            expected[f"{module}.{SHAPE}"] = ((2,), ("I64", "I32"))
    return expected
