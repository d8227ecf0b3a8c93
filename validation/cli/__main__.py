"""``python -m noisysgd.validation.cli``: the command ``noisysgd``."""

import sys

from noisysgd.validation.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
