"""A node with systemd as its process 1, on an overlay of this machine's files: what a host is to an administrator."""

import itertools
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self

from lab.network import Namespace, eventually, run

REPOSITORY = Path(__file__).parents[2]

_CGROUPS = Path("/run/cgroup")
_SERIAL = itertools.count(1)


class Machine:
    """A booted node; a context manager that ends it. It can write anywhere but in the repository."""

    def __init__(self, node: Namespace) -> None:
        self.node = node
        self._directory = Path(tempfile.mkdtemp(prefix="machine-"))
        self._cgroup = _CGROUPS / f"kevip-lab-{os.getpid()}-{next(_SERIAL)}"
        if not _CGROUPS.exists():
            _CGROUPS.mkdir()
            run("mount", "-t", "cgroup2", "cgroup2", str(_CGROUPS))
        self._cgroup.mkdir()
        self._process = node.popen(
            "sh",
            "-c",
            'echo $$ >"$1/cgroup.procs"; shift; exec "$@"',
            "sh",
            str(self._cgroup),
            *("unshare", "--mount", "--pid", "--cgroup", "--ipc", "--uts", "--fork", "--kill-child"),
            str(Path(__file__).with_name("boot")),
            str(self._directory),
            str(REPOSITORY),
        )
        self._init = 0
        try:
            self._init = eventually(self._find_init, what="process 1 is there")
            eventually(self._is_up, what="systemd is up")
        except BaseException:
            self.close()
            raise

    def _find_init(self) -> int:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        is_systemd = children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n"
        return int(children[0]) if is_systemd else 0

    def _is_up(self) -> bool:
        return self.call("systemctl", "is-system-running").stdout in {"running\n", "degraded\n"}

    def changes(self, *apart: str) -> dict[str, tuple[int, bytes]]:
        """Return mode and content of all files that differ from those below, apart from what is in some directories."""
        upper = self._directory / "upper"
        return {
            str(path.relative_to(upper)): (path.lstat().st_mode, _content(path))
            for path in upper.rglob("*")
            if (path.is_symlink() or not path.is_dir()) and not any(path.is_relative_to(upper / each) for each in apart)
        }

    def call(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program on this machine, in the repository, to its end."""
        command = ["nsenter", f"--target={self._init}", "--all", f"--wdns={REPOSITORY}", "--", *argv]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **env}
        )

    def run(self, *argv: str, **env: str) -> str:
        """Do so and return its stdout; an error shows its stderr."""
        done = self.call(*argv, **env)
        assert done.returncode == 0, f"{' '.join(argv)}: exit status {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def property(self, unit: str, name: str) -> str:
        """Return what systemd says about a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def file(self, path: str) -> Path:
        """Return where a file of this machine is for us."""
        return Path(f"/proc/{self._init}/root/{path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all that runs on this machine, and remove its files."""
        self._process.kill()
        self._process.wait()
        for path in sorted(self._cgroup.glob("**/"), reverse=True):
            eventually(partial(_is_removed, path), what=f"processes in {path} end")
        shutil.rmtree(self._directory)


def _is_removed(cgroup: Path) -> bool:
    """Remove a cgroup, unless something is still there, be it the rest of a process that ends."""
    with suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()


def _content(path: Path) -> bytes:
    if path.is_symlink():
        return bytes(path.readlink())
    return path.read_bytes() if path.is_file() else b""
