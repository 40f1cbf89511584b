"""`python -m oldphoto`: the same command as `oldphoto`."""

from __future__ import annotations

from oldphoto.cli import main

if __name__ == "__main__":
    main()
