"""Clients that use the VIP under TARGET's own name: the recipes of docs/clients.md, run as they stand there."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.cluster import CLUSTER_IP, MODES, POD_PORT, Service, cluster
from lab.documents import ROOT, recipe
from lab.network import TARGET, VIP, Network
from lab.replica import Replica
from lab.traffic import PORT, partner, server, tcp_source

Start = Callable[..., Replica]

POSTFIX = ROOT / "script/postfix"
NAMES = ("api.partner.example", "db.partner.example", "mail.partner.example")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a certificate for the partner's names, with its key."""
    path = tmp_path_factory.mktemp("tls") / "partner.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=partner"
    names = ",".join(f"DNS:{name}" for name in NAMES)
    subprocess.run(
        [*made.split(), "-addext", f"subjectAltName={names}", "-keyout", str(path), "-out", f"{path}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def vip(network: Network, start: Start, certificate: Path) -> Iterator[Network]:
    """Give a network with the partner as TARGET, and a master."""
    with partner(network.target, certificate):
        start(network.nodes[0]).master()
        yield network


@pytest.fixture
def run(vip: Network, certificate: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what runs a program on the client, which trusts the partner's certificate."""
    trust = dict.fromkeys(
        ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "PGSSLROOTCERT"), f"{certificate}.crt"
    )

    def run(*argv: str, hosts: str = "127.0.0.1 localhost\n", stdin: str = "") -> subprocess.CompletedProcess[str]:
        file = certificate.with_suffix(".hosts")
        file.write_text(hosts)
        script = f'mount --bind {file} /etc/hosts && exec "$@"'
        return subprocess.run(
            vip.client.command("unshare", "--mount", "sh", "-c", script, "sh", *argv),
            input=stdin, env=os.environ | trust, capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip

    return run


Run = Callable[..., subprocess.CompletedProcess[str]]


def seen(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what the partner told a client."""
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_name_in_the_hosts_file_leads_through_the_vip(run: Run) -> None:
    done = run(
        "curl", "--silent", "--show-error", f"https://{NAMES[0]}/", hosts=recipe("clients.md", "On hosts", "hosts")
    )
    assert seen(done) == [VIP, NAMES[0], NAMES[0]]


@pytest.mark.parametrize("number", [0, 1], ids=["resolve", "connect-to"])
def test_curl_takes_the_address_apart_from_the_name(run: Run, number: int) -> None:
    assert seen(run("sh", "-c", recipe("clients.md", "curl", "sh", number))) == [VIP, NAMES[0], NAMES[0]]


def test_the_address_alone_fails_at_the_certificate(run: Run) -> None:
    """60 is curl's exit status for a certificate that does not fit."""
    assert run("curl", "--silent", f"https://{VIP}/").returncode == 60


def test_libpq_takes_the_address_apart_from_the_name(run: Run) -> None:
    done = run("sh", "-c", recipe("clients.md", "Postgres", "sh").replace("psql ", "psql --tuples-only --no-align "))
    assert seen(done) == [VIP, NAMES[1]]


def test_python_takes_the_address_apart_from_the_name(run: Run) -> None:
    assert seen(run(sys.executable, "-", stdin=recipe("clients.md", "Python", "python"))) == [VIP, NAMES[0], NAMES[0]]


def test_postfix_takes_the_address_apart_from_the_name(run: Run, certificate: Path) -> None:
    asked = recipe("clients.md", "Postfix", "sh").replace("/etc/ssl/certs/ca-certificates.crt", f"{certificate}.crt")
    told = run("sh", "-c", f"{POSTFIX} {asked}").stdout
    assert ("Verified TLS connection established" in told, f"{VIP} {NAMES[2]}" in told) == (True, True), told
    assert "Verified TLS" not in run("sh", "-c", f"{POSTFIX} {asked}".replace(NAMES[2], "other.example")).stdout


def test_postfix_knows_the_settings_that_are_shown(tmp_path: Path) -> None:
    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(POSTFIX), *words], capture_output=True, text=True, check=True)

    (tmp_path / "main.cf").write_text(recipe("clients.md", "Postfix", "postfix"))
    (tmp_path / "master.cf").touch()
    done = ask("postconf", "-c", str(tmp_path), "-n")
    assert (done.stderr, f"relayhost = [{VIP}]:587" in done.stdout) == ("", True)
    table = done.stdout.partition("smtp_tls_policy_maps = ")[2].splitlines()[0]
    assert ask("postmap", "-q", f"[{VIP}]:587", table).stdout == f"secure match={NAMES[2]} servername={NAMES[2]}\n"


def test_the_lines_for_keepalive_take_effect(vip: Network, run: Run) -> None:
    """With libpq's, and with the host's sysctl for what switches keepalive on, and no more."""
    psql = recipe("clients.md", "Postgres", "sh").replace(
        "--command 'select now()'", "--command 'select 1' --command '\\! ss -Htno dport 5432'"
    )
    assert re.search(r"timer:\(keepalive,(2[0-9]|30)", run("sh", "-c", psql).stdout)
    for line in recipe("clients.md", "Keepalive and time limits", "sysctl").splitlines():
        vip.client.run("sysctl", "-w", line.replace(" ", ""))
    program = (
        f"import socket, subprocess; s = socket.create_connection(('{VIP}', 443))\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)\n"
        "print(subprocess.run(['ss', '-Htno', 'dport', '443'], capture_output=True, text=True).stdout)"
    )
    assert re.search(r"timer:\(keepalive,(2[0-9]|30)", run(sys.executable, "-c", program).stdout)


def test_keepalive_brings_a_silent_client_back_after_a_crash(network: Network, start: Start) -> None:
    """The server speaks on, and the client only listens: what comes from TARGET is dropped until the client sends."""
    master = start(network.nodes[0], advskew=1).master()
    start(network.nodes[1], advskew=20).ready()
    with network.client.entered():
        connection = socket.create_connection((VIP, PORT), timeout=60)
    with connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            connection.setsockopt(socket.IPPROTO_TCP, option, 1)
        connection.send(b"chat\n")
        while b"chat" not in connection.recv(1000):
            pass
        network.cut(master.node)
        master.kill()
        assert network.settled(among=network.nodes[1:]) == network.nodes[1]
        while len(connection.recv(65536)) == 65536:  # what was there before
            pass
        assert b"chat" in connection.recv(1000)


@pytest.mark.parametrize("mode", MODES)
def test_a_service_must_be_headless_to_lead_to_the_vip_from_each_node(
    network: Network, start: Start, mode: str
) -> None:
    """What kube-proxy has translated once is not translated again: on the master's node nothing listens on the VIP."""
    with cluster(network) as pods, server(network.target, TARGET, POD_PORT):
        start(network.nodes[0]).master()
        pods.sync(mode, Service(CLUSTER_IP, (VIP,)))
        assert [tcp_source(pod, VIP, POD_PORT) for pod in pods.pods] == [VIP] * len(pods.pods)
        on_master, *elsewhere = pods.pods
        assert [tcp_source(pod, CLUSTER_IP) for pod in elsewhere] == [VIP] * len(elsewhere)
        with pytest.raises(ConnectionRefusedError):
            tcp_source(on_master, CLUSTER_IP)
