"""The simulated dataset: is it BIDS, is it fMRI, and is its truth true?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from command import assert_valid_bids
from nilearn.interfaces.fmriprep import load_confounds_strategy

from bids_fbn.errors import InputError
from bids_fbn.networks.templates import load_templates
from bids_fbn.signal.confounds import cosine_drifts, power_displacement
from bids_fbn.simulate import main, simulate_dataset
from bids_fbn.simulation.cohort import GroupEffect, Site, draw_sites, group_of, site_of
from bids_fbn.simulation.confounds import dvars
from bids_fbn.simulation.networks import (
    NO_NETWORK,
    bold_courses,
    neural_activity,
    own_maps,
    second_networks,
    state_sequence,
    static_courses,
)
from bids_fbn.simulation.noise import head_motion, mni_head, nuisance_signal, saturation

MOTION = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
SMALL: dict[str, Any] = {"n_participants": 1, "n_volumes": 100, "resolution": 8.0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_dataset(tmp_path_factory.mktemp("noisy") / "data", **SMALL)


@pytest.fixture(scope="module")
def clean_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_dataset(tmp_path_factory.mktemp("clean") / "data", noise=0, **SMALL)


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def bold_in_mask(folder: Path) -> np.ndarray:
    mask = nib.load(one(folder, "*_mask.nii.gz")).get_fdata() > 0
    return nib.load(one(folder, "*_bold.nii.gz")).get_fdata()[mask].T


def truth(folder: Path) -> tuple[np.ndarray, pd.DataFrame, pd.DataFrame]:
    mask = nib.load(one(folder, "*_mask.nii.gz")).get_fdata() > 0
    maps = nib.load(one(folder, "*_components.nii.gz")).get_fdata()[mask].T
    courses = pd.read_csv(one(folder, "*_mixing.tsv"), sep="\t")
    return maps, courses, pd.read_csv(one(folder, "*_states.tsv"), sep="\t")


def digests(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob(pattern) if path.is_file()}


def test_the_tree_is_valid_bids(dataset: Path) -> None:
    assert_valid_bids(dataset)


def test_sessions_tasks_and_runs_are_valid_bids(tmp_path: Path) -> None:
    folder = simulate_dataset(
        tmp_path / "many",
        n_participants=1,
        n_sessions=2,
        n_runs=2,
        tasks=("rest", "nback"),
        n_volumes=20,
        resolution=10,
        repetition_time=0.8,
    )
    names = {path.name for path in folder.rglob("*_bold.nii.gz")}
    assert len(names) == 8
    assert (
        "sub-01_ses-02_task-nback_run-2_space-MNI152NLin2009cAsym_res-10_desc-preproc_bold.nii.gz"
        in names
    )
    assert_valid_bids(folder)


def test_header_and_sidecar_agree(dataset: Path) -> None:
    image = nib.load(one(dataset, "*_bold.nii.gz"))
    sidecar = json.loads(one(dataset, "*_bold.json").read_text())
    assert image.header.get_zooms() == pytest.approx((8, 8, 8, sidecar["RepetitionTime"]))
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 4)
    assert sidecar["TaskName"] == "rest"
    assert image.shape == (25, 30, 24, 100)
    assert np.array_equal(image.affine, nib.load(one(dataset, "*_mask.nii.gz")).affine)


def test_same_seed_same_bytes_and_participants_do_not_depend_on_their_number(
    tmp_path: Path,
) -> None:
    small = {"n_volumes": 30, "resolution": 10.0}
    first = simulate_dataset(tmp_path / "a", n_participants=1, **small)
    second = simulate_dataset(tmp_path / "b", n_participants=2, n_runs=1, **small)
    other = simulate_dataset(tmp_path / "c", n_participants=1, seed=1, **small)
    alone = digests(first, "sub-01*")
    assert len(alone) == 9
    assert alone == digests(second, "sub-01*")
    bold = one(first, "*_bold.nii.gz").name
    assert alone[bold] != digests(other, "sub-01*")[bold]
    assert not np.array_equal(
        *(nib.load(path).get_fdata() for path in sorted(second.rglob("*_bold.nii.gz")))
    )


def test_framewise_displacement_follows_from_the_motion_columns(dataset: Path) -> None:
    confounds = pd.read_csv(one(dataset, "*-confounds_timeseries.tsv"), sep="\t")
    change = confounds[MOTION].diff().abs()
    expected = change[MOTION[:3]].sum(axis=1) + 50 * change[MOTION[3:]].sum(axis=1)
    written = confounds["framewise_displacement"]
    assert np.isnan(written[0])
    assert np.allclose(written[1:], expected[1:], atol=1e-7)
    assert 0.05 < written.median() < 0.2
    outliers = confounds.filter(like="motion_outlier").to_numpy()
    assert outliers.shape[1] == (written > 0.5).sum() >= 2
    assert np.array_equal(outliers.sum(axis=1) == 1, written > 0.5)


def test_confounds_table_is_like_fmripreps(dataset: Path) -> None:
    path = one(dataset, "*-confounds_timeseries.tsv")
    assert path.read_text().splitlines()[1].count("n/a") > 10
    confounds = pd.read_csv(path, sep="\t")
    for column in (*MOTION, "csf", "white_matter", "global_signal"):
        derivative = confounds[column].diff()[1:]
        written = confounds[f"{column}_derivative1"]
        assert np.isnan(written[0])
        assert np.allclose(written[1:], derivative, atol=1e-3 * confounds[column].std())
        assert np.allclose(confounds[f"{column}_power2"], confounds[column] ** 2, rtol=1e-6)
    assert confounds.filter(like="cosine").shape[1] == 3  # 2 · 98 · 2 s / 128 s
    assert list(confounds.filter(like="non_steady").sum()) == [1, 1]
    assert (confounds.filter(like="_comp_cor_").iloc[:2] == 0).all(axis=None)


@pytest.mark.parametrize(
    ("strategy", "needs"),
    [
        ("simple", {"trans_x", "csf", "white_matter", "cosine00"}),
        ("scrubbing", {"rot_z_derivative1_power2", "csf_power2", "cosine00"}),
        ("compcor", {"a_comp_cor_00", "a_comp_cor_04", "cosine00"}),
    ],
)
def test_nilearn_loads_the_confounds(dataset: Path, strategy: str, needs: set[str]) -> None:
    confounds, kept = load_confounds_strategy(str(one(dataset, "*_bold.nii.gz")), strategy)
    assert needs <= set(confounds.columns)
    assert np.isfinite(confounds.to_numpy()).all()
    assert {0, 1}.isdisjoint(kept)
    assert (len(kept) == 98) == (strategy != "scrubbing")


def test_tissue_columns_carry_the_noise_of_tissues_not_networks(
    dataset: Path, clean_dataset: Path
) -> None:
    column = ["csf", "white_matter"]
    noisy = pd.read_csv(one(dataset, "*-confounds_timeseries.tsv"), sep="\t")[column][2:]
    clean = pd.read_csv(one(clean_dataset, "*-confounds_timeseries.tsv"), sep="\t")[column][2:]
    assert (clean.std() < 0.05 * noisy.std()).all()


def test_lstsq_of_the_clean_run_gives_the_true_courses(clean_dataset: Path) -> None:
    maps, courses, _ = truth(clean_dataset)
    series = bold_in_mask(clean_dataset)
    baseline = np.median(series, axis=0)
    found = np.linalg.lstsq(maps.T, (series / baseline - 1).T, rcond=None)[0].T
    for number, network in enumerate(courses):
        assert np.corrcoef(found[:, number], courses[network])[0, 1] > 0.99


def test_the_clean_run_is_networks_on_a_baseline(clean_dataset: Path) -> None:
    maps, courses, _ = truth(clean_dataset)
    series = bold_in_mask(clean_dataset)
    settings = json.loads((clean_dataset / "truth" / "simulation.json").read_text())
    percent = settings["PercentSignalChange"] * courses.to_numpy() @ maps
    baseline = (series / (1 + percent / 100)).mean(axis=0)
    assert np.abs(series - baseline * (1 + percent / 100)).max() < 1.1  # one step of int16
    confounds = pd.read_csv(one(clean_dataset, "*-confounds_timeseries.tsv"), sep="\t")
    assert (confounds[MOTION] == 0).all(axis=None)
    assert not [name for name in confounds if "outlier" in name]
    assert_valid_bids(clean_dataset)


def test_networks_show_in_noise(dataset: Path) -> None:
    """After the usual regression the courses of most networks come back."""
    from nilearn.signal import clean

    maps, courses, _ = truth(dataset)
    confounds, kept = load_confounds_strategy(str(one(dataset, "*_bold.nii.gz")), "simple")
    series = clean(bold_in_mask(dataset), confounds=confounds, sample_mask=kept, t_r=2)
    expected = clean(courses.to_numpy(), confounds=confounds, sample_mask=kept, t_r=2)
    found = np.linalg.lstsq(maps.T, series.T, rcond=None)[0].T
    seen = courses.iloc[kept].max().to_numpy() > 0.5
    r = [np.corrcoef(found[:, number], expected[:, number])[0, 1] for number in range(10)]
    assert seen.sum() >= 6
    assert np.median(np.array(r)[seen]) > 0.8


def test_states_follow_from_the_courses(dataset: Path) -> None:
    _, courses, states = truth(dataset)
    assert list(states["onset"]) == [2.0 * volume for volume in range(100)]
    strongest = courses.idxmax(axis=1).where(courses.max(axis=1) >= 0.3, "none")
    assert (states["bold_state"] == strongest).all()


def test_bold_lags_the_neural_state_by_some_seconds(dataset: Path) -> None:
    _, courses, states = truth(dataset)
    neural = pd.get_dummies(states["neural_state"]).reindex(columns=courses.columns, fill_value=0)
    on = neural.to_numpy(dtype=float)
    lags = range(6)
    match = [(on[: 100 - lag] * courses.to_numpy()[lag:]).sum() for lag in lags]
    assert int(np.argmax(match)) * 2.0 in (4.0, 6.0)  # SPM's response peaks at 5 s


def test_states_last_as_long_as_asked() -> None:
    rng = np.random.default_rng(0)
    states = state_sequence(rng, 1_000_000, 0.1, 10, dwell=20.0)
    ends = np.flatnonzero(np.diff(states))
    lengths = np.diff(ends) * 0.1
    assert lengths.min() >= 8.0 - 1e-9
    assert lengths.mean() == pytest.approx(20, rel=0.05)
    share = np.bincount(states + 1, minlength=11) / states.size
    assert share[NO_NETWORK + 1] == pytest.approx(1 / 11, abs=0.02)  # 0.1 of other visits
    assert share[1:] == pytest.approx(np.full(10, 1 / 11), abs=0.01)


def test_steady_activity_gives_a_course_of_one() -> None:
    courses = bold_courses(np.ones((40 * 20, 2)), 2.0, 20)
    assert courses.shape == (40, 2)
    assert courses[20:] == pytest.approx(1.0, abs=1e-6)


def test_motion_spikes_are_a_choice() -> None:
    for spikes in (True, False):
        motion = head_motion(np.random.default_rng(0), 200, 2.0, 1.0, spikes)
        assert (np.nanmax(power_displacement(motion)) > 0.5) == spikes


def test_rotation_counts_as_an_arc_on_a_sphere_of_50_mm() -> None:
    motion = np.zeros((3, 6))
    motion[1] = [0.1, -0.2, 0, 0.01, 0, 0]
    displacement = power_displacement(motion)
    assert displacement[1:] == pytest.approx([0.8, 0.8])


def test_first_volumes_are_brighter() -> None:
    excess = saturation(5, 2.0, 1.0) - 1
    assert excess[0] > 0.2
    assert 0.005 < excess[1] < 0.02
    assert excess[2] < 0.001
    assert (saturation(5, 2.0, 0.0) == 1).all()


def test_standardised_dvars_of_white_noise_is_one() -> None:
    series = 1000 + np.random.default_rng(0).standard_normal((200, 500))
    _, standardised = dvars(series)
    assert np.nanmean(standardised) == pytest.approx(1, abs=0.02)


def test_cosines_are_orthonormal_and_slow() -> None:
    basis = cosine_drifts(200, 2.0)
    assert basis.shape == (200, 6)
    assert np.allclose(basis.T @ basis, np.eye(6), atol=1e-12)
    assert np.allclose(basis.sum(axis=0), 0, atol=1e-12)


def test_a_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main([str(tmp_path), "--resolution", "10"]) == 2
    assert capsys.readouterr().err == f"{tmp_path}: is not empty; name a new folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_every_bad_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        simulate_dataset(tmp_path / "x", n_participants=0, repetition_time=0, tasks=("n-back",))
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "--participants",
        "--tasks, --space",
        "--tr",
    ]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("options", [{"noise": 0}, {"repetition_time": 0.2}])
def test_the_least_of_runs_has_finite_confounds(tmp_path: Path, options: dict[str, float]) -> None:
    folder = simulate_dataset(
        tmp_path / "x", n_participants=1, n_volumes=20, resolution=10, **options
    )
    for strategy in ("simple", "compcor"):
        confounds, _ = load_confounds_strategy(str(one(folder, "*_bold.nii.gz")), strategy)
        assert np.isfinite(confounds.to_numpy()).all()


def test_the_command_writes_the_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    arguments = ["--participants", "1", "--volumes", "20", "--tr", "3", "--resolution", "10"]
    assert main([str(out), *arguments, "--tasks", "rest"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert nib.load(one(out, "*_bold.nii.gz")).header.get_zooms()[3] == 3


def test_the_default_dataset_stays_what_it_was(tmp_path: Path) -> None:
    """Values of the first release; a level of grey is allowed to other processors' rounding."""
    folder = simulate_dataset(tmp_path / "x", n_participants=1, n_volumes=30, resolution=10.0)
    expected = [
        [13242, 11013, 12782, 12684, 10900, 10673],
        [11119, 9174, 10492, 10527, 9178, 8956],
        [11072, 9033, 10162, 10309, 9077, 9035],
        [10656, 9192, 10190, 10249, 8962, 8921],
        [10671, 9261, 10028, 9934, 9029, 8957],
    ]
    assert np.abs(bold_in_mask(folder)[::6, ::311] - expected).max() <= 1
    _, courses, states = truth(folder)
    assert courses.iloc[15, :3].to_numpy() == pytest.approx(
        [-0.120381, -0.018389, 1.125033], abs=1e-6
    )
    assert list(states) == ["onset", "neural_state", "bold_state"]
    assert (folder / "participants.tsv").read_text() == "participant_id\nsub-01\n"
    assert not (folder / "participants.json").exists()


