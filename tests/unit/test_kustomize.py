"""The base for Kustomize is what `kevip manifest` prints, and its example builds to one VIP of its own."""

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kevip import manifest
from kevip.status.record import VERSION

DIRECTORY = Path(__file__).parents[2] / "deploy/kubernetes"
KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    """Return the objects of the example, by kind."""
    command = [str(KUBECTL), "kustomize", str(DIRECTORY / "example")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def test_the_base_is_what_the_command_prints_but_for_its_settings() -> None:
    workload = manifest.Workload(name="kevip", image=f"kevip:{VERSION}", replicas=3, version=VERSION)
    _, *expected = manifest.objects({"password": ""}, workload)
    (container,) = expected[0]["spec"]["template"]["spec"]["containers"]
    container["envFrom"] = [{"configMapRef": {"name": "kevip"}}]
    assert list(yaml.safe_load_all((DIRECTORY / "base/kevip.yaml").read_text())) == expected


def test_kubernetes_takes_what_the_example_builds(built: dict[str, Any]) -> None:
    assert built.keys() == {"ConfigMap", "Secret", "Deployment", "PodDisruptionBudget"}
    for each in built.values():
        assert each["metadata"]["namespace"] == "network"
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def test_the_pods_have_the_settings_and_the_password(built: dict[str, Any]) -> None:
    (container,) = built["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"registry.example/kevip:{VERSION}"
    assert container["envFrom"] == [{"configMapRef": {"name": built["ConfigMap"]["metadata"]["name"]}}]
    assert built["ConfigMap"]["data"] == {"VIP": "192.0.2.100", "TARGET": "203.0.113.10"}
    (password,) = container["env"]
    assert password["valueFrom"]["secretKeyRef"] == {"name": built["Secret"]["metadata"]["name"], "key": "password"}


def test_a_vip_is_an_instance_of_its_own(built: dict[str, Any]) -> None:
    labels = {"app.kubernetes.io/name": "kevip", "app.kubernetes.io/instance": "kevip-database"}
    spec = built["Deployment"]["spec"]
    (rule,) = spec["template"]["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert spec["template"]["metadata"]["labels"] == labels
    for selector in (spec["selector"], built["PodDisruptionBudget"]["spec"]["selector"], rule["labelSelector"]):
        assert selector == {"matchLabels": labels}
