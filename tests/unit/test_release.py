"""What a release says of where it comes from: script/stamp writes it into files, and script/labels prints flags."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from kevip.status.record import VERSION

ROOT = Path(__file__).parents[2]
URL = "https://git.example/team/kevip"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy what is stamped."""
    for each in ("script", "deploy/helm"):
        shutil.copytree(ROOT / each, tmp_path / each, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_wheel_and_chart_say_where_they_come_from(copy: Path) -> None:
    before = tomllib.loads((copy / "pyproject.toml").read_text())
    chart, values = (
        yaml.safe_load((copy / "deploy/helm/kevip" / name).read_text()) for name in ("Chart.yaml", "values.yaml")
    )
    for url, image in (("https://other.example/x", "other"), (f"{URL}/", "registry.example/team/kevip")):
        subprocess.run([copy / "script/stamp", url, image], check=True)
    after = tomllib.loads((copy / "pyproject.toml").read_text())
    urls = after["project"].pop("urls")
    assert after == before
    assert {urls["Homepage"], urls["Source"]} == {URL}
    assert all(each.startswith(URL) for each in urls.values())
    stamped, given = (
        yaml.safe_load((copy / "deploy/helm/kevip" / name).read_text()) for name in ("Chart.yaml", "values.yaml")
    )
    assert stamped == chart | {"home": URL, "sources": [URL]}
    assert given == values | {"image": values["image"] | {"repository": "registry.example/team/kevip"}}


@pytest.mark.parametrize("arguments", [[], ["git.example"]])
def test_what_is_no_url_is_refused_and_nothing_written(copy: Path, arguments: list[str]) -> None:
    before = (copy / "pyproject.toml").read_text()
    done = subprocess.run([copy / "script/stamp", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: stamp URL [IMAGE]\n")
    assert (copy / "pyproject.toml").read_text() == before


def test_the_image_gets_the_labels_that_registries_read() -> None:
    command = [str(ROOT / "script/labels"), URL, "debian:bookworm-slim@sha256:12"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    labels = dict(line.removeprefix("--label=org.opencontainers.image.").split("=", 1) for line in printed.splitlines())
    assert labels.keys() == {
        "version", "revision", "created", "source", "url", "documentation", "base.name", "base.digest",
    }  # fmt: skip
    assert (labels["version"], labels["source"]) == (VERSION, URL)
    assert (labels["base.name"], labels["base.digest"]) == ("docker.io/library/debian:bookworm-slim", "sha256:12")
