"""The evaluation of models on simulated runs: table, summary, figures, and going on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from bids_fbn import evaluate
from bids_fbn.config import SignalOptions
from bids_fbn.errors import RunError
from bids_fbn.evaluation import assess as assessing
from bids_fbn.evaluation import figures
from bids_fbn.evaluation.recovery import networks_on, recovery
from bids_fbn.evaluation.simulated import Cell, combine, simulate_signals
from bids_fbn.evaluation.table import KEY, MEASURES, ROW_COLUMNS, key_of, ordered, summarise
from bids_fbn.evaluation.truth import Truth
from bids_fbn.evidence import COLUMNS
from bids_fbn.networks.dynamics import RunNetworks
from bids_fbn.networks.states import NO_STATE
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.signals import Signals
from bids_fbn.signal.windows import lay_windows

SMALL = (
    "--volumes=70",
    "--resolution=12",
    "--participants=1",
    "--n-surrogates=2",
    "--n-surrogate-maps=19",
    "--device=cpu",
    "--omp-nthreads=1",
    "--precision=fp32",
)
MODELS = ("--model", "dualregression", "pca")


def call(out: Path, *options: str) -> int:
    return evaluate.main([str(out), *options, *SMALL])


def rows_of(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "evaluation.tsv", sep="\t", keep_default_na=False, na_values="n/a")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models at two noises; read-only."""
    out = tmp_path_factory.mktemp("evaluated")
    assert call(out, *MODELS, "--noise", "0.2", "4") == 0
    return out


def test_a_row_for_each_run_and_model(evaluated: Path) -> None:
    rows = rows_of(evaluated)
    assert list(rows.columns) == list(ROW_COLUMNS)
    assert list(zip(rows["noise"], rows["model"], strict=True)) == [
        (0.2, "pca"),
        (0.2, "dualregression"),
        (4.0, "pca"),
        (4.0, "dualregression"),
    ]
    sidecar = json.loads((evaluated / "evaluation.json").read_text())
    assert set(ROW_COLUMNS) <= set(sidecar)
    assert not (evaluated / ".work").exists()
    assert {"overview.svg", "map_r.svg"} <= {p.name for p in (evaluated / "figures").iterdir()}


def test_less_noise_is_better_and_a_whole_run_has_no_states(evaluated: Path) -> None:
    rows = rows_of(evaluated).set_index(["model", "noise"])
    for model in ("pca", "dualregression"):
        for measure in ("map_r", "course_r"):
            assert rows.loc[(model, 0.2), measure] > rows.loc[(model, 4.0), measure] + 0.1
    state_measures = ["state_accuracy", "adjusted_rand", "dwell_error", "dynamics_p"]
    assert rows.loc["pca", state_measures].isna().all(axis=None)
    windows = rows.loc["dualregression"]
    assert windows["state_accuracy"].between(0, 1).all()
    assert (windows["window"] == 40).all()
    assert rows["false_dynamics"].isna().all()
    assert (rows["iou_best_of_all"] >= rows["iou_search"] - 1e-9).all()


def test_a_row_can_be_made_again_by_hand(evaluated: Path, tmp_path: Path) -> None:
    """The seed of the row gives its run, and the functions its figures."""
    from bids_fbn.config import Config
    from bids_fbn.models.compute import Compute
    from bids_fbn.signal.standard import analysis_grid

    row = rows_of(evaluated).iloc[1]
    config = Config(bids_dir=Path(), output_dir=Path()).model_copy(
        update={
            "signal": Config.model_fields["signal"].default.model_copy(
                update={"resolution": 12.0, "min_time": 0.0}
            ),
            "nulls": Config.model_fields["nulls"].default.model_copy(
                update={"n_surrogates": 2, "n_surrogate_maps": 19}
            ),
        }
    )
    grid = analysis_grid("MNI152NLin2009cAsym", 12.0)
    templates = load_templates("seitzman2018", grid)
    cell = Cell("states", 0.2, 70, 20.0, 0.0, 0.1)
    signals, truth = simulate_signals(cell, int(row["seed"]), grid, config.signal, tmp_path / "w")
    found = assessing.assess(row["model"], signals, templates, config, Compute("cpu", "fp32"))
    again = recovery(found, truth, signals, templates)
    for measure in MEASURES:
        if measure != "seconds":
            assert again[measure] == pytest.approx(row[measure], rel=1e-4, nan_ok=True), measure


