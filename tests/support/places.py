"""Where the repository and the shared data lie."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = Path(os.environ.get("DSCONV_SHARED_DATA", ROOT.parent / "shared" / "data"))
