"""The Deployment that kevip prints, played by podman on a node: docs/image.md says what that cannot show."""

import json
import re
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab.container import IMAGE, Container, invoke, podman
from lab.network import TARGET, VIP, Namespace, Network
from lab.replica import PASSWORD
from lab.traffic import Probe, tcp_source

Start = Callable[..., Container]


def deployment(node: Namespace) -> dict[str, Any]:
    """Return the Deployment that ``kevip manifest`` prints, in the image, as far as podman can play it on a node.

    It knows one node, and so one replica. Its secrets are its own, and its volumes have one name on all nodes.
    """
    arguments = [
        f"--vip={VIP}",
        f"--target={TARGET}",
        f"--password={PASSWORD}",
        f"--name={node.name}",
        f"--image={IMAGE}",
    ]
    printed = invoke(node, "manifest", *arguments, options=["--network=none", "--cap-drop=ALL", "--read-only"])
    assert (printed.returncode, printed.stderr) == (0, "")
    text = re.sub('name: "run"', f'name: "run-{node.name}"', printed.stdout)
    [found] = [each for each in yaml.safe_load_all(text) if each["kind"] == "Deployment"]
    found["spec"]["replicas"] = 1
    return dict(found)


@pytest.fixture
def pod(node: Namespace) -> Iterator[Container]:
    """Play the Deployment on the node and give its container; it is removed when the test ends."""
    # podman 4.3 looks for a secret's keys in JSON, as they lie in a Secret's data.
    secret = json.dumps({"password": b64encode(PASSWORD.encode()).decode()})
    node.run("podman", "secret", "create", node.name, "-", stdin=secret)
    played = node.run("podman", "kube", "play", "-", stdin=json.dumps(deployment(node))).split()
    yield Container(node, played[played.index("Container:") + 1])
    podman(node, "pod", "rm", "--force", played[played.index("Pod:") + 1])
    podman(node, "secret", "rm", node.name)


def test_a_deployment_has_its_rights_and_no_more(pod: Container) -> None:
    pod.ready()
    process = Path(f"/proc/{pod.daemon()}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    assert {name: status[name] for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")} == {
        "CapEff": "0000000000003000",
        "CapBnd": "0000000000003000",
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }
    mounts = {line.split()[1]: line.split()[3].split(",") for line in (process / "mounts").read_text().splitlines()}
    assert {name: mounts[name][0] for name in ("/", "/proc/sys", "/run")} == {
        "/": "ro",
        "/proc/sys": "ro",
        "/run": "rw",
    }


def test_a_deployments_probes_succeed(pod: Container, node: Namespace) -> None:
    pod.ready()
    [container] = deployment(node)["spec"]["template"]["spec"]["containers"]
    for probe in ("livenessProbe", "readinessProbe"):
        command = container[probe]["exec"]["command"]
        done = subprocess.run(node.command("podman", "exec", pod.id, *command), capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (0, b"")
    assert pod.healthcheck()


def test_a_deployment_hands_over_to_a_peer_that_knows_its_secret(
    pod: Container, network: Network, start: Start
) -> None:
    node, other = network.nodes
    pod.master()
    peer = start(other).ready()
    assert network.settled() is node
    assert tcp_source(network.client, VIP) == VIP
    with Probe(network.client, VIP) as probe:
        podman(node, "pod", "stop", "--time=10", str(pod.inspect()["Pod"]))
        assert network.settled() is other
        report = probe.report()
    assert (report.failed, report.sources) == (0, [VIP])
    assert pod.inspect()["State"]["ExitCode"] == 0
    assert not node.has(VIP)
    assert node.rules() == {"nftables": [], "iptables-nft": [], "iptables-legacy": []}
    assert [pod.events("election.bad_advert"), peer.events("election.bad_advert")] == [[], []]
