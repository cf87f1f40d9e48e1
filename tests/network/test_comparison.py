"""What docs/comparison.md sets kevip against: keepalived, nft and a script, as they stand there, do their work."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.documents import recipe
from lab.network import VIP, Namespace, Network
from lab.traffic import answers, tcp_source, udp_source

HEADING = "One line, or sixty"


@contextmanager
def by_hand(node: Namespace, directory: Path, number: int) -> Iterator[None]:
    """Run keepalived on a node with the files of the document; hosts differ in their priority."""
    directory.mkdir()
    files = {"keepalived.conf": ("keepalived", 0), "vip": ("sh", 1), "vip.nft": ("nft", 0)}
    for name, (language, which) in files.items():
        text = recipe("comparison.md", HEADING, language, which).replace("/etc/keepalived", str(directory))
        (directory / name).write_text(text.replace("priority 150", f"priority {150 - number}"))
    (directory / "vip").chmod(0o755)
    pids = [f"--{kind}pid={directory}/{kind or 'main'}.pid" for kind in ("", "vrrp_")]
    program = node.popen(
        "keepalived", "--dont-fork", "--log-console", "--vrrp", f"--use-file={directory}/keepalived.conf", *pids
    )
    try:
        yield
    finally:
        program.terminate()
        program.wait(20)


def test_the_files_by_hand_give_the_target_the_vip(network: Network, tmp_path: Path) -> None:
    with ExitStack() as stack:
        for number, node in enumerate(network.nodes[:2]):
            stack.enter_context(by_hand(node, tmp_path / f"node{number}", number))
        master = network.settled(among=network.nodes[:2])
        assert [ask(host, VIP) for host in (network.client, master) for ask in (tcp_source, udp_source)] == [VIP] * 4
        assert not answers(network.far_client, VIP)
    assert not network.holders()
    assert [node.rules()["nftables"] for node in network.nodes[:2]] == [[], []]
