"""Where grey matter is."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_fbn.networks.tissue import grey_fraction, grey_quarters, tissue_fraction
from bids_fbn.signal.grid import Grid, grid_geometry


def test_tissue_fraction_keeps_the_volume_of_a_thin_sheet() -> None:
    """A sheet of 2 mm, thinner than the voxels, is neither lost nor doubled."""
    affine, shape = grid_geometry(2)
    sheet = np.zeros(shape, dtype=np.float32)
    sheet[20:60, 20:60, 40] = 1
    coarse_affine, coarse_shape = grid_geometry(8)
    coarse = Grid(coarse_affine, np.ones(coarse_shape, dtype=bool))
    fraction = tissue_fraction(nib.Nifti1Image(sheet, affine), coarse)
    assert fraction.sum() * 8**3 == pytest.approx(sheet.sum() * 2**3, rel=0.15)


def test_the_quarters_go_from_white_to_grey_matter(coarse_grid: Grid) -> None:
    grey, quarter = grey_fraction(coarse_grid), grey_quarters(coarse_grid)
    assert np.bincount(quarter) == pytest.approx(coarse_grid.n_voxels / 4, abs=1)
    for lower in range(3):
        assert grey[quarter == lower].max() <= grey[quarter == lower + 1].min()

    def at(place: list[float]) -> int:
        return int(quarter[np.linalg.norm(coarse_grid.coordinates - place, axis=1).argmin()])

    # Visual cortex, both sides of the calcarine sulcus; a ventricle; frontal white matter.
    assert at([0, -82, 2]) == 3
    assert at([6, 4, 20]) == 0
    assert at([26, 34, 10]) < 2
