"""`python -m engine` is `leakatk`."""

import sys

from engine.cli import main

sys.exit(main())
