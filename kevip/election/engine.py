"""What an election engine is to the rest: a program that says who is master, whatever it is and speaks."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

from kevip.core.messages import Event
from kevip.core.states import Traits
from kevip.host.interface import Placement

Tell = Callable[[Event], None]  # where events go


class Teller(Protocol):
    """Where an engine says what people should know, and counts what it sees."""

    log: Any

    def warn_once(self, event: str, subject: object, **context: object) -> None:
        """Warn of something about a subject, unless that was done a short while ago."""

    def count(self, what: Literal["bad_adverts", "engine_starts"], kind: str = "") -> None:
        """Count one more of that."""


class Engine(Protocol):
    """An engine, which tells Elected, Demoted, Ended and Heard. What it says is a level: the last word counts."""

    traits: Traits

    def start(self, run: int, *, fit: bool) -> Placement | None:
        """Stand for election where the VIP belongs now, and return where that is; None, and told, if it cannot."""

    def proceed(self, token: str) -> None:
        """Go on: the host is as it was asked to be."""

    def rerank(self, *, fit: bool) -> None:
        """Stand as fit from now on, or not, in the role that there is."""

    def end(self) -> None:
        """End at once, and advertise no more; Ended follows."""

    def goodbye(self, *, known: bool, fit_only: bool, rank: int | None) -> None:
        """Make a peer take over while this host serves on: that with a rank first, if that is of use."""

    def end_goodbye(self) -> None:
        """Say no more goodbyes."""

    def yields(self) -> None:
        """Say once that this host lets go."""

    def beat(self) -> None:
        """Note that the daemon is well; without this, the engine must end within seconds."""

    def close(self) -> None:
        """End, and free what belongs to it."""
