"""What the reasons for a role are called in sentences."""

from kevip.core.messages import Reason

PROSE = {
    Reason.STARTED: "started",
    Reason.JOINED: "joined the election",
    Reason.ALONE: "no master was heard",
    Reason.GOODBYE: "the master said goodbye",
    Reason.SILENCE: "the master fell silent",
    Reason.PREFERRED: "preferred to the master",
    Reason.YIELDED: "another master is preferred",
    Reason.UNLINKED: "its interface went down, or lost the carrier",
    Reason.MOVED: "its address changed",
    Reason.STOPPED: "stopped by a signal",
    Reason.LATE: "another one was elected first",
    Reason.FOLLOWED: "another one took over",
    Reason.NOBODY: "no other one took over",
    Reason.ENGINE: "what elects ended or does not advertise",
    Reason.UNFIT: "this host cannot serve",
    Reason.TARGET: "TARGET does not answer, or does again",
    Reason.KEPT: "nobody that should have it took over",
}
