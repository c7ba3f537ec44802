"""Several training processes on this machine: torchrun's launcher, without its report on top of our own error."""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `python -m openbook_trainer ARGUMENTS` in `processes` ranks; the exit code of the first that failed, or 0.

    SIGTERM and Ctrl-C end every rank before this returns.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "openbook_trainer", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code < 0:
            print(
                f"error: process {rank} was ended by {signal.Signals(-code).name}, so the run stops; the last checkpoint is "
                "whole, run the same command to go on",
                file=sys.stderr,
            )
        return code if code > 0 else 128 - code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