def with_states(rng: np.random.Generator, n_volumes: int) -> np.ndarray:
    """Courses at a repetition time of 2 s."""
    states = state_sequence(rng, n_volumes * 20, 0.1, 10, 20.0)
    return bold_courses(neural_activity(rng, states, 0.1, 10), 2.0, 20)


def test_static_courses_are_like_those_with_states_but_gaussian() -> None:
    rng = np.random.default_rng(0)
    references = [with_states(rng, 400) for _ in range(20)]
    static = np.stack([static_courses(rng, references, 200) for _ in range(40)])
    moving = np.stack([with_states(rng, 200) for _ in range(40)])
    assert static.mean() == pytest.approx(moving.mean(), abs=0.01)
    variance = moving.var()
    for lag in (0, 1, 2, 5, 10, 50):
        covariance = [
            np.mean((x[:, : 200 - lag] - x.mean()) * (x[:, lag:] - x.mean()))
            for x in (static, moving)
        ]
        assert covariance[0] == pytest.approx(covariance[1], abs=0.05 * variance)
    between = [np.corrcoef(x.reshape(-1, 10).T)[np.triu_indices(10, 1)] for x in (static, moving)]
    assert between[1].mean() < -0.06
    assert between[0].mean() == pytest.approx(between[1].mean(), abs=0.01)
    skewness = [np.mean(((x - x.mean()) / x.std()) ** 3) for x in (static, moving)]
    assert skewness[1] > 2
    assert abs(skewness[0]) < 0.2
    # Stationary: no end of a run is like the start of it because of how courses are drawn.
    assert abs(static[:, :50].var() / static[:, -50:].var() - 1) < 0.15


