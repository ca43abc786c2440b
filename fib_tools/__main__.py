"""`python -m fib_tools` is `fib`."""

from __future__ import annotations

import gc
import sys

__all__ = ["run"]


def run() -> int:
    """Run the command line; an interrupt while it is still being loaded ends it without a traceback."""
    gc.set_threshold(100_000, 20, 20)  # imports make many objects and little garbage: a tenth of the start-up time
    try:
        from fib_tools.cli.app import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
