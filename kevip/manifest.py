"""What `kubectl apply` needs to run kevip in a cluster: the objects as plain values, and their text as YAML (pure)."""

import json
import re
from collections.abc import Mapping, Sequence
from textwrap import indent
from typing import Any

Object = dict[str, Any]

# A check of the node itself, as of kube-proxy's health check, asks $(HOST_IP).
_NODE_VARIABLE = "$(HOST_IP)"
_NODE = {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}
_XTABLES_LOCK = "/run/xtables.lock"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # what names objects, containers and labels (RFC 1123)


def parse_name(text: str) -> str:
    """Parse the name of an object; raises ValueError."""
    if not _LABEL.fullmatch(text):
        raise ValueError(f"{text!r} is not a name of up to 63 lower-case letters, digits and inner hyphens")
    return text


def parse_image(text: str) -> str:
    """Parse the reference of an image, as far as to see that it is one word; raises ValueError."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError(f"{text!r} is not the name of an image, such as registry.example/kevip:1.0")
    return text


def password_problem(password: str) -> str | None:
    """Say why a pod's environment cannot take this password, if so."""
    if "\0" in password or any("\ud800" <= each <= "\udfff" for each in password):
        return "the password holds a NUL or is not UTF-8: a pod's environment cannot take it, choose another"
    return None


def objects(
    settings: Mapping[str, Any], *, name: str, image: str, replicas: int, namespace: str | None = None
) -> list[Object]:
    """Return the Secret, the Deployment and the PodDisruptionBudget of one VIP.

    ``settings`` are those that differ from the defaults, by name. The password among them goes into the Secret only.
    """
    labels = {"app.kubernetes.io/name": "kevip", "app.kubernetes.io/instance": name}
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {}) | {"labels": labels}
    selector = {"matchLabels": labels}

    def kind(version: str, kind: str, **content: Any) -> Object:
        return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}

    deployment = {
        "replicas": replicas,
        # Without a surge: there may be no node left that has no replica yet.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        # The next replica goes once this one has had time to hear the others, through switches that learn who
        # wants the adverts, and to find out that it cannot serve.
        "minReadySeconds": 10,
        "selector": selector,
        "template": {"metadata": {"labels": labels}, "spec": _pod(selector, _container(name, image, settings))},
    }
    # A replica that takes no part is no reason to keep a node from being drained.
    budget = {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow", "selector": selector}
    return [
        kind("v1", "Secret", type="Opaque", stringData={"password": settings["password"]}),
        kind("apps/v1", "Deployment", spec=deployment),
        kind("policy/v1", "PodDisruptionBudget", spec=budget),
    ]


def _pod(selector: Object, container: Object) -> Object:
    apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}
    return {
        # The VIP, its rules and CARP belong to the node's network.
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "priorityClassName": "system-node-critical",
        # Longer than a handover and the draining after it, which take up to 4 s, on a node that is busy.
        "terminationGracePeriodSeconds": 30,
        # It asks the cluster nothing, and reads no variables but its own.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # Two on one node do not hear each other.
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
        "containers": [container],
        "volumes": [
            {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "xtables-lock", "hostPath": {"path": _XTABLES_LOCK, "type": "FileOrCreate"}},
        ],
    }


def _container(name: str, image: str, settings: Mapping[str, Any]) -> Object:
    return {
        "name": "kevip",
        "image": image,
        "env": [
            *(_variable(each, settings[each]) for each in ("vip", "target") if each in settings),
            *([_NODE] if _NODE_VARIABLE in str(settings.get("check")) else []),
            {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": name, "key": "password"}}},
            *(_variable(each, settings[each]) for each in sorted(settings.keys() - {"vip", "target", "password"})),
        ],
        "securityContext": {
            # Kubernetes gives capabilities to root only.
            "runAsUser": 0,
            "capabilities": {"drop": ["ALL"], "add": _capabilities(settings)},
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        # The CPU is not limited: a takeover must not be throttled.
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "livenessProbe": _probe("live", period=10),
        "readinessProbe": _probe("ready", period=5),
        "volumeMounts": [
            {"name": "run", "mountPath": "/run"},
            # The lock that kube-proxy's iptables-legacy takes, so that the two exclude each other.
            {"name": "xtables-lock", "mountPath": _XTABLES_LOCK},
        ],
    }


def _capabilities(settings: Mapping[str, Any]) -> list[str]:
    """Return what it needs; keepalived is a real-time process, that a busy node is not taken for dead."""
    return ["NET_ADMIN", "NET_RAW", *(["SYS_NICE"] if settings.get("engine") == "keepalived" else [])]


def _variable(name: str, value: Any) -> Object:
    if isinstance(value, bool):
        value = str(value).lower()
    return {"name": name.upper(), "value": ",".join(map(str, value)) if isinstance(value, tuple) else str(value)}


def _probe(question: str, *, period: int) -> Object:
    return {"exec": {"command": ["kevip-probe", question]}, "periodSeconds": period, "timeoutSeconds": 5}


def to_yaml(documents: Sequence[Object]) -> str:
    """Write documents as YAML, in its block style."""
    return "---\n".join(f"{_block(each)}\n" for each in documents)


def _block(node: Any) -> str:
    if not node or not isinstance(node, dict | list):
        # As JSON, which YAML takes, but for what JSON leaves bare and YAML does not.
        text = json.dumps(node, ensure_ascii=False)
        return "".join(each if " " <= each <= "~" else f"\\U{ord(each):08x}" for each in text)
    if isinstance(node, list):
        return "\n".join("- " + indent(_block(each), "  ").lstrip(" ") for each in node)
    entries = []
    for key, value in node.items():
        deep = value and isinstance(value, dict | list)
        entries.append(f"{key}:" + (indent(f"\n{_block(value)}", "  ") if deep else f" {_block(value)}"))
    return "\n".join(entries)
