"""The errors that a user can meet.

Every message is one line: what is wrong, in which file, and what to do about it.

================  ============================================================
``InputError``    the command line or the dataset is wrong; nothing was started
``RunError``      one run cannot be analysed; the others go on
``RunSkipped``    one run is left out by the user's own rule (``--min-time``)
================  ============================================================
"""

__all__ = ["FBNError", "InputError", "RunError", "RunSkipped"]


class FBNError(Exception):
    """Base of all errors that bids_fbn raises on purpose."""


class InputError(FBNError):
    """The command line or an input is wrong; nothing was started (exit code 2).

    Parameters
    ----------
    *faults : str
        One line for each fault; all are shown together.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class RunError(FBNError):
    """One run cannot be analysed (exit code 1 once all other runs are done)."""


class RunSkipped(FBNError):
    """One run is left out because of a limit that the user set."""
