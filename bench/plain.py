"""What kevip is compared with: ucarp alone, with shell hooks as its users write them (bench/plain/)."""

import os
import signal
import subprocess
from pathlib import Path
from random import SystemRandom
from typing import Any

from lab.network import TARGET, VIP, Namespace

HOOKS = Path(__file__).parent / "plain"


class PlainReplica:
    """A ucarp on a node, with a random skew from its whole range; the same interface as lab.replica.Replica."""

    def __init__(self, node: Namespace) -> None:
        node.sysctl("net.ipv4.ip_forward", "1")
        [address] = [each.split("/")[0] for device, each, _ in node.addresses() if device == "eth0"]
        self.node = node
        self.process: subprocess.Popen[Any] = node.popen(
            "ucarp", "--interface=eth0", f"--srcip={address}", "--vhid=100", "--pass=secret", f"--addr={VIP}",
            f"--advskew={SystemRandom().randint(1, 254)}", f"--upscript={HOOKS / 'vip-up'}",
            f"--downscript={HOOKS / 'vip-down'}", f"--xparam={TARGET}", "--shutdown", "--neutral", "--facility=none",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "IPTABLES": "iptables-nft"}, process_group=0,
        )  # fmt: skip

    def terminate(self) -> None:
        """Stop it as its users do."""
        self.process.terminate()

    def kill(self) -> None:
        """End it at once, as a crash does: address and rules stay."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def remove(self) -> None:
        """There are no files to remove."""
