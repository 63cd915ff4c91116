"""``python -m da_leukemia``."""

from __future__ import annotations

import sys

from da_leukemia.cli import main

if __name__ == "__main__":
    sys.exit(main())