def motion_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(one(folder, "*-confounds_timeseries.tsv"), sep="\t")[MOTION]


@pytest.mark.parametrize(
    ("kind", "state"),
    [({"dynamics": "static"}, "n/a"), ({"networks": False}, "none"), ({"overlap": 1.0}, None)],
    ids=["static", "none", "overlap"],
)
def test_whatever_the_networks_do_the_noise_is_the_same(
    tmp_path: Path, dataset: Path, kind: dict[str, Any], state: str | None
) -> None:
    folder = simulate_dataset(tmp_path / "x", **SMALL, **kind)
    assert motion_of(folder).equals(motion_of(dataset))
    maps, courses, _ = truth(folder)
    maps_before, courses_before, _ = truth(dataset)
    assert np.array_equal(maps, maps_before)
    steady = saturation(100, 2.0, 1.0)[:, None] * mni_head(8.0, "MNI152NLin2009cAsym").baseline
    expected = steady * (0.02 * (courses - courses_before).to_numpy() @ maps)
    assert np.abs(expected).max() > 100
    change = bold_in_mask(folder) - bold_in_mask(dataset)
    assert np.abs(change - expected).max() <= 1.01  # each is rounded to a level of grey
    states = pd.read_csv(one(folder, "*_states.tsv"), sep="\t", keep_default_na=False)
    if state is not None:
        assert set(states["neural_state"]) == set(states["bold_state"]) == {state}
    assert (courses == 0).all(axis=None) == (kind == {"networks": False})
    settings = json.loads((folder / "truth" / "simulation.json").read_text())["Settings"]
    assert {name: settings[name] for name in kind} == kind


