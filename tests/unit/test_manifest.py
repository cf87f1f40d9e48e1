"""What `kevip manifest` prints: valid for Kubernetes, the settings that were given, the password in one place only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import click
import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kevip import cli, manifest
from kevip.errors import SettingsError
from kevip.status.record import VERSION

EXAMPLES = Path(__file__).parents[2] / "deploy/kubernetes"
GOOD = ("--vip=192.0.2.100", "--target=203.0.113.10", "--password=secret")
ALL = (
    *("--global-masquerade", "--vip-id=7", "--interface=eth1", "--advbase=2", "--advskew=0", "--dead-ratio=2"),
    *("--preempt", "--broadcast", "--iptables=nft", "--log-format=json", "--log-level=debug"),
    *("--allow-from=10.0.0.0/8, 192.0.2.1", "--port=443,53/udp,8000-8010", "--check=tcp:443", "--check-fall=1"),
    *("--name=db", "--namespace=network", "--image=registry.example:5000/kevip@sha256:00", "--replicas=2"),
    *("--node-selector=disktype=ssd, example.com/edge=", "--requests=cpu=1.5", "--limits=memory=1Gi, cpu=2"),
    *("--tolerations=node-role.kubernetes.io/control-plane:NoSchedule, dedicated=edge, lost", "--metrics=:9112"),
)
KUBERNETES = ("1.27", kubernetes_validate.latest_version())
"""The oldest one that has all fields, and a recent one."""


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function from arguments and variables to what `kevip manifest` prints."""

    def run(*arguments: str, **env: str) -> str:
        with mock.patch.dict("os.environ", env, clear=True):
            cli.cli.main(["manifest", *arguments], standalone_mode=False, prog_name="kevip")
        return capsys.readouterr().out

    return run


def problems(*arguments: str, **env: str) -> list[str]:
    """Return what `kevip manifest` refuses them with."""
    with mock.patch.dict("os.environ", env, clear=True), pytest.raises(SettingsError) as caught:
        cli.cli.main(["manifest", *arguments], standalone_mode=False, prog_name="kevip")
    return list(caught.value.problems)


def parsed(text: str) -> tuple[Any, Any, Any]:
    """Return the Secret, the Deployment and the PodDisruptionBudget."""
    secret, deployment, budget = yaml.safe_load_all(text)
    assert [each["kind"] for each in (secret, deployment, budget)] == ["Secret", "Deployment", "PodDisruptionBudget"]
    return secret, deployment, budget


def variables(deployment: Mapping[str, Any]) -> dict[str, Any]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def test_keepalived_may_be_a_real_time_process_and_ucarp_may_not(printed: Any) -> None:
    for engine, expected in {"ucarp": [], "keepalived": ["SYS_NICE"]}.items():
        _, deployment, _ = parsed(printed(*GOOD, f"--engine={engine}"))
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["securityContext"]["capabilities"]["add"] == ["NET_ADMIN", "NET_RAW", *expected]


texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = texts | st.integers() | st.booleans() | st.none()
keys = st.sampled_from(["name", "env", "hostNetwork", "app.kubernetes.io/name"])
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))


@given(st.lists(st.dictionaries(keys, trees, min_size=1), min_size=1, max_size=3))
def test_any_document_is_read_back_as_it_was_written(documents: list[dict[str, Any]]) -> None:
    assert list(yaml.safe_load_all(manifest.to_yaml(documents))) == documents


@pytest.mark.parametrize("arguments", [GOOD, (*GOOD, *ALL)])
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_it(printed: Any, arguments: tuple[str, ...], version: str) -> None:
    for document in parsed(printed(*arguments)):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_validation_refuses_what_kubernetes_does_not_know(printed: Any) -> None:
    _, deployment, _ = parsed(printed(*GOOD).replace("hostNetwork", "hostNetworks"))
    with pytest.raises(kubernetes_validate.ValidationError, match="hostNetworks"):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("file", ["egress", "ingress"])
