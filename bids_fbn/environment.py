"""What libraries find in the environment, settled before they are imported.

In containers and on clusters the home folder may not be writable, threads may be many, and there
is no network: several libraries fail, hang or phone home unless they are told.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["prepare_environment"]

_QUIET = {
    "NO_ET": "1",  # nipype's and pybids' usage telemetry
    "NIPYPE_NO_ET": "1",
    "TEMPLATEFLOW_AUTOUPDATE": "false",
    "MPLBACKEND": "Agg",
}
# Folders that libraries make under the home folder at import.
_CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "NIPYPE_CONFIG_DIR": "nipype",
    "TEMPLATEFLOW_HOME": "templateflow",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
}


def prepare_environment(threads: int | None = None) -> None:
    """Set what is not set; call before importing nipype, templateflow, matplotlib or torch."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, str(threads))
    if not _home_is_writable():
        caches = Path(tempfile.gettempdir(), f"bids_fbn-caches-{os.getuid()}")
        for name, folder in _CACHES.items():
            if name not in os.environ:
                path = caches / folder
                path.mkdir(parents=True, exist_ok=True)
                os.environ[name] = str(path)


def _home_is_writable() -> bool:
    try:
        home = Path.home()
    except RuntimeError:  # no entry for this user, as with `docker run --user`
        return False
    return home.is_dir() and os.access(home, os.W_OK)