def test_participants_differ_by_as_much_as_was_asked_for() -> None:
    head = mni_head(12.0, "MNI152NLin2009cAsym")
    templates = load_templates("seitzman2018", head.grid)
    drawn = {
        variation: np.stack(
            [
                own_maps(np.random.default_rng(k), templates, head.grid, variation)
                for k in range(40)
            ]
        )
        for variation in (0.0, 0.1, 0.3)
    }
    assert (drawn[0.0] == drawn[0.0][0]).all()
    inside = drawn[0.0][0] > 0.3
    for variation in (0.1, 0.3):
        # Up to the size of a map, which its peak says.
        level = drawn[variation][:, inside] / drawn[variation][:, inside].mean(axis=1)[:, None]
        spread = level.std(axis=0) / level.mean(axis=0)
        assert np.median(spread) == pytest.approx(variation, rel=0.25)


def test_networks_that_overlap_are_on_together_for_a_visit() -> None:
    rng = np.random.default_rng(0)
    states = state_sequence(rng, 500_000, 0.1, 10, 20.0)
    second = second_networks(rng, states, 10, 0.3)
    on = states != NO_NETWORK
    assert (second[on] != NO_NETWORK).mean() == pytest.approx(0.3, abs=0.03)
    assert (second[~on] == NO_NETWORK).all()
    assert (second != states)[on].all()
    assert set(np.flatnonzero(np.diff(second))) <= set(np.flatnonzero(np.diff(states)))
    shares = np.bincount(second[second != NO_NETWORK], minlength=10)
    assert shares.min() > 0.5 * shares.mean()
    activity = neural_activity(rng, states, 0.1, 10, second)
    at = np.flatnonzero(second != NO_NETWORK)
    assert activity[at, states[at]].mean() == pytest.approx(1, abs=0.05)
    assert activity[at, second[at]].mean() == pytest.approx(0.6, abs=0.05)
    assert (second_networks(rng, states, 10, 0.0) == NO_NETWORK).all()


