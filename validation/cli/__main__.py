"""``python -m noisysgd.validation.cli``: the command ``noisysgd``."""

import sys

from noisysgd.validation.cli.main import main

sys.exit(main())
