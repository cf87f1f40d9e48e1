"""What systemd is told, and that it cannot harm the daemon."""

import socket
from pathlib import Path

import pytest

from kevip.host import command
from kevip.host.systemd import notify


@pytest.mark.parametrize("form", ["{}/notify", "@{}/notify"])
def test_the_manager_gets_the_assignments(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a path, and through a name of the abstract kind."""
    path = form.format(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path.replace("@", "\0"))
        manager.settimeout(1)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("READY=1", "STATUS=master")
        assert manager.recv(100) == b"READY=1\nSTATUS=master"


@pytest.mark.parametrize("path", [None, "", "/nowhere/notify", "@nobody", "x" * 200])
def test_a_manager_that_is_not_there_is_no_matter(path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if path is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
    notify("READY=1")


def test_a_manager_that_does_not_read_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for _ in range(5000):  # more than any queue of datagrams holds (net.unix.max_dgram_qlen)
            notify("WATCHDOG=1")


def test_children_do_not_inherit_the_socket() -> None:
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(command.ENVIRONMENT)
