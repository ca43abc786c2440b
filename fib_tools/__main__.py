"""`python -m fib_tools` is `fib`."""

from __future__ import annotations

import sys

from fib_tools.cli import main

sys.exit(main())
