"""The runtime file of a VIP: the daemon's role, for probes and people. It holds no secret."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

from kevip.errors import HostError


@dataclass(frozen=True, slots=True)
class StateFile:
    """``VIP.json`` in the run directory, replaced as a whole at each change of role."""

    run_dir: Path
    vip: IPv4Address

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.run_dir / f"{self.vip}.json"

    def prepare(self) -> None:
        """Create the run directory, for its owner only; raises HostError."""
        try:
            self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            writable = os.access(self.run_dir, os.W_OK | os.X_OK)
        except OSError as error:
            raise HostError(f"cannot create {self.run_dir}: {error.strerror}: set --run-dir to another one") from None
        if not writable:
            raise HostError(f"{self.run_dir} is not writable: set --run-dir to another one")

    def write(self, role: str) -> None:
        """Say which role this daemon has from now on; raises OSError."""
        state = {"vip": str(self.vip), "pid": os.getpid(), "role": role, "since": datetime.now(UTC).isoformat()}
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # another kevip may have removed it, empty
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(state) + "\n")
        draft.replace(self.path)

    def remove(self) -> None:
        """Remove the file, and the directory if nobody else's file is in it."""
        for path in (self.path, self.path.with_suffix(".new")):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.run_dir.rmdir()