def test_a_run_with_overlap_names_the_second_network(tmp_path: Path) -> None:
    folder = simulate_dataset(
        tmp_path / "x", n_participants=1, n_volumes=60, resolution=12, overlap=1.0
    )
    _, courses, states = truth(folder)
    assert ((states["second_state"] == "none") == (states["neural_state"] == "none")).all()
    strongest = courses.idxmax(axis=1).where(courses.max(axis=1) >= 0.3, "none")
    assert (states["bold_state"] == strongest).all()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_dataset(
        tmp_path_factory.mktemp("cohort") / "data",
        n_participants=6,
        n_volumes=40,
        resolution=12.0,
        n_sites=3,
        n_groups=2,
    )


def test_sites_and_groups_are_crossed(cohort: Path) -> None:
    table = pd.read_csv(cohort / "participants.tsv", sep="\t")
    assert set(zip(table["site"], table["group"], strict=True)) == {
        (site, group) for site in ("site1", "site2", "site3") for group in ("control", "patient")
    }
    assert list(table["group"][:2]) == ["control", "patient"]
    assert_valid_bids(cohort)


@pytest.mark.parametrize("n_sites", [1, 2, 3, 4])
def test_every_site_has_as_many_of_each_group(n_sites: int) -> None:
    people = range(4 * n_sites)
    pairs = [(site_of(i, n_sites), group_of(i, n_sites, 2)) for i in people]
    assert {pairs.count((site, group)) for site in range(n_sites) for group in (0, 1)} == {2}


