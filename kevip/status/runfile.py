"""The runtime file of a VIP: what its daemon says of itself, for probes, ``kevip status`` and people."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from stat import S_ISREG

from kevip.errors import HostError, KevipError
from kevip.host import kernel
from kevip.loop import Moment
from kevip.status.record import Record, from_json, to_json

_MADE = ".made-by-kevip"  # what a directory holds that kevip has made, and so removes


def reported(run_dir: Path) -> set[IPv4Address]:
    """Return the VIPs that have a runtime file in the directory, if it can be read."""
    found = set()
    with suppress(OSError):
        for path in run_dir.glob("*.json"):
            with suppress(AddressValueError):
                found.add(IPv4Address(path.stem))
    return found


def group_of(run_dir: Path, vip: IPv4Address) -> IPv4Address:
    """Return the first VIP of the group that has this one, by which its files are named; itself if none is known."""
    found = (each for each in sorted(reported(run_dir)) if vip in StateFile(run_dir, each).vips())
    return vip if vip in reported(run_dir) else next(found, vip)


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
            _make(self.run_dir)
        except OSError as error:
            raise HostError(f"cannot create {self.run_dir}: {error.strerror}: set --run-dir to another one") from None
        if problem := self.problem():
            raise HostError(problem)

    def problem(self) -> str | None:
        """Say why ``prepare`` would fail, without creating anything."""
        places = self.run_dir, *self.run_dir.absolute().parents
        nearest = next(path for path in places if os.access(path, os.F_OK))
        fit = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
        return None if fit else f"{nearest} is not writable: set --run-dir to another one"

    def write(self, record: Record, now: Moment) -> None:
        """Replace the file; ``now`` is the time on the record's clock. Raises OSError."""
        _make(self.run_dir)  # another kevip may have removed it
        draft = self.path.with_suffix(".new")
        draft.unlink(missing_ok=True)  # somebody may have put a link or a pipe there
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600), "w") as file:
            file.write(json.dumps(to_json(record, now)) + "\n")
        draft.replace(self.path)

    def read(self) -> Record | None:
        """Return what the daemon said last, None if there is no file; raises KevipError if it cannot be read."""
        try:
            with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)) as file:  # a pipe is not waited for
                said = file.read() if S_ISREG(os.fstat(file.fileno()).st_mode) else ""
            return from_json(json.loads(said), kernel.uptime())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise KevipError(f"cannot read {self.path}: {error.strerror}") from None
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            raise KevipError(f"{self.path} is not what this version writes: restart its kevip") from None

    def vips(self) -> list[IPv4Address]:
        """Return the group of this VIP, as far as the file tells; this one first."""
        with suppress(KevipError):
            if record := self.read():
                return record.vips
        return [self.vip]

    def remove(self) -> bool:
        """Remove the file, and directories of kevip's that nobody else uses; say if it was there. Raises OSError."""
        there = self.path.exists()
        for path in (self.path, self.path.with_suffix(".new"), self.path.with_suffix(".sock")):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            for directory in (self.run_dir, *self.run_dir.parents):
                if [path.name for path in directory.iterdir()] != [_MADE]:
                    break
                (directory / _MADE).unlink()
                directory.rmdir()
        return there


def _make(directory: Path) -> None:
    """Make a directory and those above it, and mark them as ours to remove, unless they are there; raises OSError."""
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)  # another kevip may make it, too
        (directory / _MADE).touch(mode=0o600)
