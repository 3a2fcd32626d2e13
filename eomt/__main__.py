"""`python -m eomt …` is `eomt …`. Launchers such as torchrun need a module."""

import sys

from .cli import main

sys.exit(main())
