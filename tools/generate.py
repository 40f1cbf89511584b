"""The pages of docs/reference, made from the code: `python -m tools.generate`; `--check` fails where one is stale."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import EnumMeta
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from typer.models import ArgumentInfo, OptionInfo

import oldphoto
from oldphoto import cli, errors
from oldphoto.files import image
from oldphoto.records.manifest import SCHEMA
from oldphoto.weights import read_lock
from oldphoto.weights.sets import SETS

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
MADE = "<!-- Made from the code by `python -m tools.generate`; edit the code instead. -->\n\n"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines) + "\n"


def commands() -> str:
    """Every command with its arguments and options, by panel."""
    text = "# Commands and options\n"
    for name, function in registered(cli.app):
        text += f"\n## `oldphoto {name}`\n\n{(inspect.getdoc(function) or '').strip()}\n"
        panels: dict[str, list[tuple[str, ...]]] = {}
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            info = next(one for one in parameter.annotation.__metadata__ if isinstance(one, ArgumentInfo | OptionInfo))
            usual = "Arguments" if isinstance(info, ArgumentInfo) else "Options"
            panels.setdefault(info.rich_help_panel or usual, []).append(described(parameter, info))
        for panel, rows in panels.items():
            text += f"\n**{panel}**\n\n" + table(("option", "value", "what it does"), rows)
    return text


def registered(app: typer.Typer, before: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    """The commands of an app and of the groups in it, by name."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield before + (command.name or command.callback.__name__.replace("_", "-")), command.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from registered(group.typer_instance, f"{before}{group.name} ")


def described(parameter: inspect.Parameter, info: ArgumentInfo | OptionInfo) -> tuple[str, ...]:
    """A row for one option or argument."""
    kinds = list(get_args(parameter.annotation.__origin__) or (parameter.annotation.__origin__,))
    kind = next(kind for kind in kinds if kind is not type(None))
    names = [f"--{parameter.name.replace('_', '-')}"]
    if isinstance(info, ArgumentInfo):
        names = [info.metavar or parameter.name.upper()]
    elif declared := [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]:
        names = [name for both in declared for name in both.split("/")]
    about, default = info.help or "", parameter.default
    if info.show_default and default not in (None, False, "", inspect.Parameter.empty):
        about += f" Default: `{getattr(default, 'value', default)}`."
    return ", ".join(f"`{name}`" for name in names), "" if kind is bool else info.metavar or values(kind, info), about


def values(kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    """What a value may be."""
    if isinstance(kind, EnumMeta):
        return ", ".join(str(choice.value) for choice in kind)  # type: ignore[var-annotated]
    if info.min is not None or info.max is not None:
        return f"from {info.min}" + ("" if info.max is None else f" to {info.max}")
    return {str: "text", int: "number", float: "number", Path: "path"}.get(get_origin(kind) or kind, "")


def exit_codes() -> str:
    """The exit codes, and which error leads to each."""
    raised = {
        kind.exit_code: (inspect.getdoc(kind) or "").split("\n")[0]
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.OldphotoError) and kind is not errors.OldphotoError
    }
    others = {
        errors.ExitCode.DONE: "Everything is done.",
        errors.ExitCode.BUG: "A bug: please report the traceback.",
        errors.ExitCode.SOME_FAILED: "Some photos failed, the others are done; or `verify` found changes.",
        errors.ExitCode.INTERRUPTED: "Interrupted; files that were finished are whole.",
    }
    rows = [(str(int(code)), f"`{code.name}`", (others | raised)[code]) for code in errors.ExitCode]
    return "# Exit codes\n\n" + table(("code", "name", "meaning"), rows)


def formats() -> str:
    """The formats by the suffixes of their files."""
    by_format: dict[str, list[str]] = {}
    for suffix in image.PHOTO_SUFFIXES:
        by_format.setdefault(image.format_of_suffix(suffix), []).append(suffix)
    rows = [(name, " ".join(f"`{suffix}`" for suffix in suffixes)) for name, suffixes in by_format.items()]
    return (
        "# File formats\n\nA folder is searched for files with these endings; a file that is named outright is read by "
        "what it holds, whatever its name.\n\n" + table(("format", "endings"), rows)
    )