def test_weights_of_other_runs_are_used_and_are_a_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bids_fbn import models
    from bids_fbn.config import ModelOptions
    from bids_fbn.models.compute import Compute
    from bids_fbn.signal.standard import analysis_grid

    grid = analysis_grid("MNI152NLin2009cAsym", 12.0)
    other, _ = simulate_signals(
        Cell("states", 0.2, 70, 20.0, 0.0, 0.1),
        99,
        grid,
        SignalOptions(min_time=0),
        tmp_path / "w",
    )
    model = models.create("pca", ModelOptions(model=("pca",)), grid)
    weights = tmp_path / "pca.safetensors"
    model.fit([other], Compute("cpu", "fp32")).save(weights)
    out = tmp_path / "out"
    options = ("--noise", "0.2", *MODELS)
    assert call(out, *options, "--weights", str(weights)) == 0
    rows = rows_of(out).set_index("model")
    assert call(tmp_path / "own", *options) == 0
    own = rows_of(tmp_path / "own").set_index("model")
    assert rows.loc["pca", "map_r"] != own.loc["pca", "map_r"]
    assert rows.loc["dualregression", "map_r"] == own.loc["dualregression", "map_r"]
    capsys.readouterr()
    assert call(out, *options) == 2
    assert "other settings (Weights)" in capsys.readouterr().err
    assert call(out, "--model", "ica", "--weights", str(weights)) == 2
    assert "weights of pca, which --model does not ask for" in capsys.readouterr().err


