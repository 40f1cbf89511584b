"""The command line, the only folder that prints: parse, call one function, print, exit code.

Results go to stdout, everything else to stderr. Heavy modules are imported inside the commands: `--help` is quick.
"""

from oldphoto.cli.command import app, main

__all__ = ["app", "main"]
