"""`python -m eomt …` is `eomt …`; launchers such as torchrun want a module."""

import sys

from .cli import main

sys.exit(main())
