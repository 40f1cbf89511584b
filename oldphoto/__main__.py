"""`python -m oldphoto`, and the command `oldphoto`: ready for signals before the rest is imported."""

from __future__ import annotations

import sys

from oldphoto.machine.surroundings import INTERRUPTED, end_as_ctrl_c


def main() -> None:
    """The entry point of the `oldphoto` command."""
    end_as_ctrl_c()
    try:
        from oldphoto.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
