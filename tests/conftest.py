"""What more than one test needs: simulated runs, small grids, and the folder of real data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from bids_fbn.signal.grid import Grid, grid_geometry
from bids_fbn.simulate import simulate_dataset
from bids_fbn.simulation.noise import mni_head

if TYPE_CHECKING:
    from study import Study

# Files of few tests that take minutes each: begun last, they leave one of two processes idle.
_LONG = ("test_participant.py", "test_realdata.py", "test_bad_input.py", "test_training.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture
def real_data() -> Path:
    """The folder of real fMRI that ``FBN_TEST_DATA`` names."""
    folder = os.environ.get("FBN_TEST_DATA")
    if not folder:
        pytest.skip("FBN_TEST_DATA does not name a folder of real data")
    return Path(folder).resolve()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on which tests ran before it in the same process."""
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On small arrays the threads of torch wait for each other more than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One participant at 8 mm, 100 volumes of 2 s, with noise; treat it as read-only."""
    return simulate_dataset(
        tmp_path_factory.mktemp("simulated") / "data",
        n_participants=1,
        n_volumes=100,
        resolution=8.0,
    )


@pytest.fixture(scope="session")
def coarse_grid() -> Grid:
    """The MNI brain at 8 mm, about 3,500 voxels."""
    return mni_head(8.0, "MNI152NLin2009cAsym").grid


@pytest.fixture(scope="session")
def ball_grid() -> Grid:
    """A ball of about 500 voxels of 8 mm, off the middle of a 14 × 13 × 12 box."""
    affine, _ = grid_geometry(8.0)
    x, y, z = np.indices((14, 13, 12))
    return Grid(affine, (x - 6) ** 2 + (y - 7) ** 2 + (z - 5) ** 2 <= 25)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """An output dataset that grows run by run, with four quarters of a box for networks."""
    from pages import background_of, quarters
    from study import Study

    from bids_fbn.reports import pictures

    grid, templates = quarters()
    # The real ones are downloads or take seconds to put on a grid.
    brain = background_of(grid)
    monkeypatch.setattr(pictures, "load_templates", lambda name, grid: templates)
    monkeypatch.setattr(pictures, "load_background", lambda space: brain)
    return Study(tmp_path / "out", grid, templates)
