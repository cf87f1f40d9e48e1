"""Which iptables back end a host uses."""

import pytest

from kevip.dataplane.iptables import Kind, choose

NOTHING = ""
TABLES = "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n"
RULES = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j ACCEPT\nCOMMIT\n"
HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
CANARY = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"


@pytest.mark.parametrize(("saved", "preset", "choice"), [
    ({"nft": NOTHING, "legacy": NOTHING}, "nft", ("nft", "it is this host's default")),
    ({"nft": NOTHING, "legacy": NOTHING}, "legacy", ("legacy", "it is this host's default")),
    ({"nft": TABLES, "legacy": RULES}, "nft", ("legacy", "it has rules")),
    ({"nft": RULES, "legacy": NOTHING}, "legacy", ("nft", "it has rules")),
    ({"nft": RULES, "legacy": RULES}, "legacy", ("legacy", "it is this host's default")),
    ({"nft": RULES, "legacy": HINT}, "nft", ("legacy", "the kubelet uses it")),
    ({"nft": CANARY, "legacy": RULES}, "legacy", ("nft", "the kubelet uses it")),
    ({"legacy": NOTHING}, "nft", ("legacy", "it is the only one that works")),
])  # fmt: skip
def test_chooses(saved: dict[Kind, str], preset: Kind, choice: tuple[str, str]) -> None:
    assert choose(saved, preset) == choice
