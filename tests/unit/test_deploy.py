"""The chart renders what `kevip manifest` prints, and refuses what is wrong; the compose file is what it should be."""

import json
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmRenderError, HelmValuesError
from helm_python.chart import lint

from kevip import manifest
from kevip.cli import cli
from kevip.config import RANGES, parse_endpoint

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/kevip"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
KUBERNETES = ("1.27", kubernetes_validate.latest_version())

PLAIN = {"name": "db", "vip": "192.0.2.100", "target": "203.0.113.10", "password": "secret"}
RICH = PLAIN | {
    "name": "2026-01-01",
    "vip": "192.0.2.101",
    "password": '"☃ \u2028 {{ x }} 😀',
    "replicas": 2,
    "options": {
        "advbase": 2, "advskew": 0, "broadcast": True, "deadRatio": 2, "globalMasquerade": True, "interface": "eth1",
        "iptables": "nft", "logFormat": "json", "logLevel": "debug", "preempt": True, "preemptDelay": 60,
        "vipId": 255,
        "allowFrom": "10.0.0.0/8,192.0.2.1", "ports": "443,53/udp", "check": "tcp:443", "checkInterval": 9,
        "metrics": "eth1:9112",
    },
    "nodeSelector": {"disktype": "ssd"},
    "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}],
    "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
}  # fmt: skip
QUICK = PLAIN | {
    "name": "quick",
    "options": {"engine": "keepalived", "advertInterval": 0.5, "priority": 61, "notify": "/bin/x -y"},
}
HELD = {"name": "lb", "vip": "192.0.2.102", "mode": "hold", "password": "x", "options": {"advbase": 2, "preempt": True}}
EXISTING = {**PLAIN, "existingSecret": {"name": "db-vip", "key": "pass"}}
del EXISTING["password"]


@pytest.fixture(scope="module")
def chart() -> Iterator[Chart]:
    with Chart.load(CHART) as chart:
        yield chart


def rendered(chart: Chart, *vips: Any, name: str = "edge", **values: Any) -> dict[tuple[str, str], Any]:
    """Return the objects of a release, by kind and name."""
    files = chart.render({"vips": list(vips), **values}, name=name, namespace="network")
    objects = [
        each for file, text in files.items() if file.endswith(".yaml") for each in yaml.safe_load_all(text) if each
    ]
    found = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    assert len(found) == len(objects)
    return found


def settings(vip: Any) -> dict[str, Any]:
    """Return what one entry of vips sets, by the names of kevip's settings."""
    options: dict[str, Any] = {
        "".join(f"_{c.lower()}" if c.isupper() else c for c in name): value for name, value in vip["options"].items()
    }
    if "metrics" in options:
        options["metrics"] = parse_endpoint(options["metrics"])
    held = {"hold_only": True} if vip.get("mode") == "hold" else {}
    return options | held | {name: vip[name] for name in ("vip", "target", "password") if name in vip}


def pod(deployment: Any) -> Any:
    return deployment["spec"]["template"]["spec"]