def test_an_example_is_what_the_command_prints(printed: Any, file: str) -> None:
    example = parsed((EXAMPLES / f"{file}.yaml").read_text())
    secret, deployment, _ = example
    given = variables(deployment)
    assert given.keys() == {"VIP", "TARGET", "PASSWORD"}
    given["PASSWORD"] = secret["stringData"]["password"]
    assert parsed(printed(f"--name=kevip-{file}", **given)) == example


def test_all_settings_reach_the_pod_by_their_variables(printed: Any) -> None:
    secret, deployment, budget = parsed(printed(*GOOD, *ALL))
    assert variables(deployment) == {
        "VIP": "192.0.2.100",
        "TARGET": "203.0.113.10",
        "PASSWORD": {"secretKeyRef": {"name": "db", "key": "password"}},
        "ADVBASE": "2",
        "ADVSKEW": "0",
        "ALLOW_FROM": "10.0.0.0/8,192.0.2.1/32",
        "CHECK": "tcp:443",
        "CHECK_FALL": "1",
        "PORTS": "443,53/udp,8000-8010",
        "BROADCAST": "true",
        "DEAD_RATIO": "2",
        "GLOBAL_MASQUERADE": "true",
        "INTERFACE": "eth1",
        "IPTABLES": "nft",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "debug",
        "METRICS": ":9112",
        "PREEMPT": "true",
        "VIP_ID": "7",
    }
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example:5000/kevip@sha256:00"
    for each in (secret, deployment, budget):
        assert (each["metadata"]["name"], each["metadata"]["namespace"]) == ("db", "network")


def test_the_settings_of_the_pod_mean_what_was_given(printed: Any) -> None:
    """What is printed, given back to the command by variables, prints the same."""
    names = ("--name", "--image", "--replicas", "--node", "--tolerations", "--requests", "--limits")
    own = [each for each in ALL if each.startswith(names)]
    text = printed(*GOOD, *ALL)
    env = variables(parsed(text)[1]) | {"PASSWORD": "secret"}
    assert printed(*own, **env) == text


def test_a_pod_runs_where_it_shall_and_takes_what_it_may(printed: Any) -> None:
    pod = parsed(printed(*GOOD, *ALL))[1]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"disktype": "ssd", "example.com/edge": ""}
    assert pod["tolerations"] == [
        {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "dedicated", "operator": "Equal", "value": "edge"},
        {"key": "lost", "operator": "Exists"},
    ]
    (container,) = pod["containers"]
    assert container["resources"] == {"requests": {"cpu": "1.5"}, "limits": {"memory": "1Gi", "cpu": "2"}}
    assert container["ports"] == [{"name": "metrics", "containerPort": 9112, "protocol": "TCP"}]


def test_a_pod_without_any_of_that_says_nothing_of_it(printed: Any) -> None:
    pod = parsed(printed(*GOOD))[1]["spec"]["template"]["spec"]
    assert not {"nodeSelector", "tolerations"} & pod.keys()
    assert "ports" not in pod["containers"][0]


def test_each_object_has_the_labels_that_kubernetes_recommends(printed: Any) -> None:
    for each in parsed(printed(*GOOD)):
        assert each["metadata"]["labels"] == {
            "app.kubernetes.io/name": "kevip",
            "app.kubernetes.io/instance": "kevip",
            "app.kubernetes.io/component": "virtual-ip",
            "app.kubernetes.io/version": VERSION,
            "app.kubernetes.io/managed-by": "kevip",
        }


def test_a_vip_that_is_only_held_has_no_target(printed: Any) -> None:
    deployment = parsed(printed(GOOD[0], GOOD[2], "--hold-only"))[1]
    assert variables(deployment) == {
        "VIP": "192.0.2.100",
        "HOLD_ONLY": "true",
        "PASSWORD": {"secretKeyRef": {"name": "kevip", "key": "password"}},
    }


def test_a_check_may_ask_the_node(printed: Any) -> None:
    """Kubernetes puts in a variable what stands in one before it."""
    deployment = parsed(printed(GOOD[0], GOOD[2], "--hold-only", "--check=http://$(HOST_IP):30123/healthz"))[1]
    found = variables(deployment)
    assert (found["HOST_IP"], found["CHECK"]) == (
        {"fieldRef": {"fieldPath": "status.hostIP"}}, "http://$(HOST_IP):30123/healthz",
    )  # fmt: skip
    assert list(found).index("HOST_IP") < list(found).index("CHECK")


