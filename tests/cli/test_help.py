"""Help must be quick, so that it loads nothing that takes long to import."""

import subprocess
import sys

from tests.cli.test_commands import COMMANDS

HEAVY = ("torch", "ray", "pyarrow", "scipy", "kafka")
# All in one process, which starts once: what any help loads is told with the command that did.
PROGRAM = f"""
import sys
from nap_stream.cli import main

for command in {[[], *([name] for name in COMMANDS)]}:
    sys.argv = ["nap-stream", *command, "--help"]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code
    loaded = [name for name in {HEAVY} if name in sys.modules]
    assert not loaded, (command, loaded)
"""


def test_help_loads_nothing_heavy() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Usage:") == 1 + len(COMMANDS)
