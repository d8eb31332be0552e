"""How setuptools compiles the native engine; pyproject.toml names this class.

The engine is optional: where there is no C++ compiler, dsconv installs without it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.command.build_ext import build_ext

SOURCES = Path("runtime/native")
# Both: no fused multiply-add that the source does not ask for, so that all kernels give equal bits.
UNIX_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
# GCC takes what its own intrinsics leave undefined for a mistake.
UNIX_FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
# Python asks for debugging information: it takes as long to make as the code, is ten times
# as large, and names the folder, so that the same sources would not give the same file.
UNIX_FLAGS += ["-g0"]
# Sources include each other by their path in this folder; -I would hide the system's memory.h.
UNIX_FLAGS += ["-iquote", str(SOURCES)]
MSVC_FLAGS = ["/std:c++17", "/O2", "/fp:precise", "/EHsc", "/utf-8", f"/I{SOURCES}"]


class BuildNative(build_ext):
    """Adds the sources, and the flags of the compiler at hand."""

    def build_extension(self, ext: Extension) -> None:
        ext.sources = sorted(str(path) for path in SOURCES.rglob("*.cpp"))
        ext.depends = sorted(str(path) for path in SOURCES.rglob("*.h"))
        is_msvc = self.compiler.compiler_type == "msvc"
        ext.extra_compile_args = MSVC_FLAGS if is_msvc else [*UNIX_FLAGS, *self._more_flags()]
        ext.extra_link_args = [] if is_msvc else ["-pthread", *self._more_flags()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self._compile_in_parallel(pool)
            super().build_extension(ext)

    def _compile_in_parallel(self, pool: ThreadPoolExecutor) -> None:
        """setuptools compiles the files of one extension one after the other."""
        compile_all = self.compiler.compile

        def compile_each(sources: list[str], **options: Any) -> list[str]:
            made = pool.map(lambda source: compile_all([source], **options), sources)
            return [name for part in made for name in part]

        self.compiler.compile = compile_each

    @staticmethod
    def _more_flags() -> list[str]:
        """For developers: DSCONV_NATIVE_FLAGS=-fsanitize=address and the like."""
        return os.environ.get("DSCONV_NATIVE_FLAGS", "").split()
