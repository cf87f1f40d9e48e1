"""What others see of this process."""

import subprocess
import sys

SCRIPT = """
import sys
from pathlib import Path
from kevip.host.kernel import hide_argument
hide_argument("secret")
print(Path("/proc/self/cmdline").read_text().split(chr(0))[3:-1])
"""


def test_a_secret_argument_is_overwritten_and_nothing_else() -> None:
    arguments = ["--password=secret", "secret", "--vip=1", "a secret", "secretive", "--x=y=secret"]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "['--password=******', '******', '--vip=1', 'a secret', 'secretive', '--x=y=******']\n"
