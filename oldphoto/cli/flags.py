"""Flags made from declarations: the annotations of a dataclass's fields become parameters of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, TypeVar, cast

import typer

from oldphoto.options import Declared, Flag, Options, Panel, declared

Kind = TypeVar("Kind")


class Model(StrEnum):
    """Which weights: published where they can be had else compact, or one of them strictly."""

    AUTO = "auto"
    PUBLISHED = "published"
    COMPACT = "compact"


class Precision(StrEnum):
    """Number format of the networks."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class FaceDetector(StrEnum):
    """The detector that tells faces from other things: dlib's histograms of gradients, or its network."""

    HOG = "hog"
    CNN = "cnn"


def flag_of(kind: type, field: str) -> Flag:
    """The flag of one field."""
    return next(one.flag for one in declared(kind) if one.field == field)


AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
ChosenDetector = Annotated[FaceDetector, typer.Option(help=flag_of(Options, "face_detector").help)]


def with_flags(*kinds: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of these dataclasses, which it takes as `**given`, in panels."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        arguments = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        parameters = [*arguments, *map(parameter, in_panels([one for kind in kinds for one in declared(kind)]))]
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
        return command

    return decorate


def from_flags(kind: type[Kind], given: Mapping[str, Any], **others: Any) -> Kind:
    """The dataclass by what was given on the command line. others: its fields that have no flag."""
    return kind(**{one.field: value(one, given[name_of(one)]) for one in declared(kind)}, **others)


def in_panels(flags: list[Declared]) -> list[Declared]:
    """The flags by panel, each below the one that it names, or else in the order in which they come."""
    ordered = [one for one in flags if one.flag.after is None]
    waiting = [one for one in flags if one.flag.after is not None]
    while waiting:
        one = next(one for one in waiting if one.flag.after in {there.field for there in ordered})
        waiting.remove(one)
        ordered.insert(1 + [there.field for there in ordered].index(one.flag.after or ""), one)
    return [one for panel in Panel for one in ordered if one.flag.panel is panel]


def parameter(one: Declared) -> inspect.Parameter:
    """The command's parameter for a flag."""
    flag, kind, default = one.flag, one.flag.kind or one.kind, one.default
    optional = one.optional
    if one.choices and flag.kind is None:
        kind = choices(one)
        default = kind(str(default)) if default is not None else None
    elif flag.read is not None:
        optional, default = kind is not bool or flag.words != (), False if kind is bool and not flag.words else None
    option = typer.Option(
        *words(flag, name_of(one), kind, default),
        help=flag.help,
        min=flag.least,
        max=flag.most,
        metavar=flag.metavar,
        show_default=default not in (None, ""),
        rich_help_panel=flag.panel.value,
    )
    annotation = Annotated[kind | None if optional else kind, option]  # type: ignore[valid-type]
    return inspect.Parameter(name_of(one), inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def words(flag: Flag, name: str, kind: Any, default: Any) -> tuple[str, ...]:
    """The flag as it is typed; what is on by default can be turned off, what is off is not offered twice."""
    if flag.words or kind is not bool:
        return flag.words
    dashed = name.replace("_", "-")
    return (f"--{dashed}/--no-{dashed}" if default else f"--{dashed}",)


def name_of(one: Declared) -> str:
    """The name of the command's parameter."""
    return one.flag.name or one.field


def choices(one: Declared) -> type[StrEnum]:
    """The values of a Literal as the enumeration that the command line knows."""
    return cast("type[StrEnum]", StrEnum(one.field, {str(choice): str(choice) for choice in one.choices}))


def value(one: Declared, given: Any) -> Any:
    """The field's value for what was given."""
    if one.flag.read is not None:
        return one.flag.read(given)
    if one.choices and given is not None:
        return next(choice for choice in one.choices if str(choice) == given.value)
    return given
