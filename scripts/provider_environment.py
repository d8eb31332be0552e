"""A virtual environment with one execution provider's wheel, to test dsconv on it.

python scripts/provider_environment.py openvino        prints the environment's python
python scripts/provider_environment.py openvino test   runs the tests marked `provider` in it

Wheels of ONNX Runtime overwrite each other, so each has an environment of its own, kept under
$XDG_CACHE_HOME/dsconv/providers. No torch is in it: sessions of ONNX graphs do without.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What dsconv imports on its way to an ONNX session and to doctor.
LIBRARIES = ["onnx", "ml_dtypes", "safetensors", "tokenizers", "jinja2", "typer", "rich"]
WHEELS = {
    "openvino": ["onnxruntime-openvino==1.24.1"],
    "qnn": ["onnxruntime==1.31.1", "onnxruntime-qnn==2.7.0"],
    "cuda": ["onnxruntime-gpu==1.31.1"],  # without a driver: how it fails
    "cann": ["onnxruntime-cann==1.24.4", "numpy<2"],
}


def cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dsconv" / "providers"


def python_of(name: str) -> Path:
    folder = "Scripts" if os.name == "nt" else "bin"
    return cache() / name / folder / "python"


def make(name: str) -> Path:
    """Make the environment once -> its python. A marker says that it is complete."""
    wanted = [*LIBRARIES, *WHEELS[name]]
    place, python = cache() / name, python_of(name)
    marker = place / "complete.txt"
    if marker.exists() and marker.read_text() == "\n".join(wanted):
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted], check=True, stdout=sys.stderr)
    _link_dsconv(python)
    marker.write_text("\n".join(wanted))
    return python


def _link_dsconv(python: Path) -> None:
    """The package from this folder, without its dependencies and without compiling anything."""
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True).stdout
    (Path(site.strip()) / "dsconv").symlink_to(ROOT, target_is_directory=True)


def main() -> int:
    names = [name for name in sys.argv[1:2] if name in WHEELS]
    if not names:
        sys.exit(f"{__doc__}\nproviders: {', '.join(WHEELS)}")
    python = make(names[0])
    if sys.argv[2:] != ["test"]:
        print(python)
        return 0
    tests = [sys.executable, "-m", "pytest", "-m", "provider", "-rs", "-k", names[0]]
    return subprocess.run(tests, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
