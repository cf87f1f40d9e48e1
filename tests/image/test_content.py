"""What is in the image, what is not, and that each command of kevip runs in it."""

import json
import re
from collections.abc import Callable
from datetime import datetime

import pytest
from lab.container import IMAGE, Container, invoke, podman
from lab.network import Namespace
from lab.replica import PASSWORD

from kevip.cli import cli
from kevip.status.record import VERSION

Start = Callable[..., Container]

SIZE = 95_000_000
"""Bytes: what it has, and a little room."""

PROGRAMS = (
    "bash conntrack find grep ip iptables-legacy-restore iptables-nft-restore keepalived kevip-probe setpriv timeout "
    "tini ucarp"
)
UNWANTED = "apt-get cc dpkg gcc ld make mount perl pip pip3 su uv"


def shell(node: Namespace, script: str) -> str:
    return podman(node, "run", "--rm", "--network=none", "--entrypoint=bash", IMAGE, "-c", script)


def test_it_is_small(node: Namespace) -> None:
    [image] = json.loads(podman(node, "image", "inspect", IMAGE))
    assert image["Size"] < SIZE


def test_it_says_what_it_is(node: Namespace) -> None:
    [image] = json.loads(podman(node, "image", "inspect", IMAGE))
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in image["Labels"].items()}
    assert {"title", "description", "licenses"} <= labels.keys()
    assert labels["version"] == VERSION
    assert re.fullmatch("[0-9a-f]{40}", labels["revision"])
    assert datetime.fromisoformat(labels["created"]).tzinfo
    assert labels["source"] == labels["url"] == "https://example.com/kevip"
    assert labels["documentation"] == "https://example.com/kevip#readme"
    assert image["Healthcheck"]["Test"] == ["CMD", "kevip-probe", "live"]


def test_it_has_the_programs_and_their_libraries(node: Namespace) -> None:
    assert shell(node, f"for each in {PROGRAMS}; do command -v $each >/dev/null || echo $each; done") == ""
    files = "/usr/bin/* /usr/sbin/* /usr/lib/*/xtables/* /usr/lib/python3.*/lib-dynload/*"
    assert shell(node, f"ldd {files} 2>/dev/null | grep 'not found' | sort -u") == ""


def test_it_has_nothing_to_build_or_to_administer_with(node: Namespace) -> None:
    assert shell(node, f"for each in {UNWANTED}; do command -v $each || true; done") == ""
    assert (
        shell(node, "find / -xdev -name 'pip' -o -xdev -name 'pip-*' -o -xdev -name 'ensurepip' -o -xdev -name 'uv'")
        == ""
    )
    assert shell(node, "find / -xdev -type f -perm /6000") == ""


def test_it_has_nothing_of_the_machine_that_built_it(node: Namespace) -> None:
    found = shell(
        node, "find /etc /run /usr/local /root /src /opt -name '*.crt' -o -name 'pip.conf' 2>/dev/null || true"
    )
    assert found == "/etc/ssl/certs/ca-certificates.crt\n"  # Debian's


def test_it_has_the_authorities_that_debian_trusts_where_openssl_looks_for_them(node: Namespace) -> None:
    assert int(shell(node, "ls -L /usr/lib/ssl/certs/*.0 | wc -l")) > 100


@pytest.mark.parametrize("where", ["host", "none"])
@pytest.mark.parametrize("command", [[], *([name] for name in sorted(getattr(cli, "commands", {})))])
def test_each_command_runs_in_it(node: Namespace, command: list[str], where: str) -> None:
    done = invoke(node, *command, "--help", options=[f"--network={where}", "--cap-drop=ALL", "--read-only"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {' '.join(['kevip', *command])} ")


def test_it_says_its_version(node: Namespace) -> None:
    assert invoke(node, "--version", options=["--network=none"]).stdout.startswith("kevip, version ")


def test_the_password_is_in_no_command_line_inside(node: Namespace, start: Start) -> None:
    container = start(node).master()
    lines = podman(node, "exec", container.id, "sh", "-c", "cat /proc/[0-9]*/cmdline")
    assert "ucarp" in lines
    assert PASSWORD not in lines
