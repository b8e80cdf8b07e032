"""The thesis scripts are no package: their folder is put on the path, as Python does when it runs them."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "thesis"
sys.path.append(str(SCRIPTS))
