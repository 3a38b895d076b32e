"""``python -m patchguard``."""

import sys

from patchguard.cli import main

if __name__ == "__main__":
    sys.exit(main())
