"""The runtime file of a VIP: what its daemon says of itself, for probes, ``kevip status`` and people."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any

from kevip.errors import HostError, KevipError
from kevip.record import Record

HANGS = 15.0
"""Seconds without a word after which a daemon hangs: a program that it waits for may take 10 s. As in kevip-probe."""

_MADE = ".made-by-kevip"
"""What a run directory holds that kevip has made, and so removes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the check of TARGET says: whether it is up since when, or else why not; the round trip in milliseconds."""

    check: str
    up: bool
    since: datetime
    round_trip_ms: float | None = None
    problem: str | None = None

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> "Health":
        """Build it from a report; raises LookupError, TypeError, ValueError."""
        return cls(
            check=said["check"],
            up=said["up"],
            since=datetime.fromisoformat(said["since"]),
            round_trip_ms=said.get("round_trip_ms"),
            problem=said.get("problem"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a daemon says of itself: a Record, read from outside. ``written`` is when it did."""

    written: datetime
    pid: int
    target: str | None
    interface: str
    iptables: str
    patience: float
    role: str
    since: datetime
    reason: str
    transitions: int
    peers: Mapping[IPv4Address, datetime]
    repairs: Mapping[str, int]
    bad_adverts: Mapping[str, int]
    rules: tuple[str, ...]
    claims: tuple[str, ...]
    health: Health | None
    said: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, said: Mapping[str, Any], written: datetime) -> "Report":
        """Build it from ``Record.as_json``; raises LookupError, TypeError, ValueError."""
        health = said.get("health")
        return cls(
            written=written,
            pid=said["pid"],
            target=said["target"],
            interface=said["interface"],
            iptables=said["iptables"],
            patience=said["patience"],
            role=said["role"],
            since=datetime.fromisoformat(said["since"]),
            reason=said["reason"],
            transitions=said["transitions"],
            peers={IPv4Address(peer): datetime.fromisoformat(heard) for peer, heard in said["peers"].items()},
            repairs=said["repairs"],
            bad_adverts=said["bad_adverts"],
            rules=tuple(said["rules"]),
            claims=tuple(said["claims"]),
            health=Health.parse(health) if health else None,
            said=said,
        )


def reported(run_dir: Path) -> set[IPv4Address]:
    """Return the VIPs that have a runtime file in the directory, if it can be read."""
    found = set()
    with suppress(OSError):
        for path in run_dir.iterdir():
            with suppress(AddressValueError):
                found |= {IPv4Address(path.stem)} if path.suffix == ".json" else set()
    return found


@dataclass(frozen=True, slots=True)
class StateFile:
    """``VIP.json`` in the run directory, replaced as a whole at each change of role, and every few seconds."""

    run_dir: Path
    vip: IPv4Address

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.run_dir / f"{self.vip}.json"

    def prepare(self) -> None:
        """Create the run directory, for its owner only; raises HostError."""
        try:
            self._make()
            writable = os.access(self.run_dir, os.W_OK | os.X_OK)
        except OSError as error:
            raise HostError(f"cannot create {self.run_dir}: {error.strerror}: set --run-dir to another one") from None
        if not writable:
            raise HostError(f"{self.run_dir} is not writable: set --run-dir to another one")

    def _make(self) -> None:
        """Make the run directory, and mark it as ours to remove, unless it is there; raises OSError."""
        if not self.run_dir.is_dir():
            self.run_dir.mkdir(mode=0o700, parents=True)
            (self.run_dir / _MADE).touch(mode=0o600)

    def problem(self) -> str | None:
        """Say why ``prepare`` would fail, without creating anything."""
        there = (path for path in (self.run_dir, *self.run_dir.absolute().parents) if os.access(path, os.F_OK))
        nearest = next(there)
        if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
            return None
        return f"{nearest} is not writable: set --run-dir to another one"

    def write(self, record: Record) -> None:
        """Replace the file; raises OSError."""
        self._make()  # another kevip may have removed it
        draft = self.path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW  # somebody may have put a link there
        with os.fdopen(os.open(draft, flags, mode=0o600), "w") as file:
            file.write(json.dumps(record.as_json()) + "\n")
        draft.replace(self.path)

    def read(self) -> Report | None:
        """Return what the daemon said last, None if there is no file; raises KevipError if it cannot be read."""
        try:
            written = datetime.fromtimestamp(self.path.stat().st_mtime, UTC)
            return Report.parse(json.loads(self.path.read_text()), written)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise KevipError(f"cannot read {self.path}: {error.strerror}") from None
        except (AttributeError, LookupError, TypeError, ValueError):
            raise KevipError(f"{self.path} is not what this version writes: restart its kevip") from None

    def remove(self) -> bool:
        """Remove the file, and the directory if kevip made it and nobody else uses it; say whether there was a file."""
        there = self.path.exists()
        for path in (self.path, self.path.with_suffix(".new")):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            if [path.name for path in self.run_dir.iterdir()] == [_MADE]:
                (self.run_dir / _MADE).unlink()
                self.run_dir.rmdir()
        return there
