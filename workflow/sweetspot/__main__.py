"""`python -m sweetspot`: the `sweetspot` command where the package is on the path and not installed."""

import sys

from sweetspot.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
