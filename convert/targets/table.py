"""The table of targets."""

from __future__ import annotations

from dsconv.errors import UsageError

from .onnx_targets import ONNX_TARGETS
from .target import Target
from .vendor_targets import TORCH_TARGETS, VENDOR_TARGETS

TARGETS: dict[str, Target] = {
    target.name: target for target in (*ONNX_TARGETS, *TORCH_TARGETS, *VENDOR_TARGETS)
}


def find_target(name: str) -> Target:
    """Raises UsageError unless `name` is in the table."""
    if name not in TARGETS:
        raise UsageError(f"target: {name!r} is not known", f"choose {', '.join(TARGETS)}")
    return TARGETS[name]
