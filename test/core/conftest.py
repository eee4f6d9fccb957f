"""Makes the shared closed loop importable: `from core_loop import Loop`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
