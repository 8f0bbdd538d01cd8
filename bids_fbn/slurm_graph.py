"""nipype's plugin ``SLURMGraph``, made to wait.

It hands all nodes of a workflow to SLURM at once, each to start when those before it have ended
well, and returns. The participant level has three workflows, and reads what one has left before it
makes the next.
"""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Mapping
from typing import Any

from nipype.pipeline.plugins import SLURMGraphPlugin

from bids_fbn.errors import RunError

__all__ = ["WaitingSLURMGraphPlugin"]

_SECONDS_BETWEEN_LOOKS = 5.0
# A busy controller does not answer now and then; for ten minutes it is gone.
_MOST_FAILURES = 120


class WaitingSLURMGraphPlugin(SLURMGraphPlugin):
    """As its parent, whose ``plugin_args`` it takes; ``run`` returns when all jobs have ended.

    Jobs that can never start, since one before them failed, are removed from the queue.
    """

    def __init__(self, plugin_args: Mapping[str, Any]) -> None:
        # The script that submits keeps the numbers of the jobs to itself; a comment marks ours.
        self._mark = f"bids_fbn-{uuid.uuid4().hex}"
        given = plugin_args.get("sbatch_args", "")
        ours = f"{given} --kill-on-invalid-dep=yes --comment={self._mark}"
        super().__init__(plugin_args={**plugin_args, "sbatch_args": ours.strip()})

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Submit the nodes of a graph and wait until SLURM has none of them any more.

        Raises
        ------
        RunError
            If SLURM does not answer.
        """
        super().run(graph, config, updatehash=updatehash)
        failures = 0
        while failures < _MOST_FAILURES:
            answer = subprocess.run(
                ["squeue", "--noheader", f"--user={os.getuid()}", "--format=%k"],
                capture_output=True,
                text=True,
                check=False,
            )
            failures = failures + 1 if answer.returncode else 0
            if not answer.returncode and self._mark not in answer.stdout.split():
                return
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        raise RunError(f"squeue does not answer: {answer.stderr.strip()}; call again later")
