"""Reliability over sessions and runs, by published numbers and from an output dataset."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.naming import output_path
from bids_fbn.bids.writing import sidecar_path, write_image, write_json, write_table
from bids_fbn.reliability import fingerprint, icc_3_1, main
from bids_fbn.signal.grid import Grid

NETWORKS = ["Visual", "NA"]  # names that pandas could take for something else
# Shrout & Fleiss (1979), Table 2: six targets by four judges; Table 4 gives ICC(3,1) = .71.
RATINGS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)


def test_icc_of_the_published_example() -> None:
    icc, low, high = icc_3_1(RATINGS)
    # From their mean squares, 11.24 between targets and 1.02 for error.
    assert icc == pytest.approx((11.24 - 1.02) / (11.24 + 3 * 1.02), abs=0.005)
    # F(.975; 5, 15) = 3.576, F(.975; 15, 5) = 6.428, from tables.
    ratio = 11.2417 / 1.0194
    assert low == pytest.approx((ratio / 3.576 - 1) / (ratio / 3.576 + 3), abs=1e-3)
    assert high == pytest.approx((ratio * 6.428 - 1) / (ratio * 6.428 + 3), abs=1e-3)


def test_icc_does_not_mind_a_shift_between_sessions_nor_who_is_missing() -> None:
    shifted = RATINGS + np.array([0, 10, -5, 3])
    assert icc_3_1(shifted) == pytest.approx(icc_3_1(RATINGS))
    missing = np.vstack([RATINGS, [np.nan, 5, 5, 5]])
    assert icc_3_1(missing) == icc_3_1(RATINGS)
    assert np.isnan(icc_3_1(RATINGS[:2])).all()
    assert np.isnan(icc_3_1(np.full((5, 2), 0.1))).all()
    own = np.array([[0.1], [0.2], [0.4]])
    assert icc_3_1(own + np.array([0, 0.3])) == (1.0, 1.0, 1.0)


def test_the_interval_of_the_icc_holds_the_truth_as_often_as_it_says() -> None:
    """Two sessions of 12 participants, as much variance between as within: ICC 0.5."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1000, 12, 1)) + rng.standard_normal((1000, 12, 2))
    intervals = np.array([icc_3_1(of_study) for of_study in values])
    inside = (intervals[:, 1] <= 0.5) & (intervals[:, 2] >= 0.5)
    assert abs(inside.mean() - 0.95) < 0.021  # three standard errors


def test_fingerprint_finds_participants_by_their_own_maps() -> None:
    rng = np.random.default_rng(0)
    own = rng.standard_normal((10, 3, 40)) + rng.standard_normal((3, 40))
    first, second = (own + 0.3 * rng.standard_normal(own.shape) for _ in range(2))
    found = fingerprint(first, second, n_permutations=999)
    r = np.corrcoef(first.reshape(10, -1), second.reshape(10, -1))[:10, 10:]
    assert found["similarity_within"] == pytest.approx(np.diag(r).mean())
    assert found["similarity_between"] == pytest.approx(r[~np.eye(10, dtype=bool)].mean())
    assert found["difference"] > 0.3
    assert found["p"] == 1 / 1000
    assert found["identified_forward"] == found["identified_backward"] == 1
    # Two of ten are taken for each other.
    swapped = second[[1, 0, *range(2, 10)]]
    assert fingerprint(first, swapped)["identified_forward"] == pytest.approx(0.8)


def test_fingerprint_of_strangers_is_called_so_in_five_percent() -> None:
    rng = np.random.default_rng(1)
    p = [
        fingerprint(*rng.standard_normal((2, 6, 30)), n_permutations=199)["p"] for _ in range(300)
    ]
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) < 0.038  # three standard errors


class Study:
    """An output dataset of what the command reads: metrics, states, maps and masks."""

    def __init__(self, out: Path, grid: Grid) -> None:
        self.out, self.grid, self.rng = out, grid, np.random.default_rng(0)
        self.own: dict[str, np.ndarray] = {}

    def add(self, subject: str, model: str = "stca", window: int = 10, **entities: str) -> None:
        own = self.own.setdefault(subject, self.rng.standard_normal((2, self.grid.n_voxels)))
        run = BoldRun(
            {"subject": subject, "task": "rest", **entities}, Path(), 2.0, self.grid.space, 0
        )

        def path(kind: str) -> Path:
            name = output_path(
                kind, run, resolution=self.grid.resolution, model=model, atlas="Two"
            )
            return self.out / name

        level = own[:, 0] + 0.1 * self.rng.standard_normal(2)
        metrics = pd.DataFrame(
            {"network": NETWORKS, "iou": level, "n_candidates": 7, "peak_place": ["V1", None]}
        )
        states = pd.DataFrame(
            {
                "state": [*NETWORKS, "all"],
                "visits": [*self.rng.standard_normal(2), 3.0],
                "switching_rate": [np.nan, np.nan, level[0]],
            }
        )
        for kind, table in (("metrics", metrics), ("state_metrics", states)):
            write_table(path(kind), table, {str(name): {} for name in table})
        maps = own + 0.5 * self.rng.standard_normal(own.shape)
        maps[:, -20 * int(subject) :] = 0  # each run is cut off elsewhere
        write_image(path("components"), self.grid.image(maps.astype(np.float32)), {})
        mask = np.ones(self.grid.n_voxels, np.uint8)
        write_image(path("mask"), self.grid.image(mask), {})
        facts = {"Method": model, "Templates": "Two", "Networks": NETWORKS, "Window": window}
        grid = {"Space": self.grid.space, "ResolutionMM": self.grid.resolution}
        write_json(path("decomposition"), {**facts, "Grid": grid})

    def table(self, name: str) -> tuple[pd.DataFrame, dict]:
        path = self.out / "group" / f"group_desc-{name}_metrics.tsv"
        table = pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False)
        facts = json.loads(sidecar_path(path).read_text())
        assert all("Description" in facts[column] for column in table)
        return table, facts