def test_sites_differ_as_the_truth_says(cohort: Path) -> None:
    sites = json.loads((cohort / "truth" / "simulation.json").read_text())["Sites"]
    mask = nib.load(sorted(cohort.rglob("*_mask.nii.gz"))[0]).get_fdata() > 0
    brightness, noise = [], []
    for path in sorted(cohort.rglob("*_bold.nii.gz")):
        series = nib.load(path).get_fdata()[mask].T[4:]
        brightness.append(series.mean())
        noise.append(np.median(np.diff(series, axis=0).std(axis=0) / series.mean(axis=0)))
    site = [sites[f"site{number % 3 + 1}"] for number in range(6)]
    gain = np.array([values["Gain"] for values in site])
    assert np.ptp(gain) > 0.4
    assert brightness / gain == pytest.approx(np.full(6, np.mean(brightness / gain)), rel=0.01)
    # Of what changes from volume to volume, some is thermal and some is not.
    factor, thermal = (
        np.array([values[name] for values in site])
        for name in ("NoiseFactor", "ThermalNoiseFactor")
    )
    assert np.corrcoef(noise, factor * np.hypot(0.5 * thermal, 0.4))[0, 1] > 0.9


def test_noise_of_a_smoother_site_is_smoother() -> None:
    def neighbours(site: Site) -> float:
        head = mni_head(8.0, "MNI152NLin2009cAsym")
        parts = nuisance_signal(np.random.default_rng(0), head, 20, 2.0, 1.0, site)
        change = np.diff(head.grid.scatter(next(iter(parts))[1]), axis=-1)
        both = head.grid.mask[1:] & head.grid.mask[:-1]
        return float(np.corrcoef(change[1:][both].ravel(), change[:-1][both].ravel())[0, 1])

    assert neighbours(Site(noise_fwhm=8.4)) > neighbours(Site()) + 0.02


def test_one_site_is_nominal_and_several_are_spread_evenly() -> None:
    assert draw_sites(np.random.default_rng(0), 1) == [Site()]
    sites = draw_sites(np.random.default_rng(0), 3)
    assert sorted(site.gain for site in sites) == pytest.approx([0.8, 1, 1.25])
    assert sorted(site.noise_fwhm for site in sites) == pytest.approx([6 / 1.4, 6, 8.4])


def test_patients_dwell_longer_and_make_one_transition_more_often() -> None:
    effect = GroupEffect(0, 1.5, (3, 5), 0.5)
    visits = []
    for which in (None, effect):
        rng = np.random.default_rng(0)
        states = state_sequence(rng, 2_000_000, 0.1, 10, 20.0, which)
        start = np.concatenate([[0], np.flatnonzero(np.diff(states)) + 1])
        visits.append((states[start][:-1], np.diff(start) * 0.1))
    for network in range(10):
        control, patient = (lengths[visited == network].mean() for visited, lengths in visits)
        longer = 1.5 if network == 0 else 1.0
        assert patient / control == pytest.approx(longer, rel=0.08)
    share = [(visited[1:][visited[:-1] == 3] == 5).mean() for visited, _ in visits]
    assert share[0] == pytest.approx(0.1, abs=0.03)
    assert share[1] == pytest.approx(0.5 + 0.5 * share[0], abs=0.06)


def test_only_patients_differ_between_groups(tmp_path: Path) -> None:
    small: dict[str, Any] = {"n_participants": 2, "resolution": 12.0, "n_groups": 2}
    with_effect = simulate_dataset(tmp_path / "a", **small)
    without = simulate_dataset(tmp_path / "b", **small, group_effect=0)
    assert digests(with_effect, "sub-01*") == digests(without, "sub-01*")
    states = [digests(folder, "sub-02*_states.tsv") for folder in (with_effect, without)]
    assert states[0] != states[1]
    described = json.loads((with_effect / "truth" / "simulation.json").read_text())
    assert described["Settings"]["group_effect"] == 0.5
    assert described["GroupEffect"] == {
        "Group": "patient",
        "DwellNetwork": "DefaultMode",
        "DwellFactor": 1.5,
        "TransitionFrom": "FrontoParietal",
        "TransitionTo": "DorsalAttention",
        "TransitionShare": 0.5,
    }


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--overlap", "1.5"], "--overlap: from 0 to 1"),
        (["--groups", "3"], "--groups: 1 or 2"),
        (["--sites", "3"], "--participants: at least 3, one of each site and group"),
        (
            ["--group-effect", "0.5"],
            "--group-effect: is on states, and needs networks with states and --groups 2",
        ),
        (
            ["--groups", "2", "--dynamics", "static", "--group-effect", "0.5"],
            "--group-effect: is on states, and needs networks with states and --groups 2",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], fault: str
) -> None:
    assert main([str(tmp_path / "x"), *options]) == 2
    assert capsys.readouterr().err == fault + "\n"
