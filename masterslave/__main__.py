"""``python -m masterslave`` is the same as ``task_manager``."""

import sys

from masterslave.cli import main

if __name__ == "__main__":
    sys.exit(main())
