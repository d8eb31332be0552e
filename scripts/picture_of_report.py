"""Make docs/images/report.png from the page of a real verdict, by a headless Chromium.

python scripts/picture_of_report.py                     build SmolLM2-135M first (minutes)
python scripts/picture_of_report.py BUILD/report.html   take a page that is there
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "report.png"
RECIPE = "smollm2-135m-native-int4"
# Fewer tokens than by default, so that it takes minutes.
SETTINGS = ("quantize.calibration_tokens=8192", "verify.max_tokens=2048")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 900, 640  # of the part of the page that is shown, which is its beginning
MAX_BYTES = 300_000


def build(folder: Path) -> Path:
    """-> the page. The exit code does not matter: a failed verdict has a page, too."""
    command = [sys.executable, "-m", "dsconv", "build", RECIPE, "-o", str(folder / "built")]
    for setting in SETTINGS:
        command += ["--set", setting]
    subprocess.run(command, check=False)
    return folder / "built" / "report.html"


def photograph(page: Path, browser: str) -> None:
    if not page.is_file():
        sys.exit(f"{page}: no such page")
    PICTURE.parent.mkdir(exist_ok=True)
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    size = f"--window-size={WIDTH},{HEIGHT}"
    target = f"--screenshot={PICTURE}"
    command = [browser, *flags, size, target, page.resolve().as_uri()]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    if PICTURE.stat().st_size > MAX_BYTES:
        sys.exit(f"{PICTURE}: {PICTURE.stat().st_size} bytes, more than {MAX_BYTES}")


def main() -> None:
    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if browser is None or len(sys.argv) > 2:
        sys.exit(__doc__ if browser else "no Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as scratch:
        photograph(Path(sys.argv[1]) if sys.argv[1:] else build(Path(scratch)), browser)


if __name__ == "__main__":
    main()
