"""Define what a stage is: what it is asked before any work, what it changes, and what it says of it. Imports no
torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from oldphoto.arrays import Mask, Pixels
from oldphoto.options import Options
from oldphoto.weights.sets import ModelSet, Role

if TYPE_CHECKING:
    from oldphoto.models.loaded import Models
    from oldphoto.models.translating import TranslationPlan
    from oldphoto.stages.faces import Face

# The parts of a restoration that are timed: a key of `seconds`, of the record and of --verbose.
Clock = Literal["scratches", "translation", "rebuilding", "faces", "colouring", "blending", "enlarging"]


@dataclass(frozen=True)
class Case:
    """The facts that are known of one photo before any work.

    options, models: the user's choices and the weight set. large: it takes the path for large photos. has_mask: the
    user brings a mask, so that no damage is looked for. width, height: pixels; depth: bits of a channel; both 0 where
    only networks are asked for. converted: its colours are not sRGB.
    """

    options: Options
    models: ModelSet
    large: bool
    has_mask: bool
    width: int = 0
    height: int = 0
    depth: int = 8
    converted: bool = False

    @property
    def damaged(self) -> bool:
        """Whether damage is repaired: that of a mask, or what is found."""
        return self.has_mask or self.options.with_scratch

    @property
    def copy_bytes(self) -> int:
        """Bytes of one copy of the photo as the stages see it: between its colours and sRGB it has 16 bits."""
        return self.width * self.height * 3 * (16 if self.converted else self.depth) // 8


@dataclass
class State:
    """The values that flow from stage to stage.

    seen: the photo as it came, in sRGB. pixels: what it has become so far. before: what translation was given, until
    the change is kept in part; None afterwards, since it is a copy as large as the photo. mask: what is repaired, or
    None; trusted: nothing of what lies under it is looked at; filled: it is no hole any more. way: how the photo is
    translated. faces: all that were found, by number. native_scale: how many times larger than its detail the photo
    was; 1 where nobody asks. rebuilt: at that scale. colorized: its colours are made up. warnings: one line each.
    """

    seen: Pixels
    pixels: Pixels
    mask: Mask | None
    trusted: bool
    way: TranslationPlan
    before: Pixels | None = None
    faces: tuple[Face, ...] = ()
    native_scale: float = 1.0
    rebuilt: bool = False
    warnings: list[str] = field(default_factory=list)
    filled: bool = False
    colorized: bool = False

    @property
    def holes(self) -> Mask | None:
        """The holes that networks still have to fill: the mask, until it is filled."""
        return None if self.filled else self.mask


class Stage(Protocol):
    """One step of a restoration. Its order among the others stands in `oldphoto.stages.STAGES` and nowhere else.

    name: of its facts in a Restoration. clock: what its time is counted as. doing, without: for the message that there
    is no memory for it: what it does, and the option that leaves it out.
    """

    name: str
    clock: Clock
    doing: str
    without: str

    def wanted(self, case: Case) -> bool:
        """Whether the stage runs at all."""

    def roles(self, case: Case) -> tuple[Role, ...]:
        """The networks it needs for such a photo, and no others."""

    def copies(self, case: Case) -> int:
        """Return how many copies of the photo it leaves in memory for the stages after it, beside `pixels`."""

    def memory(self, case: Case, models: Models) -> int | None:
        """Bytes it takes while it runs, beside copies of the photo; None where translation takes more in any case."""

    def run(self, state: State, case: Case, models: Models) -> Any:
        """Change the state, and return what was done, a fact for `record` and the Restoration; None is nothing."""

    def generated(self, state: State) -> bool:
        """Whether the finished photo holds content that this stage made up, as IPTC means it."""

    def record(self, fact: Any) -> dict[str, Any]:
        """The fact as JSON for the entry of the photo in the manifest's `changes`; the same keys for None."""

    def words(self, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The fact in words, from such an entry: rows of a name and a text."""


class Plain:
    """The answers of a stage that has nothing to say: every method of Stage but `run`."""

    doing = without = ""

    def wanted(self, case: Case) -> bool:
        """See Stage."""
        return True

    def roles(self, case: Case) -> tuple[Role, ...]:
        """See Stage."""
        return ()

    def copies(self, case: Case) -> int:
        """See Stage."""
        return 0

    def memory(self, case: Case, models: Models) -> int | None:
        """See Stage."""
        return None

    def generated(self, state: State) -> bool:
        """See Stage."""
        return False

    def record(self, fact: Any) -> dict[str, Any]:
        """See Stage."""
        return {}

    def words(self, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
        """See Stage."""
        return []
