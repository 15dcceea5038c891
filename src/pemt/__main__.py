"""`python -m pemt`, and `torchrun -m pemt`: the command line."""

import sys

from pemt.cli import main

if __name__ == "__main__":
    sys.exit(main())
