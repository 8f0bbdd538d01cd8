"""A 4-D image file as blocks of volumes, the next one read while the last is worked on."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from bids_fbn.errors import RunError
from bids_fbn.signal.standard import load_image

igzip: Any
isal_zlib: Any
try:
    from isal import igzip, isal_zlib
except ImportError:  # there is no wheel for every machine
    igzip = None
    _ISAL_ERRORS: tuple[type[Exception], ...] = ()
else:
    _ISAL_ERRORS = (isal_zlib.error,)

__all__ = ["READ_ERRORS", "StoredRun", "one_line", "open_run"]

# What nibabel and the decompressors raise for files that are truncated, corrupt or something else.
READ_ERRORS: tuple[type[Exception], ...] = (
    nib.filebasedimages.ImageFileError,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    *_ISAL_ERRORS,
)
# Bytes asked of a decompressor at once: it makes a copy of what it is asked for.
_PORTION = 2**20


def one_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A run in its file.

    Parameters
    ----------
    path : Path
    shape : tuple of int
        X, Y, Z, T.
    affine : ndarray (4, 4)
        Voxel index → mm.
    slope, inter : float
        The value of what a block holds as ``s`` is ``slope × s + inter``.
    """

    path: Path
    shape: tuple[int, int, int, int]
    affine: np.ndarray
    slope: float
    inter: float
    _proxy: Any

    def blocks(self, n_volumes: int) -> Iterator[tuple[int, np.ndarray]]:
        """Successive volumes, each (start, (n, Z, Y, X)).

        Integers of up to 16 bits as they are stored, all else as scaled float32. A block may be
        written to, and is written over once the next is asked for.

        Raises
        ------
        RunError
            If the file ends early or is corrupt; a checksum in the file is looked at.
        """
        x, y, z, total = self.shape
        stored = np.empty((2, min(n_volumes, total), z, y, x), dtype=self._proxy.dtype)
        starts = range(0, total, n_volumes)

        def fill(stream: BinaryIO, i: int) -> np.ndarray:
            block = stored[i % 2, : min(n_volumes, total - starts[i])]
            _read_exactly(stream, block)
            if starts[i] + n_volumes >= total:
                stream.read(1)  # The checksum is compared where the stream ends.
            return self._native(block)

        stream: BinaryIO
        with _open_stream(self._proxy.file_like) as stream, ThreadPoolExecutor(1) as thread:
            stream.seek(self._proxy.offset)
            coming = thread.submit(fill, stream, 0)
            for i, start in enumerate(starts):
                try:
                    block = coming.result()
                except READ_ERRORS as error:
                    raise RunError(
                        f"{self.path}: cannot be read from volume {start} of {total} on, "
                        f"truncated or corrupt ({one_line(error)}); copy it again or rerun its "
                        "preprocessing"
                    ) from None
                if i + 1 < len(starts):
                    coming = thread.submit(fill, stream, i + 1)
                yield start, block

    def _native(self, block: np.ndarray) -> np.ndarray:
        if not block.dtype.isnative:
            block = block.byteswap(inplace=True).view(block.dtype.newbyteorder())
        if _is_kept_as_stored(self._proxy):
            return block
        if (self._proxy.slope, self._proxy.inter) == (1, 0):
            return block.astype(np.float32)
        return (block * np.float64(self._proxy.slope) + self._proxy.inter).astype(np.float32)


def open_run(path: Path) -> StoredRun:
    """Open a 4-D image.

    Raises
    ------
    RunError
        If the file is none.
    """
    try:
        image = load_image(path)
    except FileNotFoundError:
        raise RunError(f"{path}: does not exist") from None
    except READ_ERRORS as error:
        raise RunError(f"{path}: not a readable NIfTI image ({one_line(error)})") from None
    if len(image.shape) != 4:
        raise RunError(f"{path}: {len(image.shape)}-D, where a run of volumes is 4-D")
    proxy: Any = image.dataobj
    if proxy.dtype.kind not in "iuf":
        raise RunError(f"{path}: holds {proxy.dtype}, where a run of volumes holds real numbers")
    scaled = not _is_kept_as_stored(proxy)
    return StoredRun(
        path,
        image.shape,
        image.affine,
        slope=1.0 if scaled else float(proxy.slope),
        inter=0.0 if scaled else float(proxy.inter),
        _proxy=proxy,
    )


def _is_kept_as_stored(proxy: Any) -> bool:
    """Whether float32 holds the stored numbers exactly, and not finite means NaN or infinity."""
    if proxy.dtype.kind in "iu":
        return bool(proxy.dtype.itemsize <= 2)
    is_float32 = proxy.dtype.newbyteorder("=") == np.float32
    return is_float32 and (proxy.slope, proxy.inter) == (1, 0)


def _open_stream(path: Any) -> Any:
    if igzip is not None and str(path).lower().endswith(".gz"):
        return igzip.open(path, "rb")
    return ImageOpener(path)


def _read_exactly(stream: BinaryIO, block: np.ndarray) -> None:
    """Fill a contiguous array with what comes next."""
    flat = block.reshape(-1).view(np.uint8)
    done = 0
    while done < flat.size:
        portion = stream.read(min(_PORTION, flat.size - done))
        if not portion:
            raise EOFError(f"{flat.size - done} bytes short")
        flat[done : done + len(portion)] = np.frombuffer(portion, np.uint8)
        done += len(portion)