def test_what_is_there_is_not_computed_again(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("evaluation.tsv", "evaluation.json"):
        (out / name).write_bytes((evaluated / name).read_bytes())
    asked: list[tuple[str, str]] = []

    def no_assessment(name: str, signals: Signals, *_: Any, **__: Any) -> None:
        asked.append((name, signals.name))
        raise RunError("too short")

    monkeypatch.setattr(assessing, "assess", no_assessment)
    monkeypatch.setattr(figures, "draw_figures", lambda *_: {"overview": "<svg/>"})
    before = (out / "evaluation.tsv").read_bytes()
    assert call(out, *MODELS, "--noise", "0.2", "4") == 0
    assert asked == []
    assert (out / "evaluation.tsv").read_bytes() == before
    assert (out / "figures" / "overview.svg").read_text() == "<svg/>"

    # One model more: what fails has a row, is tried again, and takes nothing from the others.
    for _ in range(2):
        assert call(out, *MODELS, "cap", "--noise", "0.2") == 1
    assert [name for name, _ in asked] == ["cap"] * 2
    rows = rows_of(out)
    assert len(rows) == 5
    assert rows.loc[rows["model"] == "cap", list(MEASURES)].isna().all(axis=None)
    assert rows.loc[rows["model"] != "cap", "map_r"].notna().all()


def test_results_of_other_settings_are_not_mixed_in(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (evaluated / "evaluation.tsv").read_bytes()
    for setting in ("--channels", "--stride"):
        assert call(evaluated, *MODELS, "--noise", "0.2", setting, "7") == 2
        assert "other settings (Models)" in capsys.readouterr().err
    assert (evaluated / "evaluation.tsv").read_bytes() == before


def test_all_bad_options_are_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--model", "ica", "nonsense", "--noise", "-1", "--overlap", "2", "--n-surrogates=x"]
    assert evaluate.main([str(out), *options]) == 2
    assert "--n-surrogates" in capsys.readouterr().err
    assert evaluate.main([str(out), *options[:-1], "--participants=0", "--window=1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    for option in ("--model", "--noise", "--overlap", "--participants", "--window"):
        assert sum(option in line for line in lines) == 1, option
    for option in ("--window", "--epochs"):
        assert evaluate.main([str(out), "--model", "cap", option, "20"]) == 2
        assert option in capsys.readouterr().err
    assert not out.exists()


def test_an_interrupted_call_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(assessing, "assess", interrupted)
    assert call(tmp_path / "out", *MODELS, "--noise", "1") == 130
    assert "call again" in capsys.readouterr().err
    assert not (tmp_path / "out" / ".work").exists()


def test_combinations() -> None:
    cells = combine([1.0, 2.0], [100], [20.0, 40.0], [0.0], [0.1], static=True, noise_only=True)
    assert len(cells) == 2 * 2 * 2 + 2  # noise only does not depend on dwell
    assert sum(cell.dynamics == "none" for cell in cells) == 2
    assert combine([1.0, 1.0], [100], [20.0], [0.0], [0.1]) == [
        Cell("states", 1.0, 100, 20.0, 0.0, 0.1)
    ]


# -- Against the truth, on arrays whose answers are known ------------------------------------


def perfect(
    grid: Grid, dynamics: str = "states", names: Sequence[str] = ()
) -> tuple[Any, Truth, Signals, TemplateSet]:
    """A method that is right in all there is, and claims the named networks."""
    templates = load_templates("seitzman2018", grid)
    n_volumes, n_true, n_found = 60, 10, len(templates.networks)
    rng = np.random.default_rng(0)
    states = np.repeat([0, 3, 1], 20) if dynamics == "states" else np.full(60, NO_STATE)
    courses = rng.standard_normal((n_volumes, n_true)) * (dynamics != "none")
    truth = Truth(
        networks=templates.networks[:n_true],
        maps=rng.standard_normal((n_true, grid.n_voxels)),
        courses=courses,
        neural_states=states,
        bold_states=states,
        repetition_time=2.0,
        has_networks=dynamics != "none",
        is_static=dynamics == "static",
    )
    everything = np.arange(n_volumes)
    signals = Signals(
        np.zeros((n_volumes, grid.n_voxels), np.float32),
        grid,
        2.0,
        everything,
        n_volumes,
        np.ones(grid.n_voxels, bool),
    )
    maps = rng.standard_normal((n_found, grid.n_voxels))
    maps[:n_true] = truth.maps
    iou = np.zeros((n_volumes, n_found))
    iou[:, :n_true] = np.linspace(0.1, 1, n_true)
    networks = RunNetworks(maps, *[np.zeros(n_found)] * 2, *[iou] * 5, iou[0], 1)
    evidence = pd.DataFrame(
        [
            {"claim": "network", "measure": "iou_search", "network": name, "observed": 0.5}
            | {"null": null, "p_corrected": 0.01 if name in names or null == "fields" else 0.5}
            # A network is claimed where both nulls allow it.
            for null in ("fields", "noise")
            for name in templates.networks
        ]
        + [{"claim": "dynamics", "measure": "dwell_mean", "network": "all", "p_corrected": 0.04}]
        + [{"claim": "dynamics", "measure": "iou_previous", "network": "x", "p_corrected": 0.001}],
        columns=list(COLUMNS),
    )
    found_courses = np.zeros((n_volumes, n_found))
    found_courses[:, :n_true] = courses
    found_courses[:5] = np.nan
    assessment = SimpleNamespace(
        model=SimpleNamespace(window=1),
        networks=networks,
        steps=lay_windows(everything, n_volumes, 2.0, window=1),
        courses=found_courses,
        states=states,
        evidence=evidence,
        seconds=1.0,
    )
    return assessment, truth, signals, templates


def test_what_is_right_scores_full_marks(coarse_grid: Grid) -> None:
    assessment, truth, signals, templates = perfect(coarse_grid)
    on = np.flatnonzero(networks_on(truth))
    assert list(on) == [0, 1, 3]
    claimed = [truth.networks[0], truth.networks[3], truth.networks[2], templates.networks[-1]]
    assessment = perfect(coarse_grid, names=claimed)[0]
    found = recovery(assessment, truth, signals, templates)
    for measure in ("map_r", "map_r_by_name", "course_r", "state_accuracy", "adjusted_rand"):
        assert found[measure] == pytest.approx(1), measure
    for measure in ("occupancy_error", "dwell_error", "dwell_bias", "switching_bias"):
        assert found[measure] == 0, measure
    assert (found["networks_on"], found["networks_found"], found["networks_false"]) == (3, 2, 1)
    assert found["dynamics_p"] == 0.04
    assert np.isnan(found["false_dynamics"])
    assert found["iou_best_of_all"] == pytest.approx((0.1 + 0.2 + 0.4) / 3)


def test_the_same_states_by_other_names_keep_only_their_partition(coarse_grid: Grid) -> None:
    assessment, truth, signals, templates = perfect(coarse_grid)
    assessment.states = np.repeat([1, 0, 11], 20)  # 11: no simulated network
    found = recovery(assessment, truth, signals, templates)
    assert (found["state_accuracy"], found["adjusted_rand"]) == (0, 1)
    assert found["switching_bias"] == 0


def test_claims_where_there_is_nothing_are_false(coarse_grid: Grid) -> None:
    name = load_templates("seitzman2018", coarse_grid).networks[0]
    static = recovery(*perfect(coarse_grid, "static", [name]))
    assert (static["networks_on"], static["networks_found"], static["networks_false"]) == (
        10,
        1,
        0,
    )
    assert static["false_dynamics"] == 1
    assert np.isnan(static["false_network"])
    assert np.isnan(static["state_accuracy"])
    noise = recovery(*perfect(coarse_grid, "none", [name]))
    assert (noise["networks_on"], noise["networks_found"], noise["networks_false"]) == (0, 0, 1)
    assert (noise["false_network"], noise["false_dynamics"]) == (1, 1)
    assert recovery(*perfect(coarse_grid, "none"))["false_network"] == 0
    assert np.isnan(noise["course_r"])


# -- Summary and figures ---------------------------------------------------------------------


def grid_of_rows(n_participants: int = 4) -> pd.DataFrame:
    """Made-up results whose means are known."""
    rows = []
    for cell in combine(
        [1.0, 2.0], [100, 200], [20.0], [0.0], [0.1], static=True, noise_only=True
    ):
        for participant in range(1, n_participants + 1):
            for number, model in enumerate(("pca", "ica")):
                row: dict[str, Any] = dict.fromkeys(ROW_COLUMNS, np.nan)
                row |= vars(cell) | {"model": model, "participant": participant}
                row["map_r"] = 1 / cell.noise + number + participant
                if cell.dynamics != "states":
                    row["false_dynamics"] = float(participant == 1)
                rows.append(row)
    return ordered(pd.DataFrame(rows).sample(frac=1, random_state=0))


def test_means_and_intervals_over_participants() -> None:
    table = summarise(grid_of_rows())
    one = table[(table["dynamics"] == "states") & (table["model"] == "ica")]
    one = one[(one["noise"] == 2) & (one["volumes"] == 100)]
    assert list(one["measure"]) == ["map_r"]
    row = one.iloc[0]
    assert (row["n"], row["mean"]) == (4, 4.0)  # 0.5 + 1 + the mean of 1 to 4
    half = 3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2  # t of 3 degrees of freedom
    assert (row["low"], row["high"]) == pytest.approx((4 - half, 4 + half))
    rates = table[table["measure"] == "false_dynamics"]
    assert len(rates) == 2 * 2 * 2 * 2  # noise, volumes, models; static and none
    assert (rates["mean"] == 0.25).all()
    assert binom.sf(0, 4, rates["low"].iloc[0]) == pytest.approx(0.025)
    assert summarise(grid_of_rows(1))["low"].isna().any()  # of one there is no interval


def test_a_key_is_the_same_before_and_after_a_file(tmp_path: Path) -> None:
    rows = grid_of_rows()
    rows.to_csv(tmp_path / "x.tsv", sep="\t", na_rep="n/a", index=False)
    back = pd.read_csv(tmp_path / "x.tsv", sep="\t", keep_default_na=False, na_values="n/a")
    keys = [key_of(row) for row in rows.to_dict("records")]
    assert keys == [key_of(row) for row in back.to_dict("records")]
    assert len(set(keys)) == len(rows)
    assert len(keys[0]) == len(KEY)


def test_figures_show_what_the_table_has() -> None:
    summary = summarise(grid_of_rows())
    first = vars(Cell("states", 1.0, 100, 20.0, 0.0, 0.1))
    drawn = figures.draw_figures(summary, first)
    assert set(drawn) == {"map_r", "false_dynamics", "overview"}
    for name, svg in drawn.items():
        ElementTree.fromstring(svg)
        panels = svg.count('<g id="axes_')
        # states, static, none × noise, volumes; static, none × both; r, false dynamics twice
        assert panels == {"map_r": 6, "false_dynamics": 4, "overview": 3}[name]
    shifted = summary.assign(mean=summary["mean"] + (summary["volumes"] == 200))
    assert figures.draw_figures(shifted, first)["overview"] == drawn["overview"]
    assert (
        figures.draw_figures(shifted, {**first, "volumes": 200})["overview"] != drawn["overview"]
    )
