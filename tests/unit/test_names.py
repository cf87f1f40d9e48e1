"""Which address of a name is in use, and what becomes of a look-up that fails."""

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from unittest import mock

import pytest

from kevip import names
from kevip.errors import HostError, SettingsError
from kevip.loop import Loop

ONE, TWO, THREE = map(IPv4Address, ("192.0.2.1", "192.0.2.2", "192.0.2.3"))


class Resolver:
    """Stands in for the system's, and notes what is told."""

    def __init__(self) -> None:
        self.answers: list[IPv4Address] | str = [TWO, ONE]
        self.log, self.told = mock.Mock(), list[Mapping[str, IPv4Address]]()
        self.time, self.loop = 0.0, Loop(lambda: self.time)
        self.names = names.Names(self.loop, ["db.example"], self.log)
        self.names.changed = self.told.append

    def resolve(self, name: str) -> tuple[IPv4Address, ...]:
        """Answer as told."""
        assert name == "db.example"
        if isinstance(self.answers, str):
            raise HostError(self.answers)
        return tuple(sorted(self.answers))

    def ask(self, answers: list[IPv4Address] | str) -> IPv4Address | None:
        """Have it looked up again, and return which address is in use then."""
        self.answers = answers
        self.time += names.EVERY
        self.loop.turn()
        self.loop.turn()
        return self.names.addresses.get("db.example")


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    made = Resolver()
    with mock.patch.object(names, "resolve", made.resolve):
        yield made
        made.names.close()
    made.loop.close()


def test_the_lowest_address_is_taken_and_stays_while_it_is_an_answer(resolver: Resolver) -> None:
    assert [resolver.ask(each) for each in ([THREE, TWO], [THREE, TWO, ONE], [THREE, ONE])] == [TWO, TWO, ONE]
    assert [each["db.example"] for each in resolver.told] == [TWO, ONE]


def test_a_look_up_that_fails_changes_nothing_and_is_told_once(resolver: Resolver) -> None:
    assert resolver.ask("no answer") is None
    assert not resolver.names.is_complete
    assert [resolver.ask(each) for each in ([ONE], "gone", "gone", [ONE])] == [ONE] * 4
    assert [each.kwargs["hint"] for each in resolver.log.warning.mock_calls] == [
        "the start waits for it", f"{ONE} stays in use",
    ]  # fmt: skip
    assert resolver.names.known["db.example"] == names.Known(ONE, resolver.time)


def test_an_address_that_cannot_be_is_not_taken(resolver: Resolver) -> None:
    resolver.ask([ONE])
    resolver.names.changed = mock.Mock(side_effect=SettingsError("it is a VIP of this group"))
    assert resolver.ask([TWO]) == ONE
    assert resolver.names.known["db.example"].problem == "it is a VIP of this group"


def test_a_name_that_nobody_knows_is_said_to_be_so() -> None:
    with pytest.raises(HostError, match=r"^x\.invalid has no address: .*: getent ahostsv4 x\.invalid$"):
        names.resolve("x.invalid")
    assert names.resolve("localhost") == (IPv4Address("127.0.0.1"),)
