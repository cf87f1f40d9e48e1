"""What conntrackd is told, and what it tells, without one."""

from ipaddress import IPv4Address
from pathlib import Path

from kevip.dataplane.rules import Channel
from kevip.sync.conntrackd import Setup, Stats, configuration, port, stats

TARGET = IPv4Address("203.0.113.10")
PEER = IPv4Address("10.78.0.12")

STATS = """\
cache internal:
current active connections:	           2
connections created:		         195	failed:	           0
connections updated:		           0	failed:	           0
connections destroyed:		         193	failed:	           0

external inject:
connections created:		           7	failed:	           1
connections updated:		           0	failed:	           0
connections destroyed:		           1	failed:	           0

traffic processed:
                   0 Bytes                         0 Pckts

multicast traffic (active device=eth0):
               14080 Bytes sent                  948 Bytes recv
                 213 Pckts sent                   15 Pckts recv
                   0 Error send                    0 Error recv

message tracking:
                   0 Malformed msgs                    3 Lost msgs

"""
"""What 1.4.7 answers to ``-s``."""


def lines(*, unicast: bool) -> list[str]:
    setup = Setup(
        target=TARGET,
        channel=Channel(port=27290, interface="eth1", peers=(PEER,)),
        source=IPv4Address("10.78.0.11"),
        unicast=unicast,
    )
    return [" ".join(line.split()) for line in configuration(setup, Path("/run/kevip/x")).splitlines()]


def test_copies_go_to_all_by_multicast_or_to_one() -> None:
    assert {"Multicast {", "IPv4_address 225.0.0.50", "IPv4_interface 10.78.0.11", "Group 27290"} < {
        *lines(unicast=False)
    }
    assert {"UDP {", "IPv4_address 10.78.0.11", "IPv4_Destination_Address 10.78.0.12", "Port 27290"} < {
        *lines(unicast=True)
    }


def test_what_is_copied_are_connections_to_target_that_are_established() -> None:
    text = lines(unicast=True)
    assert text[text.index("Address Accept {") + 1] == "IPv4_address 203.0.113.10"
    assert text[text.index("State Accept {") + 1] == "ESTABLISHED CLOSED TIME_WAIT CLOSE_WAIT for TCP"
    assert "DisableExternalCache yes" in text


def test_targets_that_are_neighbours_have_ports_of_their_own() -> None:
    ports = {port(TARGET + number) for number in range(2048)}
    assert len(ports) == 2048
    assert (min(ports), max(ports)) == (26000, 28047)


def test_reads_what_it_has_counted() -> None:
    assert stats(STATS) == Stats(sent_on=2, written=7, failed=1, heard=15)
    assert stats("") is None
