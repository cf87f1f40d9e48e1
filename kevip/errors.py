"""What can go wrong, and the exit status that each kind ends the program with."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of kevip; docs/settings.md lists them for users."""

    OK = 0
    FAILURE = 1  # something failed while running: a bug, or a host that stopped cooperating
    USAGE = 2  # the settings are incomplete or wrong
    HOST = 3  # this host cannot do it: an interface, a program, a capability or a sysctl is missing
    BUSY = 4  # another kevip serves this VIP on this host already


class KevipError(Exception):
    """A failure with one line per problem, each of which says what is wrong and what to do."""

    status = ExitStatus.FAILURE

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class SettingsError(KevipError):
    """The settings are incomplete, malformed or contradict each other."""

    status = ExitStatus.USAGE


class HostError(KevipError):
    """The host lacks something that kevip needs."""

    status = ExitStatus.HOST


class BusyError(KevipError):
    """Another kevip serves this VIP on this host."""

    status = ExitStatus.BUSY
