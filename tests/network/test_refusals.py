"""What kevip refuses to start with: the message, the exit status, and a host that is untouched."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.network import TARGET, VIP, Namespace
from lab.replica import Replica

ARGUMENTS = [f"--vip={VIP}", f"--target={TARGET}", "--password=secret"]


@pytest.fixture
def refused(host: Namespace, tmp_path: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """Run kevip on a host, after a shell command in a mount namespace of its own; return exit status and stderr."""
    before = host.rules(), host.addresses(), host.sysctl("net.ipv4.ip_forward"), host.pids()

    def run(*arguments: str, after: str = "true", wrapper: tuple[str, ...] = ()) -> tuple[int, str]:
        run_dir = f"--run-dir={tmp_path / 'run'}"
        kevip = [*wrapper, sys.executable, "-m", "kevip", run_dir, *(arguments or ARGUMENTS)]
        argv = host.command("unshare", "--mount", "sh", "-c", f'set -e; {after}; exec "$@"', "sh", *kevip)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        assert done.stdout == ""
        return done.returncode, done.stderr

    yield run
    assert (host.rules(), host.addresses(), host.sysctl("net.ipv4.ip_forward"), host.pids()) == before
    assert not (tmp_path / "run").exists()


Refused = Callable[..., tuple[int, str]]

IN_NO_SUBNET = (
    "VIP 10.9.0.1 is in no subnet of this host (10.77.0.0/24 on eth0): "
    "take one that is, or say with --interface where it belongs"
)
OWN_ADDRESS = (
    "VIP 10.77.0.11 is an address that this host already has on eth0: "
    "take one that no host has (or remove it there first)"
)
NO_SOURCE = (
    "interface peer0 has no IPv4 address, and CARP needs one as its source: ip address add ADDRESS/PREFIX dev peer0"
)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--vip=10.9.0.1"], IN_NO_SUBNET),
    (["--vip=10.77.0.11"], OWN_ADDRESS),
    (["--vip=10.77.0.255"], "VIP 10.77.0.255 is the broadcast address of 10.77.0.0/24 on eth0: take another one"),
    (["--vip=10.77.0.0", "--vip-id=1"],
     "VIP 10.77.0.0 is the network address of 10.77.0.0/24 on eth0: take another one"),
    (["--interface=eth9"], "interface eth9 does not exist: set --interface to one of lo, peer0, eth0"),
    (["--interface=peer0"], NO_SOURCE),
    (["--interface=lo"], "interface lo is no Ethernet: CARP and ARP need one"),
])  # fmt: skip
def test_refuses_a_place_that_does_not_fit(refused: Refused, arguments: list[str], message: str) -> None:
    assert refused(*ARGUMENTS, *arguments) == (3, f"kevip: {message}\n")


def test_refuses_an_interface_that_is_down(refused: Refused, host: Namespace) -> None:
    host.run("ip", "link", "set", "eth0", "down")
    assert refused() == (3, "kevip: interface eth0 is down: ip link set dev eth0 up\n")


HIDE = 'mount --bind /dev/null "$(readlink -f "$(command -v {})")"'


@pytest.mark.parametrize(("program", "package"), [
    ("ucarp", "ucarp"), ("ip", "iproute2"), ("setpriv", "util-linux"),
    ("conntrack", "conntrack"), ("bash", "bash"),
])  # fmt: skip
def test_says_what_to_install(refused: Refused, program: str, package: str) -> None:
    status, message = refused(after=HIDE.format(program))
    assert status == 3
    assert f"kevip: {program} is not installed: apt-get install {package}\n" in message


def test_says_what_to_install_for_copies_of_connections(refused: Refused) -> None:
    status, message = refused(*ARGUMENTS, "--sync", "--sync-interface=eth0", after=HIDE.format("conntrackd"))
    assert (status, message) == (3, "kevip: conntrackd is not installed: apt-get install conntrackd\n")


@pytest.mark.parametrize(("options", "problem"), [
    (["--sync-interface=eth7"], "interface eth7 does not exist: set --sync-interface to one of lo, peer0, eth0"),
    (["--sync-interface=peer0"], "interface peer0 has no IPv4 address, which conntrackd needs as its source"),
    (["--sync-peers=10.77.0.12,10.77.0.13"],
     "--sync-peers (SYNC_PEERS) has no address of this host: list those of both hosts"),
    (["--sync-peers=10.77.0.11"], "--sync-peers (SYNC_PEERS) has no address of another host: list those of both hosts"),
])  # fmt: skip
def test_refuses_copies_of_connections_that_cannot_be_made(refused: Refused, options: list[str], problem: str) -> None:
    assert refused(*ARGUMENTS, "--sync", *options) == (3, f"kevip: {problem}\n")


@pytest.mark.parametrize(("program", "dataplane", "package"), [
    ("iptables-legacy", "iptables-legacy", "iptables"), ("iptables-nft", "iptables-nft", "iptables"),
    ("nft", "nftables", "nftables"),
])  # fmt: skip
def test_says_that_a_dataplane_is_not_installed(refused: Refused, program: str, dataplane: str, package: str) -> None:
    assert refused(*ARGUMENTS, f"--dataplane={dataplane}", after=HIDE.format(program)) == (
        3, f"kevip: {program} is not installed: apt-get install {package}, or set --dataplane to auto\n"
    )  # fmt: skip


def test_says_that_no_dataplane_is_installed(refused: Refused) -> None:
    hide = "; ".join(HIDE.format(program) for program in ("iptables-legacy", "iptables-nft", "nft"))
    status, message = refused(after=hide)
    assert (status, message) == (3, "kevip: iptables is not installed: apt-get install iptables\n")


@pytest.mark.parametrize("names", [["NET_ADMIN"], ["NET_RAW"], ["NET_ADMIN", "NET_RAW"]])
def test_says_which_capability_is_missing(refused: Refused, names: list[str]) -> None:
    dropped = ",".join(f"-{name.lower()}" for name in names)
    assert refused(wrapper=("setpriv", f"--bounding-set={dropped}")) == (
        3,
        "".join(
            f"kevip: capability {name} is missing: run as root, in Docker with --cap-add {name}, "
            f"in Kubernetes with securityContext.capabilities.add [{name}]\n"
            for name in names
        ),
    )


def test_tells_all_that_is_wrong_with_the_host_at_once(refused: Refused) -> None:
    hide = 'mount --bind /dev/null "$(command -v ucarp)"'
    drop = ("setpriv", "--bounding-set=-net_raw")
    status, message = refused(*ARGUMENTS, "--vip=10.9.0.1", after=hide, wrapper=drop)
    assert status == 3
    assert [line.split(":")[1].split(" is ")[0] for line in message.splitlines()] == [
        " ucarp", " capability NET_RAW", " VIP 10.9.0.1"
    ]  # fmt: skip


UNREADABLE = "#!/bin/sh\necho \"# Table \\`nat' is incompatible, use 'nft' tool.\"\n"
"""An iptables-save that finds rules made with nft; ours could be added there, but not seen and not removed."""


def test_refuses_tables_that_iptables_cannot_read_where_there_is_no_nft(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "iptables-nft-save").write_text(UNREADABLE)
    (tmp_path / "iptables-nft-save").chmod(0o755)
    status, message = refused(after=f"{HIDE.format('nft')}; PATH={tmp_path}:$PATH")
    assert status == 3
    assert "kevip: iptables-nft cannot read nat: rules made with nft are in there; keep them in" in message


def test_tables_that_iptables_cannot_read_are_passed_over_where_there_is_nft(host: Namespace, tmp_path: Path) -> None:
    (tmp_path / "iptables-nft-save").write_text(UNREADABLE)
    (tmp_path / "iptables-nft-save").chmod(0o755)
    with Replica(host, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}) as replica:
        assert replica.logged("daemon.started")["dataplane"] == "nftables"
        replica.ready()


def test_a_back_end_that_does_not_work_is_not_chosen(host: Namespace, tmp_path: Path) -> None:
    """Its programs are there, but the kernel lacks it."""
    wrapper = tmp_path / "iptables-nft-save"
    wrapper.write_text("#!/bin/sh\necho 'Protocol not supported' >&2; exit 4\n")
    wrapper.chmod(0o755)
    with Replica(host, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}) as replica:
        assert replica.logged("daemon.started")["dataplane"] == "iptables-legacy"
        replica.ready()


def test_refuses_a_run_directory_that_cannot_be_made(refused: Refused) -> None:
    assert refused(*ARGUMENTS, "--run-dir=/proc/kevip") == (
        3, "kevip: cannot create /proc/kevip: No such file or directory: set --run-dir to another one\n"
    )  # fmt: skip


def test_tells_all_that_is_wrong_with_the_settings_at_once(refused: Refused) -> None:
    assert refused("--vip=x y", "--password=a", "--password-file=/none", "--preempt=yes") == (
        2, "kevip: Option '--preempt' does not take a value. (kevip --help lists what there is)\n"
    )  # fmt: skip
    assert refused("--vip=x y", "--password=a", "--password-file=/none") == (
        2,
        "".join(
            f"kevip: {problem}\n"
            for problem in (
                "--vip (VIP): 'x y' is not an IPv4 address, such as 192.0.2.10",
                "--target (TARGET) is missing: set it to an IPv4 address",
                "--password (PASSWORD) and --password-file (PASSWORD_FILE) are both given: leave one of them out",
            )
        ),
    )
