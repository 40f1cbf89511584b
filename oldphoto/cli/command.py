"""The command itself: where sub-commands are registered, and what turns errors into exit codes."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import suppress
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from oldphoto import __version__
from oldphoto.cli.faces import list_faces
from oldphoto.cli.machine import bench, doctor
from oldphoto.cli.records import export_premis, make_report, verify
from oldphoto.cli.restore import restore
from oldphoto.cli.terminal import print_error, put, stderr
from oldphoto.cli.training import degrade, evaluate, train
from oldphoto.cli.weights import weights_app
from oldphoto.errors import ExitCode, OldphotoError
from oldphoto.machine.surroundings import end_as_ctrl_c, has_left, ignore_signals, let_go, show_any_name
from oldphoto.options import Colorize


class Group(TyperGroup):
    """Turns the error tree, Ctrl-C and memory errors of any command into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; anything but a known failure goes on as a traceback, which is exit code 1."""
        try:
            return super().invoke(ctx)
        except OldphotoError as error:
            if not (error.__cause__ and has_left(error.__cause__)):  # who has left will read no reason
                print_error(error, stderr())
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            stderr().print("interrupted")
            raise typer.Exit(ExitCode.INTERRUPTED) from error
        except (typer.Exit, typer.Abort):  # both are RuntimeErrors
            raise
        except (MemoryError, RuntimeError) as error:
            from oldphoto.machine.memory import out_of_memory, ran_out

            if not ran_out(error):
                raise
            known = out_of_memory()
            print_error(known, stderr())
            raise typer.Exit(known.exit_code) from error


class RestoreCommand(TyperCommand):
    """Knows the one option that may stand without its value, before a photo, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as any command does, a bare --colorize as --colorize=auto."""
        end = args.index("--") if "--" in args else len(args)
        spelled = [
            "--colorize=auto"
            if arg == "--colorize" and k < end and not set(args[k + 1 : k + 2]) & set(get_args(Colorize))
            else arg
            for k, arg in enumerate(args)
        ]
        return super().parse_args(ctx, spelled)


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Restore old photographs: scratches, fading, blur, noise and faces.",
    epilog="Exit codes: 0 done, 1 bug, 2 usage, 3 no input, 4 some photos failed, 5 file access, "
    "6 refused to overwrite, 7 weights unavailable, 8 weights corrupt, 9 out of memory, 10 bad image, 130 interrupted.",
)


def main() -> None:
    """The entry point of the `oldphoto` command."""
    from oldphoto.machine.memory import reuse_pages

    reuse_pages()
    own_standard_error()
    end_as_ctrl_c()
    show_any_name()
    atexit.register(let_go, sys.stdout)
    atexit.register(let_go, sys.stderr)
    atexit.register(ignore_signals)  # which comes first
    atexit.register(gc.freeze)  # or the collector goes through all of torch once more at the end, for half a second
    app(prog_name="oldphoto")


def own_standard_error() -> None:
    """Have Python print through a descriptor of its own, whatever becomes of the process's.

    libtiff prints through that one, so it is turned away while some files are decoded, in threads beside this one.
    """
    with suppress(AttributeError, OSError):  # no standard error, or one that is no file
        if sys.stderr.fileno() == 2:
            sys.stderr.flush()
            sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)


def _print_version(wanted: bool) -> None:
    if wanted:
        put(f"oldphoto {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


# In the order in which `--help` lists them.
app.command(cls=RestoreCommand)(restore)
app.command()(verify)
app.command("premis")(export_premis)
app.command("faces")(list_faces)
app.command("report")(make_report)
app.command()(doctor)
app.command()(bench)
app.command()(train)
app.command()(evaluate)
app.command()(degrade)
app.add_typer(weights_app, name="weights")