def manifest() -> str:
    """The keys of a line of the manifest."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    rows = [(f"`{name}`", kind_of(entry), entry.get("description", "")) for name, entry in schema["properties"].items()]
    return (
        f"# A line of the manifest\n\n{schema.get('description', '')}\n\n"
        "The whole schema lies in the package, as `oldphoto/records/manifest.schema.json`.\n\n"
        + table(("key", "type", "meaning"), rows)
    )


def kind_of(entry: dict[str, Any]) -> str:
    """The type of a key in a JSON schema, in words."""
    if "const" in entry or "enum" in entry:
        return " or ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    if "oneOf" in entry:
        return " or ".join(kind_of(one) for one in entry["oneOf"])
    if "$ref" in entry:
        return str(entry["$ref"]).rsplit("/", 1)[-1]
    kinds = entry.get("type", "any")
    return " or ".join(kinds) if isinstance(kinds, list) else str(kinds)


def python() -> str:
    """The public names, their signatures and docstrings."""
    text = "# Python\n\n`import oldphoto` loads no torch; each name below loads its module when it is first used.\n"
    for name in oldphoto.__all__:
        value = getattr(oldphoto, name)
        if inspect.ismodule(value):
            text += f"\n## `oldphoto.{name}`\n\nThe module `{value.__name__}`. {paragraph(value)}\n"
        elif inspect.isclass(value) or callable(value):
            text += f"\n## `oldphoto.{name}{signature(value)}`\n\n{prose(value)}\n"
            if inspect.isclass(value):
                text += methods(value)
    return text


def methods(kind: type) -> str:
    """The public methods and properties that a class defines itself."""
    text = ""
    for name, value in vars(kind).items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if name.startswith("_") or not callable(function):
            continue
        shown = "" if isinstance(value, property) else signature(function)
        text += f"\n### `{kind.__name__}.{name}{shown}`\n\n{prose(function)}\n"
    return text


def signature(value: Any) -> str:
    """The parameters, without types: the docstring says what they are."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    if isinstance(value, EnumMeta):
        return ""
    parts = [
        name if parameter.default is inspect.Parameter.empty else f"{name}={default(parameter.default)}"
        for name, parameter in found.parameters.items()
        if name != "self"
    ]
    return f"({', '.join(parts)})"


def default(value: Any) -> str:
    """A default in a signature."""
    return "..." if " at 0x" in repr(value) or "factory" in repr(value) else repr(value)


def paragraph(value: Any) -> str:
    """The first paragraph of a docstring."""
    return re.sub(r"\s+", " ", (inspect.getdoc(value) or "").split("\n\n")[0])


def prose(value: Any) -> str:
    """A docstring as Markdown: names before a colon at the start of a line become code."""
    lines = (inspect.getdoc(value) or "").split("\n")
    return "\n".join(re.sub(r"^(\w+(?:, \w+)*): ", r"- `\1`: ", line) for line in lines)


def weights() -> str:
    """The weight files and the roles they play."""
    roles: dict[tuple[str, str], list[str]] = {}
    for one in SETS.values():
        for role, net in one.nets.items():
            roles.setdefault((net.home, net.name), [])
            if role not in roles[net.home, net.name]:
                roles[net.home, net.name].append(role)
    rows = [
        (
            f"`{file.net}`",
            file.set,
            "?" if file.bytes is None else f"{file.bytes / 1e6:.1f} MB",
            ", ".join(f"`{role}`" for role in roles.get((file.set, file.net), [])),
            file.licence,
        )
        for file in read_lock()
    ]
    return "# Weight files\n\n" + table(("net", "listed under", "size", "roles", "licence"), rows)


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands,
    "exit-codes.md": exit_codes,
    "formats.md": formats,
    "manifest.md": manifest,
    "python.md": python,
    "weights.md": weights,
}


def stale(folder: Path = FOLDER) -> list[str]:
    """The pages that are not what the code makes of them."""
    return [
        name
        for name, make in PAGES.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != MADE + make()
    ]


def main() -> int:
    """Write the pages, or say which are stale."""
    if "--check" in sys.argv[1:]:
        old = stale()
        for name in old:
            print(f"docs/reference/{name} is stale: python -m tools.generate")
        return min(len(old), 1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(MADE + make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
