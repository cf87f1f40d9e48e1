"""What an operator asks, as far as no daemon is needed: what is kept of a standby, and what is understood of it."""

from ipaddress import IPv4Address
from math import inf
from pathlib import Path
from unittest import mock

import pytest

from kevip import control
from kevip.control import Memory, Question
from kevip.core.messages import Standby

VIP = IPv4Address("10.0.0.100")


@pytest.mark.parametrize("out", [True, False])
def test_a_standby_is_known_to_the_next_daemon_whose_clock_is_another_one(tmp_path: Path, *, out: bool) -> None:
    memory = Memory(tmp_path, VIP)
    with mock.patch.object(control, "time", return_value=1000.0):
        memory.keep(Standby(160.0, out), now=100.0)
    with mock.patch.object(control, "time", return_value=1050.0):
        assert memory.recall(now=7.0) == Standby(17.0, out)
    with mock.patch.object(control, "time", return_value=1060.0):
        assert memory.recall(now=17.0) is None


def test_one_without_an_end_is_kept_until_it_is_resumed(tmp_path: Path) -> None:
    memory = Memory(tmp_path, VIP)
    assert memory.recall(0.0) is None
    memory.keep(Standby(inf), 5.0)
    assert memory.recall(9.0) == Standby(inf)
    memory.keep(Standby(-inf), 5.0)
    assert memory.recall(9.0) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "x", "[]", "{}", '{"until": "x", "out": 0}', '{"until": null, "out": 0}'])
def test_what_is_no_standby_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / f"{VIP}.standby").write_text(content)
    assert Memory(tmp_path, VIP).recall(0.0) is None


@pytest.mark.parametrize(("question", "meant"), [
    (Question("standby"), Standby(inf)), (Question("standby", 60.0, force=True), Standby(160.0, out=True)),
    (Question("move", 60.0), Standby(160.0)), (Question("resume"), Standby(-inf)),
])  # fmt: skip
def test_what_is_asked_means_a_standby(question: Question, meant: Standby) -> None:
    assert question.meant(100.0) == meant