@pytest.fixture
def study(tmp_path: Path, ball_grid: Grid) -> Study:
    return Study(tmp_path / "out", ball_grid)


def test_sessions_of_an_output_dataset_are_compared(study: Study) -> None:
    for subject in ("01", "02", "03", "04"):
        for session in ("a", "b", "c"):
            study.add(subject, session=session)
    study.add("05", session="a")
    assert main([str(study.out)]) == 0
    table, facts = study.table("stcareliability")
    assert facts["Compared"] == "two sessions"
    assert facts["Pairs"]["sub-02"] == [f"sub-02_ses-{s}_task-rest" for s in "ab"]
    assert "sub-05" not in facts["Pairs"]
    by = table.set_index(["metric", "network"])
    assert list(by.index) == [
        *(("iou", name) for name in NETWORKS),
        *(("n_candidates", name) for name in NETWORKS),
        *(("visits", name) for name in [*NETWORKS, "all"]),
        ("switching_rate", "all"),
    ]
    assert (by["n_participants"] == 4).all()
    assert np.isnan(by.loc[("n_candidates", "NA"), "icc"])
    assert by.loc[("iou", "NA"), "icc"] > 0.9
    written = np.array(
        [
            [
                pd.read_csv(file, sep="\t")["iou"][1]
                for file in sorted(study.out.glob(f"sub-{s}/ses-[ab]/func/*stca_metrics.tsv"))
            ]
            for s in ("01", "02", "03", "04")
        ]
    )
    row = by.loc[("iou", "NA")]
    assert (row["icc"], row["ci_low"], row["ci_high"]) == pytest.approx(icc_3_1(written), abs=1e-4)

    prints, _ = study.table("stcafingerprint")
    assert list(prints["network"]) == ["all", *NETWORKS]
    assert (prints["difference"] > 0.5).all()
    assert (prints["identified_forward"] == 1).all()
    # Only voxels that all runs cover: zeros elsewhere would be alike.
    maps = [
        nib.load(next(study.out.glob(f"sub-01/ses-{s}/func/*_components.nii.gz"))).get_fdata()
        for s in "ab"
    ]
    first, second = (study.grid.gather(m)[:, : -20 * 4].ravel() for m in maps)
    others = [
        study.grid.gather(nib.load(next(study.out.glob(f"{p}_components.nii.gz"))).get_fdata())[
            :, : -20 * 4
        ].ravel()
        for s in ("02", "03", "04")
        for p in (f"sub-{s}/ses-a/func/*", f"sub-{s}/ses-b/func/*")
    ]
    within = [np.corrcoef(first, second)[0, 1]]
    within += [np.corrcoef(others[i], others[i + 1])[0, 1] for i in (0, 2, 4)]
    assert prints["similarity_within"][0] == pytest.approx(np.mean(within), abs=1e-4)


def test_runs_are_compared_where_there_are_no_two_sessions(study: Study) -> None:
    for subject in ("01", "02", "03"):
        for run in ("10", "2", "1"):
            study.add(subject, run=run)
        study.add(subject, task="nback", run="1")
        study.add(subject, model="scaae", run="1")
        study.add(subject, model="scaae", run="2")
    assert main([str(study.out)]) == 0
    _, facts = study.table("stcareliability")
    assert facts["Compared"] == "two runs"
    assert facts["Pairs"]["sub-03"] == ["sub-03_task-rest_run-1", "sub-03_task-rest_run-2"]
    assert len(list((study.out / "group").glob("*.tsv"))) == 4


def test_too_few_participants_are_refused_in_one_line(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    for subject in ("01", "02"):
        for session in ("a", "b"):
            study.add(subject, session=session)
    # A second session of another task is no second measurement.
    study.add("03", session="a")
    study.add("03", session="b", task="nback")
    for arguments in ([], ["--model", "stca"], ["--model", "scaae"]):
        assert main([str(study.out), *arguments]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "reliability needs 3" in message
    assert not (study.out / "group").exists()
    assert main([str(study.out / "nothing")]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_results_of_other_settings_are_not_compared(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    for subject in ("01", "02", "03"):
        study.add(subject, session="a")
        study.add(subject, session="b", window=20 if subject == "02" else 10)
    assert main([str(study.out)]) == 2
    assert "sub-02_ses-b" in (message := capsys.readouterr().err)
    assert "Window" in message