def test_only_what_was_given_is_in_it(printed: Any) -> None:
    deployment = parsed(printed(*GOOD, "--no-preempt", BROADCAST="no", ADVSKEW=""))[1]
    assert variables(deployment).keys() == {"VIP", "TARGET", "PASSWORD"}
    assert "namespace" not in deployment["metadata"]


def test_the_password_is_in_the_secret_only(printed: Any) -> None:
    text = printed(*GOOD[:2], "--password=Zq7")
    assert parsed(text)[0]["stringData"] == {"password": "Zq7"}
    assert text.count("Zq7") == 1


def test_the_password_may_come_from_a_file(printed: Any, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("pass wörd\n")
    secret, deployment, _ = parsed(printed(*GOOD[:2], f"--password-file={tmp_path / 'password'}"))
    assert secret["stringData"] == {"password": "pass wörd"}
    assert variables(deployment).keys() == {"VIP", "TARGET", "PASSWORD"}


@pytest.mark.parametrize("password", [b"a\0b", b"a\xffb"])
def test_a_password_that_no_environment_takes_is_refused(tmp_path: Path, password: bytes) -> None:
    (tmp_path / "password").write_bytes(password)
    assert problems(*GOOD[:2], f"--password-file={tmp_path / 'password'}") == [
        "the password holds a NUL or is not UTF-8: a pod's environment cannot take it, choose another"
    ]


def test_selectors_fit_the_pods_and_no_other_instance(printed: Any) -> None:
    _, deployment, budget = parsed(printed(*GOOD, "--name=db"))
    template = deployment["spec"]["template"]
    (rule,) = template["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    labels = {"app.kubernetes.io/name": "kevip", "app.kubernetes.io/instance": "db"}
    assert template["metadata"]["labels"] == labels
    assert (
        deployment["spec"]["selector"] == budget["spec"]["selector"] == rule["labelSelector"] == {"matchLabels": labels}
    )


def test_all_that_is_wrong_is_told_at_once() -> None:
    where = ("--node-selector=ssd", "--tolerations=x,:NoSchedule", "--requests=cpu=20 m", "--limits=disk=1Gi")
    names = ("--name=A_", "--namespace=x.y", "--image=a b", "--replicas=0")
    assert problems("--vip=192.0.2.0", *names, *where, RUN_DIR="/x") == [
        "--run-dir (RUN_DIR) means nothing to a pod, whose /run is its own: leave it out",
        "--name: 'A_' is not a name of up to 63 lower-case letters, digits and inner hyphens",
        "--namespace: 'x.y' is not a name of up to 63 lower-case letters, digits and inner hyphens",
        "--image: 'a b' is not the name of an image, such as registry.example/kevip:1.0",
        "--replicas: '0' is not a whole number from 1 to 9999",
        "--tolerations: ':NoSchedule' is not a taint, such as node-role.kubernetes.io/control-plane:NoSchedule",
        "--node-selector: 'ssd' is not a node's label, such as disktype=ssd",
        "--requests: 'cpu=20 m' is not an amount of cpu or memory, such as cpu=20m or memory=64Mi",
        "--limits: 'disk=1Gi' is not an amount of cpu or memory, such as cpu=20m or memory=64Mi",
        "--target (TARGET) is missing: set it to an IPv4 address",
        "--password (PASSWORD) is missing: set it, or --password-file (PASSWORD_FILE), to what all replicas share",
        "--vip-id (VIP_ID) is missing: VIP 192.0.2.0 ends in .0, which is no valid id; set one from 1 to 255",
    ]


def test_flags_before_the_subcommand_are_refused() -> None:
    with pytest.raises(click.UsageError, match=r"^put --vip, --preempt after manifest, not before it$"):
        cli.cli.main(["--vip=192.0.2.100", "--preempt", "manifest"], standalone_mode=False, prog_name="kevip")
