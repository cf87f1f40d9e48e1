"""Hosts as network namespaces: a switch with nodes and a client, and behind a router a far client and the target.

::

    far client ─── router ─── target (a third party)        198.51.100.0/24, 203.0.113.0/24
                      │
      client ─── switch ─── node1, node2, node3              10.77.0.0/24, the VIPs among them
"""

import ctypes
import fcntl
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

LAN = "10.77.0"
SYNC = "10.78.0"
VIP = f"{LAN}.100"
VIP2 = f"{LAN}.101"
CLIENT = f"{LAN}.50"
ROUTER = f"{LAN}.1"
FAR_CLIENT = "198.51.100.50"
TARGET = "203.0.113.10"

_SETTLING = 1.5
"""Seconds after which two masters have heard of each other."""

_CLONE_NEWNET = 0x40000000
_SIOCGIFCONF, _IFREQ = 0x8912, 40
_LIBC = ctypes.CDLL(None, use_errno=True)
_SERIAL = itertools.count(1)


def require_own_namespace() -> None:
    """Refuse to run anywhere but in a fresh network namespace, as script/lab makes it."""
    interfaces = {path.name for path in Path("/proc/sys/net/ipv4/conf").iterdir()} - {"all", "default", "lo"}
    own_run = any(line.split()[1] == "/run" for line in Path("/proc/self/mounts").read_text().splitlines())
    if os.geteuid() != 0 or not own_run or any(not name.startswith("lab") for name in interfaces - _TUNNELS):
        raise RuntimeError("this needs namespaces of its own: run it with script/lab")


_TUNNELS = {"sit0", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0", "ifb0", "ifb1"}
"""Interfaces that some kernels put into every new namespace."""


def eventually(condition: Callable[[], Any], *, within: float = 20.0, what: str = "") -> Any:
    """Wait until the condition is true and return what it returned; raises AssertionError."""
    deadline = time.monotonic() + within
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what or condition}")
        time.sleep(0.02)
    return result


def run(*argv: str, stdin: str = "") -> str:
    """Run a program and return its stdout; an error shows its stderr."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr}")
    return done.stdout


DATAPLANES = ("nftables", "iptables-nft", "iptables-legacy")


def iptables_beside(dataplane: str) -> str:
    """Return which iptables somebody uses who has a dataplane: that one, or iptables-nft beside nftables."""
    return "legacy" if dataplane == "iptables-legacy" else "nft"


_OF_IPTABLES = re.compile(r"ip6? (filter|nat|mangle|raw|security) ")


class Namespace:
    """A host: a network namespace with a name."""

    def __init__(self, name: str) -> None:
        self.name = name
        run("ip", "netns", "add", name)
        self.run("ip", "link", "set", "lo", "up")
        self.sysctl("net.ipv4.ip_forward", "0")

    @property
    def path(self) -> Path:
        """The file that stands for the namespace."""
        return Path("/run/netns") / self.name

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs a program here."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(self, *argv: str, stdin: str = "") -> str:
        """Run a program here and return its stdout."""
        return run(*self.command(*argv), stdin=stdin)

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a program here."""
        return subprocess.Popen(self.command(*argv), **options)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run the block in a thread that is in this namespace; sockets made there stay in it."""
        with Path("/proc/thread-self/ns/net").open("rb") as home, self.path.open("rb") as here:
            _setns(here.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def sysctl(self, name: str, value: str | None = None) -> str:
        """Read a sysctl of this namespace, or set it."""
        path = Path("/proc/sys") / name.replace(".", "/")
        with self.entered():
            if value is not None:
                path.write_text(value)
            return path.read_text().strip()

    def addresses(self) -> list[tuple[str, str, str]]:
        """Return interface, address/prefix and lifetime ("forever" or "lease") of each IPv4 address but lo's."""
        return [
            (entry["ifname"], f"{each['local']}/{each['prefixlen']}", "lease" if each.get("dynamic") else "forever")
            for entry in json.loads(self.run("ip", "-json", "-4", "address", "show"))
            for each in entry.get("addr_info", [])
            if entry["ifname"] != "lo"
        ]

    def has(self, address: str) -> bool:
        """Whether the address is on this host; asked again and again, so it starts no process (netdevice(7))."""
        room = ctypes.create_string_buffer(_IFREQ * 512)
        request = struct.pack("@iP", len(room), ctypes.addressof(room))
        with self.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inquirer:
            length = struct.unpack_from("@i", fcntl.ioctl(inquirer, _SIOCGIFCONF, request))[0]
        return socket.inet_aton(address) in {room.raw[at + 20 : at + 24] for at in range(0, length, _IFREQ)}

    def rules(self) -> dict[str, list[str]]:
        """Return all rules by back end, without counters, time stamps, and tables of iptables that hold nothing.

        Such a table that was used once stays, empty, until its namespace ends; it does nothing.
        """
        tables = re.split(r"^table ", self.run("nft", "--stateless", "list", "ruleset"), flags=re.MULTILINE)
        native = [f"table {each}" for each in tables if each and not _OF_IPTABLES.match(each)]
        return {
            "nftables": "".join(native).splitlines(),
            "iptables-nft": _rules(self.run("iptables-nft-save")),
            "iptables-legacy": _rules(self.run("iptables-legacy-save")),
        }

    def has_rules(self, dataplane: str) -> bool:
        """Whether rules of kevip's are there."""
        return any("kevip-" in line.lower() for line in self.rules()[dataplane])

    def iptables(self, *arguments: str, backend: str = "nft") -> str:
        """Run iptables here."""
        return self.run(f"iptables-{backend}", "--wait", *arguments)

    @property
    def mac(self) -> str:
        """The MAC address of eth0."""
        [link] = json.loads(self.run("ip", "-json", "link", "show", "dev", "eth0"))
        return str(link["address"])

    def neighbour(self, address: str) -> str | None:
        """Return the MAC address that this host has for a neighbour."""
        [entry] = json.loads(self.run("ip", "-json", "neighbour", "show", "to", address)) or [{}]
        mac: str | None = entry.get("lladdr")
        return mac

    def pids(self) -> set[int]:
        """Return the processes on this host."""
        return {int(pid) for pid in run("ip", "netns", "pids", self.name).split()}

    def remove(self) -> None:
        """Remove the host with its network; its processes must have ended."""
        run("ip", "netns", "delete", self.name)


