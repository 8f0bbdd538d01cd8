"""Coupling of networks with the task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter
from scipy.stats import pearsonr

from bids_fbn.errors import RunError
from bids_fbn.nulls.series import slow_to_fast, turned
from bids_fbn.nulls.task import convolved_design, read_events, task_coupling

TR = 2.0
TIMES = np.arange(200) * TR
NETWORKS = ("Visual", "Default")


def events(seed: int = 0, duration: float = 10.0) -> pd.DataFrame:
    """Two trial types at uneven times."""
    rng = np.random.default_rng(seed)
    onset = np.cumsum(rng.uniform(12, 30, 17))
    kinds = rng.permutation(["face", "house"] * 9)[:17]
    return pd.DataFrame({"onset": onset, "duration": duration, "trial_type": kinds})


def autocorrelated(rng: np.random.Generator, n: int, n_series: int = 2) -> np.ndarray:
    """AR(1) of 0.9."""
    return lfilter([1], [1, -0.9], rng.standard_normal((n + 100, n_series)), axis=0)[100:]


def test_the_design_has_a_regressor_per_trial_type_and_one_of_any() -> None:
    design = convolved_design(events(), TIMES)
    assert list(design.columns) == ["face", "house", "any_event"]
    assert np.allclose(design["face"] + design["house"], design["any_event"])
    # SPM's response is highest 5 s after an event of no duration.
    single = pd.DataFrame({"onset": [100.0], "duration": [0.0]})
    response = convolved_design(single, np.arange(0, 200, 0.5))
    assert list(response.columns) == ["all"]
    assert response["all"].argmax() * 0.5 == pytest.approx(105, abs=0.5)


def test_conditions_without_an_event_in_the_run_are_left_out() -> None:
    late = pd.DataFrame(
        {"onset": [10.0, 60.0, 1000.0], "duration": 1.0, "trial_type": ["a", "a", "b"]}
    )
    assert list(convolved_design(late, TIMES).columns) == ["a"]
    nothing = task_coupling(np.ones((200, 1)), TIMES, ["A"], late.iloc[2:], TIMES)
    assert list(nothing.columns) == ["network", "condition", "r", "null_sd", "p", "p_corrected"]
    assert nothing.empty


def test_a_coupled_network_is_found_and_another_is_not() -> None:
    rng = np.random.default_rng(0)
    design = convolved_design(events(), TIMES)
    series = autocorrelated(rng, 200)
    face = design["face"].to_numpy()
    series[:, 0] = 1.5 * face / face.std() + series[:, 0] / series[:, 0].std()
    series[20:25] = np.nan
    table = task_coupling(series, TIMES, NETWORKS, events(), TIMES, n_surrogates=400)
    table = table.set_index(["network", "condition"])
    assert list(table.index) == [(n, c) for n in NETWORKS for c in ("face", "house", "any_event")]
    used = np.isfinite(series[:, 0])
    found = table.loc[("Visual", "face")]
    assert found["r"] == pytest.approx(pearsonr(series[used, 0], face[used])[0])
    assert found["p"] == found["p_corrected"] == 1 / 401
    assert (table.loc["Default", "p_corrected"] > 0.05).all()
    assert (table["p_corrected"] >= table["p"]).all()


@pytest.mark.parametrize("n_times", [199, 200])
def test_the_null_is_that_of_phase_randomised_series(n_times: int) -> None:
    rng = np.random.default_rng(1)
    series, times = autocorrelated(rng, n_times), TIMES[:n_times]
    design = convolved_design(events(), times)
    table = task_coupling(series, times, NETWORKS, events(), times, n_surrogates=4000)
    waves = slow_to_fast(np.eye(n_times))
    direct = [
        np.corrcoef((turned(waves, rng) @ series).T, design.to_numpy().T)[:2, 2:].ravel()
        for _ in range(1000)
    ]
    assert np.allclose(table["null_sd"], np.std(direct, axis=0), rtol=0.1)
    again = task_coupling(series, times, NETWORKS, events(), times, n_surrogates=4000)
    pd.testing.assert_frame_equal(table, again)
    other = task_coupling(series, times, NETWORKS, events(), times, n_surrogates=4000, seed=1)
    assert not np.array_equal(table["p"], other["p"])


def test_autocorrelated_courses_are_called_coupled_in_five_percent() -> None:
    """A p that takes each volume for new information is wrong in three of ten."""
    ours, corrected, naive = [], [], []
    # Long blocks, as slow as the courses themselves.
    design_events = events(duration=20.0)
    face = convolved_design(design_events, TIMES)["face"]
    for seed in range(200):
        series = autocorrelated(np.random.default_rng(seed), 200)
        table = task_coupling(
            series, TIMES, NETWORKS, design_events, TIMES, n_surrogates=199, seed=seed
        )
        ours.append(table["p"][0])
        corrected.append(table["p_corrected"].min())
        naive.append(pearsonr(series[:, 0], face)[1])
    # Three standard errors of 5 % in 200.
    assert abs(np.mean(np.array(ours) <= 0.05) - 0.05) < 0.046
    assert abs(np.mean(np.array(corrected) <= 0.05) - 0.05) < 0.046
    assert np.mean(np.array(naive) <= 0.05) > 0.2


def test_windows_are_held_against_the_mean_of_the_design_in_them() -> None:
    window = 10
    design = convolved_design(events(), TIMES)["face"].to_numpy()
    averaged = np.convolve(design, np.ones(window) / window, mode="valid")
    centres = (np.arange(len(averaged)) + (window - 1) / 2) * TR
    series = averaged[:, None].copy()
    series[7] = np.nan

    def r(seconds: float) -> float:
        table = task_coupling(
            series, centres, ["A"], events(), TIMES, window=seconds, n_surrogates=10
        )
        return float(table.loc[table["condition"] == "face", "r"].item())

    assert r(window * TR) == pytest.approx(1)
    assert r(TR) < 0.9
    with pytest.raises(ValueError, match="not in the run"):
        task_coupling(series, centres + 100, ["A"], events(), TIMES)


def test_a_series_that_does_not_vary_has_no_coupling() -> None:
    series = np.column_stack([np.full(200, 0.1), autocorrelated(np.random.default_rng(0), 200, 1)])
    table = task_coupling(series, TIMES, NETWORKS, events(), TIMES, n_surrogates=50)
    of_flat = table["network"] == "Visual"
    assert table.loc[of_flat, ["r", "p", "p_corrected"]].isna().all(axis=None)
    assert table.loc[~of_flat].notna().all(axis=None)
    series[2:] = np.nan
    assert task_coupling(series, TIMES, NETWORKS, events(), TIMES).empty


def test_events_are_read(tmp_path: Path) -> None:
    path = tmp_path / "events.tsv"
    path.write_text("onset\tduration\ttrial_type\tresponse\n1.5\tn/a\tNA\tn/a\n3\t2\tn/a\tx\n")
    table = read_events(path)
    assert list(table["onset"]) == [1.5, 3.0]
    assert list(table["duration"]) == [0.0, 2.0]
    assert list(table["trial_type"]) == ["NA", None]
    assert set(convolved_design(table, TIMES)) == {"NA", "any_event"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("time\tduration\n1\t2\n", "has no column onset"),
        ("onset\ttrial_type\n1\ta\n", "has no column duration"),
        ("onset\tduration\n1\t2\nsoon\t2\n", "onset in line 3 is 'soon'"),
        ("onset\tduration\n1\tlong\n", "duration in line 2 is 'long'"),
        ("onset\tduration\n1\t2\nn/a\t2\n", "line 3 has no onset"),
        ("onset\tduration\n1\t-2\n", "line 2 has a negative duration"),
        ("", "not a readable table"),
        (b"\xff\xfe\x00\x01", "not a readable table"),
    ],
)
def test_bad_events_are_refused_in_one_line(
    tmp_path: Path, content: str | bytes, says: str
) -> None:
    path = tmp_path / "events.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=says) as error:
        read_events(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.realdata
def test_events_of_the_faces_task(real_data: Path) -> None:
    (path,) = (real_data / "task-faces-3mm").rglob("*_events.tsv")
    table = read_events(path)
    assert table["trial_type"].value_counts().to_dict() == {"F1": 26, "F2": 26, "N1": 26, "N2": 26}
    design = convolved_design(table, np.arange(351) * 2.0)
    assert list(design.columns) == ["F1", "F2", "N1", "N2", "any_event"]
