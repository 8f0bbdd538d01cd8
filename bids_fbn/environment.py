"""What libraries find in the environment, settled before they are imported.

In containers and on clusters the home folder may not be writable, threads may be many, and there
is no network: several libraries fail, hang or phone home unless they are told.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bids_fbn.errors import InputError

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


def prepare_environment(threads: int | None = None, scratch: Path | None = None) -> None:
    """Set what is not set; call before importing nipype, templateflow, matplotlib or torch.

    Parameters
    ----------
    threads : int, optional
        Of each process.
    scratch : Path, optional
        For temporary files where no folder for them can be written, as in a read-only container.
    """
    if scratch is not None:
        _ensure_temporary_folder(scratch)
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


def _ensure_temporary_folder(scratch: Path) -> None:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        folder = scratch.absolute() / "tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            raise InputError(
                f"--work-dir {scratch}: cannot be written, nor can /tmp; give a folder that can"
            ) from None
        os.environ["TMPDIR"] = str(folder)


def _home_is_writable() -> bool:
    try:
        home = Path.home()
    except RuntimeError:  # no entry for this user, as with `docker run --user`
        return False
    return home.is_dir() and os.access(home, os.W_OK)
