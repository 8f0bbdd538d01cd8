"""Nuisance regressors: of any fMRIPrep version, as many as asked for, and which volumes go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_fbn.config import SignalOptions
from bids_fbn.errors import RunError
from bids_fbn.signal.confounds import (
    expand_confounds,
    framewise_displacement,
    nuisance_model,
    read_confounds,
)

MOTION = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
T = 100  # volumes of 2 s: floor(2 × 200 / 128) = 3 cosines
N_COSINES = 3
# A compcor component for each of fMRIPrep's masks.
COMPCOR: dict[str, Any] = {
    f"{letter}_comp_cor_{number:02d}": {
        "Mask": mask,
        "Method": f"{letter}CompCor",
        "Retained": True,
        "VarianceExplained": 0.1,
        "CumulativeVarianceExplained": 0.1 * (number + 1),
    }
    for letter, mask, count in (("a", "combined", 4), ("c", "CSF", 2), ("w", "WM", 2))
    for number in range(count)
}


@pytest.fixture
def table() -> pd.DataFrame:
    """What is least in a file: motion, tissues and components, no expansion, no cosine."""
    rng = np.random.default_rng(0)
    names = [*MOTION, "csf", "white_matter", "global_signal", *COMPCOR]
    confounds = pd.DataFrame(rng.standard_normal((T, len(names))), columns=names)
    confounds[MOTION[3:]] *= 0.01
    return confounds


def write(folder: Path, table: pd.DataFrame, metadata: dict[str, Any] | None = None) -> list[Path]:
    path = folder / "confounds.tsv"
    table.to_csv(path, sep="\t", na_rep="n/a", index=False)
    sidecar = folder / "confounds.json"
    sidecar.write_text(json.dumps(COMPCOR if metadata is None else metadata))
    return [path, sidecar]


def with_scrubbing_columns(table: pd.DataFrame) -> pd.DataFrame:
    displacement = np.full(T, 0.1)
    dvars = np.ones(T)
    displacement[0] = dvars[0] = np.nan
    displacement[[30, 60]] = 2.0
    return table.assign(framewise_displacement=displacement, std_dvars=dvars)


def one_line(error: pytest.ExceptionInfo[RunError], path: Path) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_old_names_become_todays(tmp_path: Path) -> None:
    old = ["X", "RotZ", "CSF", "WhiteMatter", "GlobalSignal", "FramewiseDisplacement", "stdDVARS"]
    old += ["Cosine03", "NonSteadyStateOutlier00", "aCompCor05", "tCompCor02", "AROMAAggrComp11"]
    pd.DataFrame(np.zeros((3, len(old))), columns=old).to_csv(
        tmp_path / "old.tsv", sep="\t", index=False
    )
    assert list(read_confounds(tmp_path / "old.tsv", 3)) == [
        *("trans_x", "rot_z", "csf", "white_matter", "global_signal"),
        *("framewise_displacement", "std_dvars", "cosine03", "non_steady_state_outlier00"),
        *("a_comp_cor_05", "t_comp_cor_02", "aroma_motion_11"),
    ]


def test_a_file_with_old_names_gives_the_regressors_of_the_new(
    tmp_path: Path, table: pd.DataFrame
) -> None:
    options = SignalOptions(nuisance=("simple",))
    new = nuisance_model(T, 2.0, options, *write(tmp_path, table))
    old = table.rename(
        columns=dict(zip(MOTION, ["X", "Y", "Z", "RotX", "RotY", "RotZ"], strict=True))
        | {"csf": "CSF", "white_matter": "WhiteMatter"}
    )
    again = nuisance_model(T, 2.0, options, *write(tmp_path, old))
    pd.testing.assert_frame_equal(new.regressors, again.regressors)


def test_expansions_are_differences_and_squares(table: pd.DataFrame) -> None:
    expanded = expand_confounds(table, 2.0)
    x = table["trans_x"].to_numpy()
    assert np.isnan(expanded["trans_x_derivative1"][0])
    assert np.allclose(expanded["trans_x_derivative1"][1:], np.diff(x))
    assert np.allclose(expanded["trans_x_power2"], x**2)
    assert np.allclose(expanded["trans_x_derivative1_power2"][1:], np.diff(x) ** 2)


def test_what_a_file_has_is_not_computed_again(table: pd.DataFrame) -> None:
    theirs = table.assign(trans_x_power2=7.0, cosine00=1.0)
    expanded = expand_confounds(theirs, 2.0)
    assert (expanded["trans_x_power2"] == 7).all()
    assert [name for name in expanded if name.startswith("cosine")] == ["cosine00"]


def test_lacking_cosines_are_those_of_128_s(table: pd.DataFrame) -> None:
    expanded = expand_confounds(table, 2.0)
    cosines = expanded.filter(regex=r"^cosine\d+$").to_numpy()
    assert cosines.shape == (T, N_COSINES)
    phase = np.pi * (np.arange(T) + 0.5) / T
    for number, cosine in enumerate(cosines.T):
        by_hand = np.cos(phase * (number + 1))
        assert np.corrcoef(cosine, by_hand)[0, 1] == pytest.approx(1)
    # A run of less than half a period has none, and can be cleaned all the same.
    assert not expand_confounds(table[:30], 2.0).filter(regex="cosine").shape[1]


def test_framewise_displacement_is_powers() -> None:
    still = np.zeros((4, 6))
    still[1] = [1, -2, 0, 0.01, 0, -0.02]  # mm, rad; back again in volume 2
    displacement = framewise_displacement(pd.DataFrame(still, columns=MOTION))
    assert displacement is not None
    assert np.isnan(displacement[0])
    assert displacement[1:] == pytest.approx([3 + 50 * 0.03, 3 + 50 * 0.03, 0])


def test_framewise_displacement_of_the_file_comes_first(table: pd.DataFrame) -> None:
    theirs = framewise_displacement(table.assign(framewise_displacement=0.25))
    assert theirs is not None
    assert (theirs == 0.25).all()
    assert framewise_displacement(table.drop(columns="rot_x")) is None


@pytest.mark.parametrize(
    ("nuisance", "motion", "expected"),
    [
        (["simple"], "full", 24 + 2 + N_COSINES),
        (["simple"], "basic", 6 + 2 + N_COSINES),
        (["simple"], "derivatives", 12 + 2 + N_COSINES),
        (["simple"], "power2", 12 + 2 + N_COSINES),
        (["compcor"], "full", 24 + 4 + N_COSINES),
        (["motion"], "full", 24),
        (["wm_csf"], "full", 2),
        (["global_signal"], "full", 1),
        (["high_pass"], "full", N_COSINES),
        (["motion", "wm_csf", "global_signal"], "basic", 9),
        (["motion", "non_steady_state"], "basic", 6),
        (["compcor", "high_pass"], "basic", 4 + N_COSINES),
        (["high_pass", "compcor"], "basic", 4 + N_COSINES),
        (["non_steady_state"], "basic", 0),
        (["none"], "basic", 0),
    ],
)
def test_every_component_has_its_regressors(
    tmp_path: Path, table: pd.DataFrame, nuisance: list[str], motion: Any, expected: int
) -> None:
    options = SignalOptions(nuisance=tuple(nuisance), motion=motion)
    model = nuisance_model(T, 2.0, options, *write(tmp_path, table))
    assert model.regressors.shape == (T, expected)
    assert np.isfinite(model.regressors.to_numpy()).all()
    assert np.array_equal(model.kept, np.arange(T))


def test_scrubbing_takes_out_moved_volumes_and_what_is_too_short_between_them(
    tmp_path: Path, table: pd.DataFrame
) -> None:
    moved = with_scrubbing_columns(table)
    moved.loc[63, "framewise_displacement"] = 2.0
    options = SignalOptions(nuisance=("scrubbing",))
    model = nuisance_model(T, 2.0, options, *write(tmp_path, moved))
    # Tissues in full, and the two volumes between 60 and 63 are fewer than five.
    assert model.regressors.shape == (T, 24 + 8 + N_COSINES)
    assert np.flatnonzero(model.outliers["scrubbing"]).tolist() == [30, 60, 61, 62, 63]
    assert np.array_equal(model.kept, np.setdiff1d(np.arange(T), [30, 60, 61, 62, 63]))


def test_ica_aroma_regresses_the_components_that_are_motion(
    tmp_path: Path, table: pd.DataFrame
) -> None:
    rng = np.random.default_rng(1)
    aroma = table.assign(
        aroma_motion_02=rng.standard_normal(T), aroma_motion_07=rng.standard_normal(T)
    )
    options = SignalOptions(nuisance=("ica_aroma",))
    model = nuisance_model(T, 2.0, options, *write(tmp_path, aroma))
    assert model.regressors.shape == (T, 2 + 2 + N_COSINES)


@pytest.mark.parametrize(("option", "left_out"), [("auto", [0, 1]), (0, []), (4, [0, 1, 2, 3])])
def test_dummy_scans(
    tmp_path: Path, table: pd.DataFrame, option: Any, left_out: list[int]
) -> None:
    marked = table.copy()
    for number in range(2):
        marked[f"non_steady_state_outlier{number:02d}"] = (np.arange(T) == number).astype(int)
    for nuisance in ("simple", "none"):
        options = SignalOptions(nuisance=(nuisance,), dummy_scans=option)
        model = nuisance_model(T, 2.0, options, *write(tmp_path, marked))
        assert np.flatnonzero(model.outliers["dummy_scan"]).tolist() == left_out
        assert np.array_equal(model.kept, np.setdiff1d(np.arange(T), left_out))
        assert len(model.regressors) == T


def test_moved_and_empty_volumes_are_left_out(tmp_path: Path, table: pd.DataFrame) -> None:
    options = SignalOptions(nuisance=("motion",), fd_thresh=0.5)
    moved = with_scrubbing_columns(table)
    model = nuisance_model(T, 2.0, options, *write(tmp_path, moved), empty_volumes=[5, 30])
    assert np.flatnonzero(model.outliers["high_motion"]).tolist() == [30, 60]
    assert np.flatnonzero(model.outliers["empty_volume"]).tolist() == [5, 30]
    assert np.array_equal(model.kept, np.setdiff1d(np.arange(T), [5, 30, 60]))


def test_without_a_table_nothing_is_known(tmp_path: Path) -> None:
    model = nuisance_model(T, 2.0, SignalOptions(nuisance=("none",)))
    assert model.regressors.shape == (T, 0)
    assert model.displacement is None
    with pytest.raises(RunError, match="--nuisance none"):
        nuisance_model(T, 2.0, SignalOptions(nuisance=("motion",)))
    with pytest.raises(RunError, match="no confounds table"):
        nuisance_model(T, 2.0, SignalOptions(nuisance=("none",), fd_thresh=0.5))


@pytest.mark.parametrize(
    ("spoil", "nuisance", "says"),
    [
        (lambda t: t[:-1], "simple", "99 rows for the 100 volumes"),
        (lambda t: t.drop(columns="rot_y"), "motion", "rot_y"),
        (lambda t: t.drop(columns="white_matter"), "simple", "lacks the columns white_matter for"),
        (lambda t: t.drop(columns="global_signal"), "global_signal", "global_signal"),
        (lambda t: t.astype({"csf": object}).assign(csf="high"), "wm_csf", "column csf"),
        (lambda t: t, "scrubbing", "framewise_displacement"),
        (lambda t: t, "ica_aroma", "aroma"),
        (lambda t: t.assign(csf=t["csf"].where(t.index != 50)), "wm_csf", "csf"),
        (lambda t: t.assign(csf=t["csf"].where(t.index != 50, np.inf)), "wm_csf", "column csf"),
        (lambda t: t.drop(columns=[*COMPCOR]), "compcor", "compcor"),
    ],
)
def test_an_unfit_table_is_refused_in_one_line(
    tmp_path: Path, table: pd.DataFrame, spoil: Any, nuisance: str, says: str
) -> None:
    paths = write(tmp_path, spoil(table))
    with pytest.raises(RunError) as error:
        nuisance_model(T, 2.0, SignalOptions(nuisance=tuple(nuisance.split())), *paths)
    assert says in one_line(error, paths[0])


def test_a_value_missing_in_a_volume_left_out_does_no_harm(
    tmp_path: Path, table: pd.DataFrame
) -> None:
    table.loc[50, "csf"] = np.nan
    paths = write(tmp_path, table)
    options = SignalOptions(nuisance=("wm_csf",))
    model = nuisance_model(T, 2.0, options, *paths, empty_volumes=[50])
    assert len(model.kept) == T - 1


def test_displacement_is_needed_to_censor_by_it(tmp_path: Path, table: pd.DataFrame) -> None:
    paths = write(tmp_path, table.drop(columns="rot_y"))
    with pytest.raises(RunError) as error:
        nuisance_model(T, 2.0, SignalOptions(nuisance=("none",), fd_thresh=0.5), *paths)
    assert "--fd-thresh" in one_line(error, paths[0])


def test_compcor_needs_its_metadata(tmp_path: Path, table: pd.DataFrame) -> None:
    path, sidecar = write(tmp_path, table, {})
    options = SignalOptions(nuisance=("compcor",))
    for metadata in (None, sidecar):
        with pytest.raises(RunError) as error:
            nuisance_model(T, 2.0, options, path, metadata)
        one_line(error, path)
    sidecar.write_text("{")
    with pytest.raises(RunError) as error:
        nuisance_model(T, 2.0, options, path, sidecar)
    assert "not valid JSON" in one_line(error, sidecar)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00\x01\n\x00", b"a\tb\n1\t2\t3\t4\n1\n1\t\n"]
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "confounds.tsv"
    path.write_bytes(content)
    with pytest.raises(RunError) as error:
        read_confounds(path, 2)
    one_line(error, path)


@pytest.mark.realdata
def test_computed_expansions_are_fmripreps(real_data: Path) -> None:
    path = real_data / "confounds" / "nilearn_test-v21_desc-confounds_timeseries.tsv"
    theirs = read_confounds(path, 30)
    expanded = [name for name in theirs if "derivative1" in name or name.endswith("power2")]
    assert len(expanded) == 9 * 3
    ours = expand_confounds(theirs.drop(columns=expanded), 2.0)
    for name in expanded:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.realdata
def test_computed_displacement_is_fmripreps(real_data: Path) -> None:
    folder = real_data / "confounds"
    path = folder / "sub-pixar123_task-pixar_desc-confounds_regressors.tsv"
    theirs = read_confounds(path, 168)
    ours = framewise_displacement(theirs.drop(columns="framewise_displacement"))
    assert ours is not None
    np.testing.assert_allclose(ours[1:], theirs["framewise_displacement"][1:], atol=1e-4)
    reduced = folder / "sub-pixar123_task-pixar_desc-reducedConfounds_regressors.tsv"
    model = nuisance_model(168, 2.0, SignalOptions(nuisance=("simple",)), reduced)
    assert model.regressors.shape == (168, 24 + 2 + 5)  # floor(2 × 336 / 128) cosines


@pytest.mark.realdata
@pytest.mark.parametrize("nuisance", ["simple", "scrubbing", "compcor"])
def test_real_files_give_regressors(real_data: Path, nuisance: str) -> None:
    stem = real_data / "confounds" / "nilearn_test-v21_desc-confounds_timeseries"
    options = SignalOptions(nuisance=(nuisance,))
    paths = [stem.with_suffix(".tsv"), stem.with_suffix(".json")]
    model = nuisance_model(30, 2.0, options, *paths)
    assert np.isfinite(model.regressors.to_numpy()[model.kept]).all()
    assert model.outliers["dummy_scan"].sum() == 3
