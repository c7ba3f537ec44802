"""`python -m openbook_cli.demo.child ARGUMENTS`: the `openbook` command as a child that does not outlive its parent.

Standard input is a pipe that only the parent holds: its end means that the parent is gone, by SIGKILL as well. A byte in
it sets the child free.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from openbook_cli.main import main


def _follow_parent() -> None:
    if not os.read(sys.stdin.fileno(), 1):
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_follow_parent, daemon=True, name="parent").start()
    main()
