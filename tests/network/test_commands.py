"""The commands that the documents give an operator, run on a master: each is one that the programs take."""

import re
import subprocess
from collections.abc import Callable, Iterator

from lab.documents import DOCUMENTS, commands, spans
from lab.network import VIP, Network
from lab.replica import Replica
from lab.traffic import tcp_source

Start = Callable[..., Replica]

RUN = r"(conntrack -|ip |iptables |iptables-nft |iptables-save|nft |ss |sysctl -w net\.)"
# Named, but not as they are to be typed; a table that a test of its own has; a module that few kernels have.
NOT_WHOLE = {"ip address delete", "ip kevip-VIP", "conntrack --load-file", "conntrack -D"}
NOT_HERE = re.compile(r"/etc/|table ip vip|net\.ipv4\.vs\.|cannot read|…")


def shown() -> Iterator[str]:
    """Yield each command line of the programs above, as far as it is whole."""
    for document in DOCUMENTS:
        for line in (*spans(document), *(" ".join(words) for words in commands(document))):
            if re.match(RUN, line) and line not in NOT_WHOLE and not NOT_HERE.search(line):
                yield line.replace("\\|", "|").replace("192.0.2.100", VIP)


def test_what_operators_are_told_to_type_is_taken(network: Network, start: Start) -> None:
    node = network.nodes[0]
    start(node).master()
    assert tcp_source(network.client, VIP) == VIP
    lines = sorted(set(shown()))
    assert len(lines) > 10
    failed = {}
    for line in lines:
        words = line.replace("VIP", VIP).replace("MAC", network.client.mac)
        command = node.command("timeout", "--preserve-status", "2", "sh", "-c", words)  # what goes on for ever is ended
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 143):
            failed[line] = done.stderr
    assert failed == {}