def _setns(fd: int) -> None:
    if _LIBC.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _rules(saved: str) -> list[str]:
    lines: list[str] = []
    for table in saved.split("COMMIT\n"):
        body = [line.partition(" [")[0] for line in table.splitlines() if not line.startswith("#")]
        if any(line.startswith("-A") or (line.startswith(":") and not line.endswith(" ACCEPT")) for line in body):
            lines += body
    return lines


class Network:
    """The whole lab; a context manager that removes it."""

    def __init__(self, nodes: int = 3) -> None:
        require_own_namespace()
        prefix = f"lab{os.getpid()}-{threading.get_ident() % 997}-{next(_SERIAL)}"
        self._spaces: list[Namespace] = []
        try:
            self._build(prefix, nodes)
        except BaseException:
            self.close()
            raise

    def _build(self, prefix: str, nodes: int) -> None:
        self.switch = self._host(f"{prefix}-switch")
        self.switch.run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        self.switch.run("ip", "link", "set", "br0", "up")
        self.switch.sysctl("net.bridge.bridge-nf-call-iptables", "0")  # a switch looks at no IP packet
        self.router = self._host(f"{prefix}-router")
        self.router.sysctl("net.ipv4.ip_forward", "1")
        self.client = self._host(f"{prefix}-client")
        self.far_client = self._host(f"{prefix}-far")
        self.target = self._host(f"{prefix}-target")
        self.nodes = [self._host(f"{prefix}-node{number}") for number in range(1, nodes + 1)]

        self.plug(self.router, f"{ROUTER}/24", port="router")
        # Of two clients with the same source port, one is translated to another, and does not survive a move.
        self.client.sysctl("net.ipv4.ip_local_port_range", "20000 39999")
        self.far_client.sysctl("net.ipv4.ip_local_port_range", "40000 59999")
        for host, address, port in [
            (self.client, CLIENT, "client"),
            *((node, f"{LAN}.{10 + number}", f"node{number}") for number, node in enumerate(self.nodes, 1)),
        ]:
            self.plug(host, f"{address}/24", port=port)
            host.run("ip", "route", "add", "default", "via", ROUTER)
        for host, address, port in [(self.far_client, FAR_CLIENT, "far"), (self.target, TARGET, "target")]:
            gateway = f"{address.rpartition('.')[0]}.1"
            run("ip", "link", "add", "eth0", "netns", host.name, "type", "veth",
                "peer", "name", port, "netns", self.router.name)  # fmt: skip
            _up(host, "eth0", f"{address}/24")
            _up(self.router, port, f"{gateway}/24")
            host.run("ip", "route", "add", "default", "via", gateway)

    def _host(self, name: str) -> Namespace:
        space = Namespace(name)
        self._spaces.append(space)
        return space

    def plug(self, host: Namespace, address: str, *, port: str, device: str = "eth0") -> None:
        """Connect a host to the switch."""
        run("ip", "link", "add", device, "netns", host.name, "type", "veth",
            "peer", "name", port, "netns", self.switch.name)  # fmt: skip
        self.switch.run("ip", "link", "set", port, "master", "br0", "up")
        _up(host, device, address)

    def connect_apart(self) -> None:
        """Connect the nodes by a network of their own, too: eth1, with addresses that end as those of eth0."""
        self.switch.run("ip", "link", "add", "br1", "type", "bridge", "mcast_snooping", "0")
        self.switch.run("ip", "link", "set", "br1", "up")
        for number, node in enumerate(self.nodes, 1):
            self.plug(node, f"{SYNC}.{10 + number}/24", port=f"sync{number}", device="eth1")
            self.switch.run("ip", "link", "set", f"sync{number}", "master", "br1")

    def pod(self, node: Namespace, subnet: str) -> Namespace:
        """Return a host behind a node, which is its gateway: ``.2`` and ``.1`` of a subnet."""
        pod = self._host(f"{node.name}-pod")
        run("ip", "link", "add", "eth0", "netns", pod.name, "type", "veth", "peer", "name", "pod", "netns", node.name)
        _up(pod, "eth0", f"{subnet}.2/24")
        _up(node, "pod", f"{subnet}.1/24")
        pod.run("ip", "route", "add", "default", "via", f"{subnet}.1")
        return pod

    def port(self, node: Namespace) -> str:
        """Return the switch port of a host."""
        return node.name.rpartition("-")[2]

    def cut(self, node: Namespace) -> None:
        """Take a node's link away without it noticing: the carrier stays."""
        self.switch.run("ip", "link", "set", self.port(node), "nomaster")

    def mend(self, node: Namespace) -> None:
        """Give a node its link back."""
        self.switch.run("ip", "link", "set", self.port(node), "master", "br0")

    def set_carrier(self, node: Namespace, *, on: bool) -> None:
        """Pull or plug a node's cable."""
        self.switch.run("ip", "link", "set", self.port(node), "up" if on else "down")

    def vanish(self, node: Namespace) -> None:
        """Take a host away, with all that runs on it, as a power cut does."""
        self.cut(node)
        self._spaces.remove(node)
        self.nodes.remove(node)
        _end(node)

    def holders(self, vip: str = VIP) -> list[Namespace]:
        """Return the nodes that have the VIP."""
        return [node for node in self.nodes if node.has(vip)]

    def settled(self, among: Sequence[Namespace] = (), vip: str = VIP) -> Namespace:
        """Wait until one node alone, and the same for a while, has the VIP, and return it.

        Backups whose skews are close take over together, for libpcap gives ucarp an advert up to 1 s late; then all
        but one of them give way.
        """
        since = time.monotonic()
        last: list[Namespace] = []

        def stable() -> bool:
            nonlocal since, last
            now = [node for node in among or self.nodes if node.has(vip)]
            if now != last:
                since, last = time.monotonic(), now
            return len(now) == 1 and time.monotonic() - since > _SETTLING

        eventually(stable, what="one node alone is master")
        return last[0]

    def close(self) -> None:
        """Remove all hosts, and what still runs on them."""
        while self._spaces:
            _end(self._spaces.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(space: Namespace) -> None:
    for pid in space.pids():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not space.pids(), what=f"processes of {space.name} end")
    space.remove()


def _up(host: Namespace, device: str, address: str) -> None:
    host.run("ip", "address", "add", address, "dev", device)
    host.run("ip", "link", "set", device, "up")
