"""What the documents show is there and parses: links, names of files, settings and metrics, and every command."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click
import kubernetes_validate
import pytest
import yaml
from lab.documents import DOCUMENTS, ROOT, SPAN, anchors, blocks, commands, prose, spans

from kevip.cli import cli
from kevip.config import Malformed

LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACES = "docs|script|deploy|tests|kevip|bench"
PLACEHOLDERS = {"CLUSTER_IP": "10.96.0.50", "VIP": "192.0.2.100", "POD": "pod", "NAME": "name"}
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
each_present = pytest.mark.parametrize(
    "document",
    [each for each in DOCUMENTS if each.name != "CHANGELOG.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)


@each_document
def test_each_link_leads_somewhere(document: Path) -> None:
    dead = []
    for link in LINK.findall(SPAN.sub("", prose(document))):
        address = urlsplit(link)
        if address.scheme:
            if address.scheme != "https" or "." not in address.netloc:
                dead.append(link)
            continue
        path = (document.parent / address.path).resolve() if address.path else document
        if not path.exists() or (address.fragment and address.fragment not in anchors(path)):
            dead.append(link)
    assert dead == []


@each_document
def test_each_file_of_ours_that_is_named_is_there(document: Path) -> None:
    named = [each for span in spans(document) for each in re.findall(rf"^(?:sudo )?((?:{PLACES})/[\w./*-]+)", span)]
    assert [each for each in named if not any(ROOT.glob(each))] == []


def test_each_document_that_a_file_names_is_there() -> None:
    files = [*ROOT.glob("[!.]*.*"), *(each for part in PLACES.split("|") for each in (ROOT / part).rglob("*"))]
    dead = {
        f"{path.name}: {name}"
        for path in files
        if path.is_file() and path.suffix in {".md", ".py", ".yaml", ".sample", ".conf", ".service", ".tpl", ".txt", ""}
        for name in re.findall(r"(?<![/\w])docs/[\w-]+\.md", path.read_text())
        if not (ROOT / name).exists()
    }
    assert dead == set()


@each_document
def test_each_block_of_shell_parses(document: Path) -> None:
    for block in blocks(document, "sh"):
        done = subprocess.run(["/bin/sh", "-n"], input=block, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), block


def kevips(document: Path) -> Iterator[list[str]]:
    """Yield the arguments of each kevip that a document shows: in blocks, transcripts and spans."""
    lines = [*spans(document), *(" ".join(words) for words in commands(document))]
    lines += [line for block in blocks(document, "") for line in re.findall(r"^[$#] (kevip .*)$", block, re.MULTILINE)]
    for line in lines:
        if found := re.search(rf"(?:^|\s|bin/)kevip ((?:--|(?:{'|'.join(cli.commands)}) -).*)$", line):
            words = shlex.split(found[1].replace("…", ""))
            yield [PLACEHOLDERS.get(word, word) for word in words if word != "..."]


def problems(arguments: list[str]) -> list[str]:
    """Say what of a command line kevip would not take; nothing is run."""
    name, *rest = arguments
    try:
        if command := cli.commands.get(name):
            context = command.make_context(name, rest, parent=click.Context(cli))
        else:
            context = cli.make_context("kevip", [*arguments])
    except click.exceptions.Exit:
        return []
    except click.ClickException as error:
        return [error.format_message()]
    return [value.problem for value in context.params.values() if isinstance(value, Malformed)]


@each_present
def test_kevip_takes_each_command_line_that_is_shown(document: Path) -> None:
    assert {" ".join(each): found for each in kevips(document) if (found := problems(each))} == {}


OPTIONS = [param for command in (cli, *cli.commands.values()) for param in command.params]
FLAGS = {name for param in OPTIONS for name in param.opts + param.secondary_opts} | {"--help", "--version"}
OTHERS = {
    f"--{name}"
    for name in [
        "allowed-address",
        "connect-timeout",
        "insecure",
        "keepalive-time",
        "max-time",
        "cap-add",
        "env",
        "format",
        "hostname",
        "no-",
        "node-ip",
        "noflush",
        "resolve",
        "volume",
    ]
}
VARIABLES = {
    param.envvar: param.opts[0]
    for param in OPTIONS
    if isinstance(param, click.Option) and param.envvar and not param.is_flag
}


@each_present
def test_each_setting_that_is_shown_is_one(document: Path) -> None:
    for span in spans(document):
        if found := re.fullmatch(r"([A-Z_]+)=([^ $]+)", span):
            flag = VARIABLES.get(found[1])
            assert not flag or problems([f"{flag}={found[2]}"]) == [], span
        if found := re.fullmatch(r"(--[a-z-]+)( [^ ]+)?", span):
            assert found[1] in FLAGS | OTHERS, span


@each_present
def test_each_metric_and_alert_that_is_named_is_there(document: Path) -> None:
    alerts = (ROOT / "deploy/prometheus/alerts.yaml").read_text()
    metrics = "".join(path.read_text() for path in (ROOT / "kevip/status").glob("*.py"))
    for span in spans(document):
        if re.fullmatch(r"Kevip[A-Z]\w+", span):
            assert f"alert: {span}\n" in alerts, span
        if re.fullmatch(r"kevip_\w+", span):
            assert span.removeprefix("kevip_").removesuffix("_total") in metrics, span


@each_document
def test_each_block_of_yaml_parses_and_kubernetes_knows_its_objects(document: Path) -> None:
    for block in blocks(document, "yaml"):
        for each in yaml.safe_load_all(block):
            if isinstance(each, dict) and "." not in each.get("apiVersion", ".").partition("/")[0].replace(
                ".k8s.io", ""
            ):
                kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


@each_present
def test_each_event_that_is_named_is_logged(document: Path) -> None:
    source = "".join(path.read_text() for path in (ROOT / "kevip").rglob("*.py"))
    kinds = set(re.findall(r'"([a-z]+)\.[a-z_]+"', source))
    named = [span for span in spans(document) if re.fullmatch(r"[a-z]+\.[a-z_]+", span)]
    named = [span for span in named if span.partition(".")[0] in kinds and not span.endswith((".py", ".service"))]
    named += re.findall(r'"event": "([^"]+)"', document.read_text())
    assert [each for each in named if f'"{each}"' not in source] == []