def without_helms_own(thing: Any) -> Any:
    """Take off what Helm adds: its labels, a checksum, when to pull."""
    thing = deepcopy(thing)
    assert thing["metadata"]["labels"].pop("helm.sh/chart") == f"kevip-{VERSION}"
    assert thing["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"
    thing["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "kevip"
    if thing["kind"] == "Deployment":
        del thing["spec"]["template"]["metadata"]["annotations"]
        assert pod(thing)["containers"][0].pop("imagePullPolicy") == "IfNotPresent"
    return thing


@pytest.mark.parametrize(
    "vip",
    [
        PLAIN,
        PLAIN | {"mode": "ingress"},
        RICH,
        HELD,
        QUICK,
        HELD | {"options": {"check": "http://$(HOST_IP):30123/healthz"}},
    ],
)  # fmt: skip)
def test_the_chart_renders_what_the_command_prints(chart: Chart, vip: Any) -> None:
    vip = {"options": {}, "replicas": 3, "nodeSelector": {}, "tolerations": [], "resources": {}} | vip
    workload = manifest.Workload(
        name=f"edge-{vip['name']}",
        namespace="network",
        image=f"kevip:{VERSION}",
        version=VERSION,
        replicas=vip["replicas"],
        node_selector=vip["nodeSelector"],
        tolerations=vip["tolerations"],
        **vip["resources"],
    )
    expected = manifest.objects(settings(vip), workload)
    found = rendered(chart, {name: value for name, value in vip.items() if value or name != "resources"})
    assert len(found) == len(expected)
    for each in expected:
        assert without_helms_own(found[each["kind"], each["metadata"]["name"]]) == each


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_what_the_chart_renders(chart: Chart, version: str) -> None:
    scheduling = {"nodeSelector": {"a": "1"}, "tolerations": [{"operator": "Exists"}], "affinity": {"nodeAffinity": {}}}
    found = rendered(chart, PLAIN, RICH, {**EXISTING, "name": "x", **scheduling}, image={"pullSecrets": ["123"]})
    assert len(found) == 8
    for each in found.values():
        kubernetes_validate.validate(each, version, strict=True)


def test_each_vip_is_an_instance_of_its_own(chart: Chart) -> None:
    found = rendered(chart, PLAIN, RICH)
    selectors = []
    for name in ("edge-db", "edge-2026-01-01"):
        deployment, budget = found["Deployment", name], found["PodDisruptionBudget", name]
        selector = deployment["spec"]["selector"]
        assert selector["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
        assert selector == budget["spec"]["selector"]
        selectors.append(selector)
    assert selectors[0] != selectors[1]


def test_a_new_password_starts_the_pods_anew_and_nothing_else_does(chart: Chart) -> None:
    def template(password: str) -> Any:
        return rendered(chart, {**PLAIN, "password": password})["Deployment", "edge-db"]["spec"]["template"]

    assert template("one") == template("one")
    assert template("one") != template("two")


def test_a_secret_that_is_there_is_used(chart: Chart) -> None:
    found = rendered(chart, EXISTING)
    assert {kind for kind, _ in found} == {"Deployment", "PodDisruptionBudget"}
    reference = {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db-vip", "key": "pass"}}}
    assert reference in pod(found["Deployment", "edge-db"])["containers"][0]["env"]


def test_other_affinities_keep_two_replicas_off_one_node(chart: Chart) -> None:
    plain = pod(rendered(chart, PLAIN)["Deployment", "edge-db"])["affinity"]
    nodes: Any = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
    assert pod(rendered(chart, {**PLAIN, "affinity": nodes})["Deployment", "edge-db"])["affinity"] == plain | nodes


def test_the_image_can_be_chosen(chart: Chart) -> None:
    image = {"repository": "registry.example/kevip", "tag": "x", "pullPolicy": "Always", "pullSecrets": ["key"]}
    found = pod(rendered(chart, PLAIN, image=image)["Deployment", "edge-db"])
    (container,) = found["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("registry.example/kevip:x", "Always")
    assert found["imagePullSecrets"] == [{"name": "key"}]


def test_an_image_can_be_chosen_by_its_digest(chart: Chart) -> None:
    digest = f"sha256:{'0' * 64}"
    (container,) = pod(rendered(chart, PLAIN, image={"digest": digest, "tag": "x"})["Deployment", "edge-db"])[
        "containers"
    ]
    assert container["image"] == f"kevip@{digest}"


def test_lists_may_be_lists(chart: Chart) -> None:
    options = {"ports": [443, "53/udp"], "allowFrom": ["10.0.0.0/8", "192.0.2.1"]}
    (container,) = pod(rendered(chart, {**PLAIN, "options": options})["Deployment", "edge-db"])["containers"]
    given = {each["name"]: each.get("value") for each in container["env"]}
    assert (given["PORTS"], given["ALLOW_FROM"]) == ("443,53/udp", "10.0.0.0/8,192.0.2.1")


def test_names_can_be_chosen(chart: Chart) -> None:
    found = rendered(chart, PLAIN, nameOverride="egress", fullnameOverride="vips", dashboard={"enabled": True})
    assert {name for _, name in found} == {"vips-db", "vips-dashboard"}
    deployment = found["Deployment", "vips-db"]
    labels = {"app.kubernetes.io/name": "egress", "app.kubernetes.io/instance": "vips-db"}
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert labels.items() <= deployment["metadata"]["labels"].items()


FOR_ALL: Any = {
    "replicas": 5,
    "podAnnotations": {"a": "1"},
    "podLabels": {"team": "edge", "app.kubernetes.io/name": "other"},
    "priorityClassName": "high",
    "resources": {"requests": {"cpu": "1"}},
    "nodeSelector": {"disktype": "ssd"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "extraEnv": [{"name": "TZ", "value": "UTC"}],
}


def test_what_is_set_for_all_vips_reaches_their_pods(chart: Chart) -> None:
    deployment = rendered(chart, PLAIN, **FOR_ALL)["Deployment", "edge-db"]
    assert deployment["spec"]["replicas"] == 5
    about, spec = deployment["spec"]["template"]["metadata"], pod(deployment)
    assert about["labels"] == deployment["spec"]["selector"]["matchLabels"] | {"team": "edge"}
    assert about["annotations"].keys() == {"a", "checksum/password"}
    for name in ("priorityClassName", "nodeSelector", "tolerations"):
        assert spec[name] == FOR_ALL[name]
    assert spec["affinity"].keys() == {"nodeAffinity", "podAntiAffinity"}
    (container,) = spec["containers"]
    assert container["resources"] == {"requests": {"cpu": "1", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}
    assert container["env"][-1] == {"name": "TZ", "value": "UTC"}


def test_what_a_vip_sets_of_its_own_stands_instead(chart: Chart) -> None:
    own = {"nodeSelector": {"rack": "1"}, "tolerations": [], "extraEnv": [], "resources": {}, "priorityClassName": ""}
    found = rendered(chart, {**PLAIN, **own}, {**PLAIN, "name": "other"}, **FOR_ALL)
    spec = pod(found["Deployment", "edge-db"])
    assert spec["nodeSelector"] == {"rack": "1"}
    assert not {"tolerations", "priorityClassName"} & spec.keys()
    assert "resources" not in spec["containers"][0]
    assert pod(found["Deployment", "edge-other"])["nodeSelector"] == {"disktype": "ssd"}


def test_prometheus_operator_scrapes_vips_that_serve_metrics(chart: Chart) -> None:
    found = rendered(chart, PLAIN, RICH, podMonitor={"enabled": True, "interval": "30s", "labels": {"release": "prom"}})
    (monitor,) = [each for (kind, _), each in found.items() if kind == "PodMonitor"]
    deployment = found["Deployment", monitor["metadata"]["name"]]
    assert monitor["metadata"]["name"] == "edge-2026-01-01"
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert monitor["spec"]["selector"] == deployment["spec"]["selector"]
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "metrics", "interval": "30s"}]
    assert [each["name"] for each in pod(deployment)["containers"][0]["ports"]] == ["metrics"]


def test_alerts_and_dashboard_are_those_of_the_repository(chart: Chart) -> None:
    found = rendered(chart, PLAIN, prometheusRule={"enabled": True}, dashboard={"enabled": True})
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    assert found["PrometheusRule", "edge-alerts"]["spec"] == alerts
    shown = found["ConfigMap", "edge-dashboard"]
    assert shown["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert shown["data"] == {"kevip.json": (ROOT / "deploy/grafana/kevip.json").read_text()}
    kubernetes_validate.validate(shown, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize(("values", "problem"), [
    ({}, "at '/vips': minItems: got 0"),
    ({"vips": [PLAIN | {"vip": "192.0.2.300"}]}, "at '/vips/0/vip': '192.0.2.300' does not match"),
    ({"vips": [PLAIN, PLAIN | {"target": "10.0.0"}]}, "at '/vips/1/target'"),
    ({"vips": [PLAIN | {"name": "A_"}]}, "at '/vips/0/name': 'A_' does not match"),
    ({"vips": [PLAIN | {"password": 123}]}, "at '/vips/0/password': got number, want string"),
    ({"vips": [PLAIN | EXISTING]}, "at '/vips/0/existingSecret': false schema"),
    ({"vips": [{k: v for k, v in PLAIN.items() if k != "password"}]}, "at '/vips/0': missing property 'password'"),
    ({"vips": [PLAIN | {"options": {"runDir": "/x"}}]}, "at '/vips/0/options': additional properties 'runDir'"),
    ({"vips": [PLAIN | {"options": {"vipId": 0}}]}, "at '/vips/0/options/vipId': minimum: got 0, want 1"),
    ({"vips": [PLAIN | {"mode": "hold"}]}, "at '/vips/0/target': false schema"),
    ({"vips": [PLAIN | {"mode": "both"}]}, "at '/vips/0/mode': value must be one of"),
    ({"vips": [{k: v for k, v in PLAIN.items() if k != "target"}]}, "at '/vips/0': missing property 'target'"),
    ({"vips": [PLAIN], "replica": 2}, "additional properties 'replica' not allowed"),
    ({"vips": [PLAIN], "podLabels": {"a": 1}}, "at '/podLabels/a': got number, want string"),
    ({"vips": [PLAIN], "image": {"digest": "sha256:12"}}, "at '/image/digest': 'sha256:12' does not match"),
    ({"vips": [PLAIN], "extraEnv": [{"value": "x"}]}, "at '/extraEnv/0': missing property 'name'"),
    ({"vips": [PLAIN | {"options": {"ports": []}}]}, "at '/vips/0/options/ports"),
])  # fmt: skip
def test_bad_values_are_refused_by_name(chart: Chart, values: Any, problem: str) -> None:
    with pytest.raises(HelmValuesError) as caught:
        chart.render(values, name="edge")
    assert problem in str(caught.value)


@pytest.mark.parametrize(("values", "problem"), [
    ({"vips": [PLAIN, PLAIN]}, "vips: two are named db"),
    ({"vips": [PLAIN | {"name": "x" * 60}]}, f"edge-{'x' * 60} is longer than the 63 characters that Kubernetes takes"),
    ({"vips": [PLAIN], "podMonitor": {"enabled": True}}, "podMonitor: no VIP has options.metrics"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(chart: Chart, values: Any, problem: str) -> None:
    with pytest.raises(HelmRenderError, match=problem):
        chart.render(values, name="edge")


def test_the_schema_knows_the_settings_of_the_command_line(chart: Chart) -> None:
    schema = chart.schema
    assert schema
    known = schema["definitions"]["vip"]["properties"]["options"]["properties"]
    own = {"vip", "target", "forwards", "forwards_file", "hold_only", "password", "password_file", "run_dir"}
    kinds = {each.name: each.type for each in cli.params if isinstance(each, click.Option) and each.envvar}
    camel = {name: name.split("_")[0] + name.title().replace("_", "")[len(name.split("_")[0]) :] for name in kinds}
    assert known.keys() == {camel[str(name)] for name in kinds if name not in own}
    for name, kind in kinds.items():
        if name in RANGES:
            assert known[camel[name]] == dict(
                zip(("type", "minimum", "maximum"), ("integer", *RANGES[name]), strict=True)
            )
        elif "|" in kind.name:
            assert "|".join(known[camel[str(name)]]["enum"]) == kind.name


def test_the_chart_has_no_lint() -> None:
    found = lint(CHART, {"vips": [PLAIN, RICH]}, strict=True)
    assert found["errors"] == []
    assert [each["error"] for each in found["messages"]] == ["icon is recommended"]


def test_the_versions_are_those_of_kevip(chart: Chart) -> None:
    assert chart.metadata["version"] == chart.metadata["appVersion"] == VERSION


def test_the_notes_name_each_vip_and_the_objects_to_look_at(chart: Chart) -> None:
    notes = chart.render({"vips": [PLAIN, RICH]}, name="edge", namespace="network")["kevip/templates/NOTES.txt"]
    for vip in (PLAIN, RICH):
        assert f"{vip['vip']} -> {vip['target']}" in notes
        assert (
            f"--namespace network get pods --output wide --selector app.kubernetes.io/instance=edge-{vip['name']}"
            in notes
        )
    assert "secret" not in notes.lower()
    assert "name it in image.repository" in notes
    assert "IPVS" not in notes
    assert "IPVS" in chart.render({"vips": [PLAIN | {"mode": "ingress"}]}, name="edge")["kevip/templates/NOTES.txt"]


def compose(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Docker Compose on our file."""
    program = Path(sysconfig.get_path("purelib")) / "compose/docker-compose"  # its wrapper loses the exit status
    command = [str(program), "--file", str(ROOT / "deploy/compose.yaml"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_the_compose_file_has_the_rights_it_needs_and_no_others() -> None:
    done = compose("config", "--format", "json", VIP="192.0.2.100", TARGET="203.0.113.10")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    service = found["services"]["kevip"]
    expected = {
        "network_mode": "host",
        "cap_drop": ["ALL"],
        "cap_add": ["NET_ADMIN", "NET_RAW"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": True,
        "tmpfs": ["/run"],
        "restart": "unless-stopped",
        "stop_grace_period": "30s",
        "environment": {"VIP": "192.0.2.100", "TARGET": "203.0.113.10", "PASSWORD_FILE": "/run/secrets/password"},
        "secrets": [{"source": "password", "target": "/run/secrets/password"}],
    }
    assert {name: service.get(name) for name in expected} == expected
    assert "privileged" not in service
    assert found["secrets"]["password"]["file"] == str(ROOT / "deploy/password")
    assert service["build"]["context"] == str(ROOT)


def test_the_compose_file_says_what_is_missing() -> None:
    done = compose("config", VIP="192.0.2.100")
    assert done.returncode != 0
    assert "TARGET is missing a value: set it to where its traffic goes" in done.stderr
