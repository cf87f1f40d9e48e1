"""What `kubectl apply` needs to run kevip in a cluster: the objects as plain values, and their text as YAML (pure)."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import indent
from typing import Any

Object = dict[str, Any]

# A check of the node itself, as of kube-proxy's health check, asks $(HOST_IP).
_NODE_VARIABLE = "$(HOST_IP)"
_NODE = {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}
_XTABLES_LOCK = "/run/xtables.lock"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # what names objects, containers and labels (RFC 1123)
# What a node's labels and taints are made of, and amounts of resources, as Kubernetes' API takes them.
_KEY = r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_VALUE = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
_TAINT = re.compile(f"(?P<key>{_KEY})(=(?P<value>{_VALUE}))?(:(?P<effect>NoSchedule|PreferNoSchedule|NoExecute))?")
_AMOUNT = re.compile(r"(cpu|memory)=([0-9]+(?:\.[0-9]+)?(?:[mkMGT]|[KMGT]i)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the objects are named, what they run, and where: all that is no setting of kevip itself."""

    name: str
    image: str
    replicas: int
    version: str  # of kevip, in a label
    namespace: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str]] = ()
    # The CPU is not limited: a takeover must not be throttled.
    requests: Mapping[str, str] = field(default_factory=lambda: {"cpu": "20m", "memory": "64Mi"})
    limits: Mapping[str, str] = field(default_factory=lambda: {"memory": "256Mi"})


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


def parse_node_label(text: str) -> tuple[str, str]:
    """Parse the label of a node, KEY=VALUE; raises ValueError."""
    if not re.fullmatch(f"{_KEY}={_VALUE}", text):
        raise ValueError(f"{text!r} is not a node's label, such as disktype=ssd")
    key, _, value = text.partition("=")
    return key, value


def parse_toleration(text: str) -> Object:
    """Parse a taint as kubectl writes it, KEY[=VALUE][:EFFECT], and return what tolerates it; raises ValueError."""
    if not (found := _TAINT.fullmatch(text)):
        raise ValueError(f"{text!r} is not a taint, such as node-role.kubernetes.io/control-plane:NoSchedule")
    given = {name: each for name, each in found.groupdict().items() if each is not None}
    return {"key": given["key"], "operator": "Equal" if "value" in given else "Exists"} | given


def parse_amount(text: str) -> tuple[str, str]:
    """Parse an amount of a resource, cpu=AMOUNT or memory=AMOUNT; raises ValueError."""
    if not (found := _AMOUNT.fullmatch(text)):
        raise ValueError(f"{text!r} is not an amount of cpu or memory, such as cpu=20m or memory=64Mi")
    return found[1], found[2]


def password_problem(password: str) -> str | None:
    """Say why a pod's environment cannot take this password, if so."""
    if "\0" in password or any("\ud800" <= each <= "\udfff" for each in password):
        return "the password holds a NUL or is not UTF-8: a pod's environment cannot take it, choose another"
    return None


def objects(settings: Mapping[str, Any], workload: Workload) -> list[Object]:
    """Return the Secret, the Deployment and the PodDisruptionBudget of one VIP.

    ``settings`` are those that differ from the defaults, by name. The password among them goes into the Secret only.
    """
    own = {"app.kubernetes.io/name": "kevip", "app.kubernetes.io/instance": workload.name}
    told = {"component": "virtual-ip", "version": workload.version.replace("+", "_"), "managed-by": "kevip"}
    metadata = {
        "name": workload.name,
        **({"namespace": workload.namespace} if workload.namespace else {}),
        "labels": own | {f"app.kubernetes.io/{name}": value for name, value in told.items()},
    }
    selector = {"matchLabels": own}

    def kind(version: str, kind: str, **content: Any) -> Object:
        return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}

    deployment = {
        "replicas": workload.replicas,
        # Without a surge: there may be no node left that has no replica yet.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        # The next replica goes once this one has had time to hear the others, through switches that learn who
        # wants the adverts, and to find out that it cannot serve.
        "minReadySeconds": 10,
        "selector": selector,
        "template": {"metadata": {"labels": own}, "spec": _pod(selector, workload, _container(workload, settings))},
    }
    # A replica that takes no part is no reason to keep a node from being drained.
    budget = {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow", "selector": selector}
    return [
        kind("v1", "Secret", type="Opaque", stringData={"password": settings["password"]}),
        kind("apps/v1", "Deployment", spec=deployment),
        kind("policy/v1", "PodDisruptionBudget", spec=budget),
    ]


def _pod(selector: Object, workload: Workload, container: Object) -> Object:
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
        **({"nodeSelector": dict(workload.node_selector)} if workload.node_selector else {}),
        **({"tolerations": list(workload.tolerations)} if workload.tolerations else {}),
        "containers": [container],
        "volumes": [
            {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "xtables-lock", "hostPath": {"path": _XTABLES_LOCK, "type": "FileOrCreate"}},
        ],
    }


def _container(workload: Workload, settings: Mapping[str, Any]) -> Object:
    port = settings["metrics"].port if "metrics" in settings else 0
    return {
        "name": "kevip",
        "image": workload.image,
        "env": _environment(workload.name, settings),
        # With the host's network, this tells the scheduler that the port is taken, and monitoring which it is.
        **({"ports": [{"name": "metrics", "containerPort": port, "protocol": "TCP"}]} if port else {}),
        "securityContext": {
            # Kubernetes gives capabilities to root only.
            "runAsUser": 0,
            "capabilities": {"drop": ["ALL"], "add": _capabilities(settings)},
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {"requests": dict(workload.requests), "limits": dict(workload.limits)},
        "livenessProbe": _probe("live", period=10),
        "readinessProbe": _probe("ready", period=5),
        "volumeMounts": [
            {"name": "run", "mountPath": "/run"},
            # The lock that kube-proxy's iptables-legacy takes, so that the two exclude each other.
            {"name": "xtables-lock", "mountPath": _XTABLES_LOCK},
        ],
    }


def _environment(name: str, settings: Mapping[str, Any]) -> list[Object]:
    return [
        *(_variable(each, settings[each]) for each in ("vip", "target") if each in settings),
        *([_NODE] if _NODE_VARIABLE in str(settings.get("check")) else []),
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": name, "key": "password"}}},
        *(_variable(each, settings[each]) for each in sorted(settings.keys() - {"vip", "target", "password"})),
    ]


def _capabilities(settings: Mapping[str, Any]) -> list[str]:
    """Return what it needs; keepalived is a real-time process, that a busy node is not taken for dead."""
    return ["NET_ADMIN", "NET_RAW", *(["SYS_NICE"] if settings.get("engine") == "keepalived" else [])]


def _variable(name: str, value: Any) -> Object:
    if isinstance(value, bool):
        value = str(value).lower()
    between = " " if name == "check" else ","  # a URL may hold commas
    return {"name": name.upper(), "value": between.join(map(str, value)) if isinstance(value, tuple) else str(value)}


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
