"""Makes the closed loop of test/core and the harness of this folder importable."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "core"):
    sys.path.insert(0, str(folder))
