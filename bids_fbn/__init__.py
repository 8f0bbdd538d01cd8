"""Functional brain networks in fMRI, and how they come and go.

The rooms, in the order in which data flow through them:

==================  =============================================================
``bids``            a BIDS dataset → the runs to analyse; file names; writing
``signal``          a run → :class:`~bids_fbn.signal.signals.Signals` (time × voxel)
``models``          signals → candidate maps (torch)
``networks``        candidate maps × templates → networks, states, transitions
``reports``         what was written → a page to look at
``workflows``       nipype nodes and edges around all of these
==================  =============================================================
"""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _installed_version
from pathlib import Path as _Path

__all__ = ["__version__"]

_version_file = _Path(__file__).resolve().parent.parent / "version"
try:
    # A checkout is newer than whatever was installed from it.
    __version__ = _version_file.read_text().strip()
except FileNotFoundError:
    try:
        __version__ = _installed_version("bids-fbn")
    except PackageNotFoundError:
        __version__ = "0+unknown"
