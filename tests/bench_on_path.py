"""Makes the clone's `bench` package importable; it is not installed, so it is looked for behind everything that is."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
