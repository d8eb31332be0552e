"""dsconv: quantize, export, run and verify distilled LLM checkpoints.

The names of `__all__` are the library, described in docs/library.md. Each is imported when it is
first used, so that `import dsconv` costs nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsconv.library import (
        bench,
        build,
        export,
        generate,
        inspect,
        open_session,
        plan,
        pull,
        quantize,
        to_json,
        verify,
        write_report,
    )

__version__ = "0.1.0"
__all__ = [
    "bench",
    "build",
    "export",
    "generate",
    "inspect",
    "open_session",
    "plan",
    "pull",
    "quantize",
    "to_json",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dsconv import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
