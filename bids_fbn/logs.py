"""Messages on the terminal, from this process and from those it starts."""

from __future__ import annotations

import logging
import os
import sys

__all__ = ["configure", "configure_worker", "quieten_nipype"]

# Workers are other processes, at times on other machines: what reaches them is the environment.
_LEVEL_VARIABLE = "BIDS_FBN_LOG_LEVEL"


class _TerminalHandler(logging.Handler):
    """Writes to what is the error stream at the time of the message."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def configure(verbose: int) -> None:
    """Send our messages to the terminal: 0 for the course of the work, 1 for details."""
    os.environ[_LEVEL_VARIABLE] = str(logging.DEBUG if verbose else logging.INFO)
    configure_worker()


def configure_worker() -> None:
    """The same in a process that a :func:`configure`-d one has started."""
    logger = logging.getLogger("bids_fbn")
    logger.setLevel(int(os.environ.get(_LEVEL_VARIABLE, logging.INFO)))
    if not logger.handlers:
        handler = _TerminalHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    # Advice of libraries on what is not in use here.
    for name in ("lightning_fabric", "lightning.fabric", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


def quieten_nipype() -> None:
    """Leave nipype's own messages to ``-v``, here and in workers that a call of ours has started.

    It prints every step of every node, and the whole traceback of what our summary says in a line.
    """
    level = os.environ.get(_LEVEL_VARIABLE)
    if level is not None:
        verbose = int(level) <= logging.DEBUG
        nipype_level = logging.INFO if verbose else logging.CRITICAL
        logging.getLogger("nipype.workflow").setLevel(nipype_level)
