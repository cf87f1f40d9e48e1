"""A kevip container on a node: podman runs it there with the node's network, as Docker or a kubelet does on a host."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from lab.network import TARGET, VIP, Namespace, eventually
from lab.replica import PASSWORD

IMAGE = os.environ.get("IMAGE", "")
"""The image under test, as script/test-image names it."""

CAPABILITIES = ("NET_ADMIN", "NET_RAW")
HARDENED = ("--security-opt=no-new-privileges", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/run")
SETTINGS = {"VIP": VIP, "TARGET": TARGET, "PASSWORD": PASSWORD}


def podman(node: Namespace, *arguments: str) -> str:
    """Run podman on a node and return its stdout. What it runs in a container on the host's network is there too."""
    return node.run("podman", *arguments)


def rights(capabilities: Sequence[str] = CAPABILITIES) -> list[str]:
    """Return the flags that take all rights from a container, but these capabilities."""
    return ["--cap-drop=ALL", *(f"--cap-add={name}" for name in capabilities), *HARDENED]


def invoke(node: Namespace, *arguments: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the image to its end on a node, with podman's options and kevip's arguments."""
    return subprocess.run(
        node.command("podman", "run", "--rm", *options, IMAGE, *arguments),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


class Container:
    """A running container of the image, by its id."""

    def __init__(self, node: Namespace, container: str) -> None:
        self.node = node
        self.id = container
        self.pid = int(self.inspect()["State"]["Pid"])

    @classmethod
    def start(cls, node: Namespace, *, options: Sequence[str] = ("--network=host",), **settings: str) -> Self:
        """Start one, with the rights that it needs and no more, on the host's network."""
        extra = ["SYS_NICE"] if settings.get("ENGINE") == "keepalived" else []
        variables = [f"--env={name}={value}" for name, value in {**SETTINGS, **settings}.items()]
        return cls(
            node, podman(node, "run", "--detach", *rights([*CAPABILITIES, *extra]), *options, *variables, IMAGE).strip()
        )

    def inspect(self) -> dict[str, Any]:
        """Return what podman knows of it."""
        [found] = json.loads(podman(self.node, "inspect", self.id))
        return dict(found)

    def state(self) -> dict[str, Any]:
        """Return what its runtime file says; nothing before there is one, and after the end."""
        try:
            return dict(json.loads(Path(f"/proc/{self.pid}/root/run/kevip/{VIP}.json").read_text()))
        except (FileNotFoundError, ProcessLookupError):
            return {}

    def ready(self) -> Self:
        """Wait until it takes part in the election."""
        eventually(
            lambda: self.state().get("role") in {"backup", "master"}, what=f"{self.node.name} is in the election"
        )
        return self

    def master(self) -> Self:
        """Wait until it is master and its node has the VIP."""
        eventually(lambda: self.state().get("role") == "master" and self.node.has(VIP), what="is master")
        return self

    def daemon(self) -> int:
        """Return the process id of the daemon, which the container's init started."""
        [pid] = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(pid)

    def healthcheck(self) -> bool:
        """Run the image's health check, as Docker does by itself, and return whether it is healthy."""
        argv = self.node.command("podman", "healthcheck", "run", self.id)
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def log(self) -> str:
        """Return what it wrote."""
        argv = self.node.command("podman", "logs", self.id)
        return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log's events of a name."""
        events = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [event for event in events if event["event"] == name]

    def stop(self) -> int:
        """Stop it as an operator does; return its exit status."""
        podman(self.node, "stop", "--time=10", self.id)
        return int(self.inspect()["State"]["ExitCode"])

    def kill(self) -> None:
        """Kill all of it with SIGKILL."""
        podman(self.node, "kill", "--signal=KILL", self.id)

    def remove(self) -> None:
        """End it, whatever it does, and remove it."""
        podman(self.node, "rm", "--force", "--time=0", self.id)
