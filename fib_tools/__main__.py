"""`python -m fib_tools` is `fib`."""

from __future__ import annotations

import sys

__all__ = ["run"]


def run() -> int:
    """Run the command line; an interrupt while it is still being loaded ends it without a traceback."""
    try:
        from fib_tools.cli import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
