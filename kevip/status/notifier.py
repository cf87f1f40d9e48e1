"""Runs a command of the operator's at each change of role, beside the loop: in order, one at a time."""

from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from threading import Thread
from time import time
from typing import Any

from kevip.host import command
from kevip.host.command import CommandError, Scope
from kevip.status.record import Record

PATIENCE = 30.0  # seconds that each run may take
LAST = 3.0  # seconds that a stop waits for those that are left, which is over when the VIP is gone already


class Notifier:
    """Runs ``COMMAND ROLE VIP REASON``; what comes of it changes nothing, but failures are logged and counted."""

    def __init__(self, argv: Sequence[str], log: Any) -> None:
        self._argv, self._log = argv, log
        self._changes: SimpleQueue[Record | None] = SimpleQueue()
        self._scope = Scope(PATIENCE)
        self._previous = ""
        self.failures = 0
        self._thread = Thread(target=self._work, daemon=True, name="notify")
        self._thread.start()

    def tell(self, record: Record) -> None:
        """Have a change of role told, when all earlier ones are."""
        self._changes.put(record.snapshot())

    def close(self) -> None:
        """Wait a moment for what was not told yet, and end what still runs."""
        self._changes.put(None)
        self._thread.join(LAST)
        self._scope.cancel()

    def _work(self) -> None:
        while record := self._changes.get():
            self._run([*self._argv, record.role.value, str(record.vip), record.reason.value], self._variables(record))
            self._previous = record.role

    def _run(self, argv: Sequence[str], variables: Mapping[str, str]) -> None:
        try:
            with self._scope:
                command.told_now(argv, seconds=PATIENCE, variables=variables)
        except CommandError as error:
            self.failures += 1
            self._log.warning("notify.failed", command=argv[0], role=argv[-3], error=error.ending)

    def _variables(self, record: Record) -> dict[str, str]:
        return {
            "KEVIP_ROLE": record.role,
            "KEVIP_PREVIOUS_ROLE": self._previous or "init",
            "KEVIP_REASON": record.reason,
            "KEVIP_VIP": str(record.vip),
            "KEVIP_VIP_ID": str(record.vip_id),
            "KEVIP_TARGET": str(record.target or ""),
            "KEVIP_INTERFACE": record.interface,
            "KEVIP_TIME": f"{time():.3f}",
        }
