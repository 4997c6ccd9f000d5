"""`python -m mvmae`: the command line, for `torchrun -m mvmae`."""

import sys

from mvmae.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
