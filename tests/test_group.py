"""The group level, from the command line to what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command import assert_valid_bids
from scipy.stats import chi2

from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.columns import METRICS, STATE_METRICS
from bids_fbn.bids.naming import output_path
from bids_fbn.bids.writing import (
    sidecar_path,
    update_dataset_description,
    write_image,
    write_json,
    write_table,
)
from bids_fbn.cli import main
from bids_fbn.config import Config
from bids_fbn.networks.templates import TemplateSet, load_templates
from bids_fbn.signal.grid import Grid
from bids_fbn.simulation.noise import mni_head

TEMPLATES = "seitzman2018"
STATES = ("fractional_occupancy", "visits", "dwell_mean", "dwell_median")


@pytest.fixture(scope="session")
def grid() -> Grid:
    return mni_head(12.0, "MNI152NLin2009cAsym").grid


@pytest.fixture(scope="session")
def templates(grid: Grid) -> TemplateSet:
    return load_templates(TEMPLATES, grid)


class Study:
    """An input with a ``participants.tsv``, and an output dataset as the participant level's."""

    def __init__(self, folder: Path, grid: Grid, templates: TemplateSet) -> None:
        self.bids, self.out, self.work = folder / "bids", folder / "out", folder / "work"
        self.grid, self.templates, self.rng = grid, templates, np.random.default_rng(0)
        self.networks = templates.networks
        self.bids.mkdir()
        update_dataset_description(self.out, {"preprocessed": self.bids.as_uri()}, {})

    def add(
        self,
        subject: str,
        model: str = "dualregression",
        *,
        dwell: float = 10.0,
        at: float = 0.0,
        config_hash: str = "same",
        **entities: str,
    ) -> BoldRun:
        """One run; `dwell` is that in the first network, `at` is added to all IoU."""
        (self.bids / f"sub-{subject}").mkdir(exist_ok=True)
        run = BoldRun(
            {"subject": subject, "task": "rest", **entities}, Path(), 2.0, self.grid.space, 0
        )
        names, n = list(self.networks), len(self.networks)

        def draw(*shape: int) -> np.ndarray:
            return self.rng.standard_normal(shape)

        metrics = pd.DataFrame({name: 0.5 + 0.1 * draw(n) for name in METRICS})
        metrics = metrics.assign(network=names, peak_place=None, weak=0)
        metrics["iou_mean"] += at
        states = pd.DataFrame({name: 3 + 0.2 * draw(n + 1) for name in STATE_METRICS})
        states["state"] = [*names, "all"]
        states.loc[0, "dwell_mean"] = dwell + draw(1)[0]
        for name in STATE_METRICS:
            if name != "state":
                absent = states["state"] == "all" if name in STATES else states["state"] != "all"
                states.loc[absent, name] = np.nan
        counts = self.rng.integers(1, 9, (n, n)).astype(float)
        counts[1] = 0  # never visited
        total = counts.sum(axis=1, keepdims=True)
        probabilities = np.divide(counts, total, out=np.zeros((n, n)), where=total > 0)
        evidence = pd.DataFrame(
            {
                "measure": ["held_out_variance", *n * ["iou_search"]],
                "observed": 0.3 + 0.1 * draw(n + 1),
                "n_surrogates": [np.nan, *n * [20]],
                "null": [np.nan, *n * ["noise"]],
            }
        )
        tables = {
            "metrics": metrics,
            "state_metrics": states,
            "evidence": evidence,
            "transition_count": pd.DataFrame(counts, columns=names),
            "transition_probability": pd.DataFrame(probabilities, columns=names),
            "qc": pd.DataFrame({"fd_mean": [abs(draw(1)[0])], "n_kept": [100]}),
        }
        for kind, table in tables.items():
            columns = {str(name): {"Description": str(name)} for name in table}
            write_table(self.path(run, kind, model), table, columns)
        of_grid = {"Resolution": {"12": "12 mm"}, "SpatialReference": self.grid.space}
        maps = self.templates.maps + draw(*self.templates.maps.shape)
        write_image(
            self.path(run, "components", model), self.grid.image(maps.astype(np.float32)), of_grid
        )
        membership = self.templates.supports.astype(np.float32)
        write_image(self.path(run, "probseg", model), self.grid.image(membership), of_grid)
        mask = self.grid.image(np.ones(self.grid.n_voxels, np.uint8))
        write_image(self.path(run, "mask", model), mask, {**of_grid, "Type": "Brain"})
        facts = {
            "Method": model,
            "Templates": TEMPLATES,
            "Networks": names,
            "Window": 20,
            "StateThreshold": 0.3,
            "ConfigurationHash": config_hash,
            "TrainedOnThisRun": True,
            "Grid": {"Space": self.grid.space, "ResolutionMM": self.grid.resolution},
        }
        write_json(self.path(run, "decomposition", model), facts)
        return run

    def path(self, run: BoldRun, kind: str, model: str = "dualregression") -> Path:
        resolution = self.grid.resolution
        return self.out / output_path(
            kind, run, resolution=resolution, model=model, atlas=TEMPLATES
        )

    def participants(self, **columns: Any) -> None:
        table = pd.DataFrame(columns)
        table.to_csv(self.bids / "participants.tsv", sep="\t", index=False, na_rep="n/a")

    @property
    def arguments(self) -> list[str]:
        return [str(self.bids), str(self.out), "group", f"--work-dir={self.work}"]

    def call(self, *options: str) -> int:
        few = [] if "--train" in options else ["--n-permutations=99", "--n-bootstrap=100"]
        return main([*self.arguments, *few, *options])

    def table(self, desc: str, entities: str = "_task-rest") -> pd.DataFrame:
        path = self.out / "group" / f"group{entities}_desc-{desc}_metrics.tsv"
        facts = json.loads(sidecar_path(path).read_text())
        table = pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False)
        assert all("Description" in facts[column] for column in table)
        return table

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.out)): path.read_bytes()
            for path in sorted(self.out.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def study(tmp_path: Path, grid: Grid, templates: TemplateSet) -> Study:
    return Study(tmp_path, grid, templates)


@pytest.fixture
def two_groups(study: Study) -> Study:
    """Patients dwell longer in the first network; two sites, crossed with the groups."""
    people = [f"{number:02d}" for number in range(1, 13)]
    groups = ["patient" if number % 2 else "control" for number in range(12)]
    for subject, group in zip(people, groups, strict=True):
        study.add(subject, dwell=14.0 if group == "patient" else 10.0)
    study.participants(
        participant_id=[f"sub-{subject}" for subject in people],
        group=groups,
        age=np.arange(12) + 20,
        site=["a", "a", "a", "b", "b", "b"] * 2,
    )
    return study


def test_every_metric_of_everyone_is_in_one_table(study: Study) -> None:
    runs = [study.add("01", run="1"), study.add("01", run="2"), study.add("02", "ica", run="1")]
    assert study.call() == 0
    long = study.table("long", "")
    assert set(zip(long["participant_id"], long["model"].fillna("n/a"), strict=True)) == {
        ("sub-01", "dualregression"),
        ("sub-02", "ica"),
        ("sub-01", "n/a"),
        ("sub-02", "n/a"),
    }
    own = pd.read_csv(study.path(runs[1], "metrics"), sep="\t").set_index("network")
    of_run = long[(long["participant_id"] == "sub-01") & (long["run"] == 2)]
    found = of_run[of_run["measure"] == "iou_mean"].set_index("network")["value"]
    assert np.allclose(found[own.index], own["iou_mean"], rtol=1e-4)
    counts = pd.read_csv(study.path(runs[1], "transition_count"), sep="\t")
    a, b = study.networks[2], study.networks[3]
    measured = of_run[of_run["network"] == f"{a} > {b}"].set_index("measure")["value"]
    assert measured["transition_count"] == counts[b][2]
    # Nobody ever left the second: no probability, and no zero for it.
    second = of_run["network"].str.startswith(f"{study.networks[1]} >")
    assert set(of_run.loc[second, "measure"]) == {"transition_count"}
    wide = study.table("wide", "")
    assert len(wide) == 3
    assert np.allclose(wide.loc[1, f"iou_mean.{own.index[0]}"], own["iou_mean"].iloc[0], rtol=1e-4)
    assert wide["fd_mean"].notna().all()
    page = (study.out / "group" / "group_report.html").read_text()
    # p of two runs, with 20 surrogates each, cannot stand together whatever they are.
    lowest = study.table("dualregressionmaps")["p_lowest"]
    fisher = -4 * np.log(1 / 21)
    assert np.allclose(lowest, len(study.networks) * chi2.sf(fisher, 4), rtol=1e-4)
    assert "too few surrogates to tell" in page


def test_a_second_call_changes_nothing_and_the_tree_is_valid(two_groups: Study) -> None:
    options = ["--group-by", "group", "--covariates", "age", "fd_mean"]
    assert two_groups.call(*options) == 0
    before = two_groups.files()
    assert two_groups.call(*options) == 0
    assert two_groups.files() == before
    assert not list(two_groups.work.iterdir())
    assert_valid_bids(two_groups.out)


def test_the_difference_that_is_there_is_found(two_groups: Study) -> None:
    assert two_groups.call("--group-by=group", "--covariates", "age") == 0
    tests = two_groups.table("dualregressiontests")
    assert set(tests["comparison"]) == {"groupPatientVsControl", "age"}
    found = tests[tests["p_corrected"] < 0.05]
    first = two_groups.networks[0]
    dwell = found[(found["measure"] == "dwell_mean") & (found["kind"] == "groups")]
    assert list(dwell["network"]) == [first]
    assert dwell["estimate"].iloc[0] == pytest.approx(4, abs=1.5)
    assert dwell["effect_size"].iloc[0] > dwell["ci_low"].iloc[0] > 0
    transitions = two_groups.table("dualregressiontransitions")
    assert set(transitions["group"]) == {"all", "control", "patient"}
    whole = transitions[transitions["group"] == "all"].groupby("origin")["probability"].sum()
    left = whole.drop(two_groups.networks[1])
    assert np.allclose(left, 1, atol=1e-4)
    maps = two_groups.table("dualregressionmaps")
    assert (maps["iou"] > 0.25).all()
    assert (maps["n_participants"] == 12).all()
    of_maps = two_groups.table("dualregressionmaptests")
    assert len(of_maps) == 2 * len(two_groups.networks)


def test_combat_takes_out_what_the_sites_do(two_groups: Study) -> None:
    for number in range(1, 13):
        if (number - 1) % 6 >= 3:  # site b
            two_groups.add(f"{number:02d}", at=1.0, dwell=14.0 if number % 2 == 0 else 10.0)
    assert two_groups.call("--group-by=site") == 0
    plain = two_groups.table("dualregressiontests").query("measure == 'iou_mean'")
    assert (plain["p_corrected"] < 0.05).all()
    assert two_groups.call("--group-by=group", "--combat=site") == 0
    harmonised = two_groups.table("dualregressionharmonised").set_index("participant_id")
    sites = pd.read_csv(two_groups.bids / "participants.tsv", sep="\t").set_index("participant_id")
    means = harmonised.filter(like="iou_mean.").groupby(sites["site"]).mean()
    # The sites were 1 apart; what noise of 0.1 leaves between means of six.
    assert np.abs(means.loc["a"] - means.loc["b"]).max() < 0.2
    tests = two_groups.table("dualregressiontests").query("measure == 'dwell_mean'")
    assert list(tests.loc[tests["p_corrected"] < 0.05, "network"]) == [two_groups.networks[0]]
    # Fitted on one group, applied to all.
    options = ["--group-by=group", "--combat=site"]
    assert two_groups.call(*options, "--combat-fit-on=control") == 0
    assert len(two_groups.table("dualregressionharmonised")) == 12


def test_maps_that_cannot_be_read_stop_no_more_than_their_comparison(
    two_groups: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (5, 6, 10, 11, 12):  # of site b, all but one
        entities = {"subject": f"{number:02d}", "task": "rest"}
        run = BoldRun(entities, Path(), 2.0, two_groups.grid.space, 0)
        two_groups.path(run, "components").write_bytes(b"torn")
    assert two_groups.call("--group-by=group", "--combat=site") == 0
    printed = capsys.readouterr().err
    assert "one participant only at b" in printed
    assert "maps are not compared" in printed
    assert (two_groups.table("dualregressionmaps")["n_participants"] == 7).all()
    assert two_groups.table("dualregressiontests")["p"].notna().any()
    assert (two_groups.out / "group" / "group_report.html").is_file()


def test_groups_and_sites_may_be_numbers(
    two_groups: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    two_groups.participants(
        participant_id=[f"sub-{number:02d}" for number in range(1, 13)],
        group=[1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, None],
        site=[7, 7, 7, 8, 8, 8] * 2,
    )
    options = ["--group-by=group", "--combat=site", "--combat-fit-on=1"]
    assert two_groups.call(*options) == 0
    assert "nothing is compared" not in capsys.readouterr().err
    tests = two_groups.table("dualregressiontests")
    assert set(tests["comparison"]) == {"group2Vs1"}
    found = tests.query("measure == 'dwell_mean' and p_corrected < 0.05")
    assert list(found["network"]) == [two_groups.networks[0]]
    assert set(two_groups.table("dualregressiontransitions")["group"]) == {"all", "1", "2"}
    assert set(two_groups.table("sites")["site"]) == {"all", "7", "8"}
    page = (two_groups.out / "group" / "group_report.html").read_text()
    assert "2 − 1" in page
    assert '"names":["1","2","no group"]' in page


def test_runs_with_and_without_acquisition_are_of_two_kinds(study: Study) -> None:
    for subject in ("01", "02"):
        study.add(subject)
        study.add(subject, acquisition="fast")
    assert study.call() == 0
    # Of one run of either participant, not of two.
    fisher = -4 * np.log(1 / 21)
    for entities in ("_task-rest", "_task-rest_acq-fast"):
        lowest = study.table("dualregressionmaps", entities)["p_lowest"]
        assert np.allclose(lowest, len(study.networks) * chi2.sf(fisher, 4), rtol=1e-4)
    page = (study.out / "group" / "group_report.html").read_text()
    assert 'id="task-rest_acquisition-fast_desc-dualregression"' in page


def test_each_model_is_drawn_on_its_own_grid(study: Study) -> None:
    study.add("01")
    study.grid = mni_head(20.0, "MNI152NLin2009cAsym").grid
    study.templates = load_templates(TEMPLATES, study.grid)
    study.add("01", "ica")
    assert study.call() == 0
    page = (study.out / "group" / "group_report.html").read_text()
    assert page.count("<img src=") == 2 * len(study.networks)


def test_sessions_are_compared_in_the_same_participants(study: Study) -> None:
    for number in range(8):
        study.add(f"{number}", session="1")
        study.add(f"{number}", session="2", dwell=15.0)
    study.add("9", session="1")
    assert study.call() == 0
    tests = study.table("dualregressiontests").query("measure == 'dwell_mean'")
    assert set(tests["kind"]) == {"paired"}
    found = tests[tests["p_corrected"] < 0.05]
    assert list(found["network"]) == [study.networks[0]]
    assert found["estimate"].iloc[0] == pytest.approx(5, abs=1.5)
    assert found["n"].iloc[0] == 8


def test_what_is_incomplete_is_named_and_the_rest_goes_on(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    for subject in ("01", "02", "03", "04"):
        study.add(subject)
    (study.bids / "sub-05").mkdir()
    unfinished, torn = study.add("06"), study.add("07")
    study.path(unfinished, "decomposition").unlink()
    study.path(torn, "state_metrics").unlink()
    assert study.call() == 0
    printed = capsys.readouterr().err
    notes = [line for line in printed.splitlines() if line.startswith("note:")]
    for name, words in (
        ("sub-05", "without results"),
        ("sub-06_task-rest", "no finished results of dualregression"),
        ("sub-07_task-rest", "cannot be read"),
    ):
        assert len([line for line in notes if name in line and words in line]) == 1
    found = study.table("long", "").dropna(subset=["model"])["participant_id"].unique()
    assert sorted(found) == ["sub-01", "sub-02", "sub-03", "sub-04"]
    assert (study.table("dualregressionmaps")["n_participants"] == 4).all()


def test_results_of_different_settings_are_refused_with_who_differs(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    for subject in ("01", "02"):
        study.add(subject)
    study.add("03", config_hash="other")
    before = study.files()
    assert study.call() == 2
    line = capsys.readouterr().err
    assert "2 configurations" in line
    assert "other: sub-03_task-rest" in line
    assert study.files() == before
    assert study.call("--participant-label", "01", "02") == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--group-by=diagnosis"], 2, "no column 'diagnosis'; the columns are: group, age, site"),
        (["--participant-label=77"], 2, "--participant-label 77: no results"),
        (["--model=stca"], 2, "--model stca: no results"),
        (["--task-id=nback"], 2, "no results left"),
        (["--participants-file=nowhere.tsv"], 2, "--participants-file nowhere.tsv: no such file"),
        (["--combat-fit-on=control"], 2, "--combat-fit-on: needs --combat"),
        (["--combat=site", "--combat-fit-on=control"], 2, "--combat-fit-on: needs --group-by"),
        (
            ["--group-by=group", "--combat=site", "--combat-fit-on=controls"],
            2,
            "--combat-fit-on controls: no such group in group of",
        ),
        (["--group-by=fd_mean"], 2, "no column 'fd_mean'; the columns are: group, age, site"),
        (["--combat=fd_mean"], 2, "no column 'fd_mean'; the columns are: group, age, site"),
        (["--held-out=0.5"], 2, "--held-out: needs --train"),
        (["--train"], 2, "--train: name one --model of"),
        (["--n-permutations=0"], 2, "--n-permutations"),
        (["--covariates", "group"], 0, ""),
        (["--combat=group", "--group-by=group"], 0, ""),
    ],
)
def test_options_that_cannot_be_followed_are_said_in_one_line(
    two_groups: Study,
    options: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if options == ["--train"]:
        options = ["--train", "--model", "ica"]
    before = two_groups.files()
    assert two_groups.call(*options) == code
    assert (two_groups.files() == before) == (code == 2)
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("columns", "options", "note"),
    [
        (None, ["--group-by=group"], "no such file"),
        ({"group": ["x"] * 4}, ["--group-by=group"], "group"),
        ({"group": ["x", "y", "y", "y"]}, ["--group-by=group"], "too few"),
        ({"group": ["x", "x", None, "y"]}, ["--group-by=group"], "sub-03"),
        ({"age": [20, 21, None, 30]}, ["--covariates=age"], "sub-03"),
        ({"age": ["young", "old", "old", "young"]}, ["--covariates=age"], ""),
        ({"site": ["a"] * 4}, ["--combat=site"], "nothing to harmonise"),
        (
            {"site": ["a"] * 6, "age": [3, 1, 2, 5, 4, 9]},
            ["--combat=site", "--covariates=age"],
            "nothing to harmonise",
        ),
        (
            {"site": ["a", "b", "a", "b", "a", "b", None], "age": [3, 1, 2, 5, 4, 9, 7]},
            ["--combat=site", "--covariates=age"],
            "",
        ),
        ({"site": ["a", "b", "b", "b"]}, ["--combat=site"], "one participant only at a"),
    ],
)
def test_participants_files_as_they_are(
    study: Study,
    columns: dict[str, Any] | None,
    options: list[str],
    note: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    n = max(4, *(len(values) for values in (columns or {}).values()), 0)
    names = [f"sub-{number:02d}" for number in range(1, n + 1)]
    for name in names:
        study.add(name.removeprefix("sub-"))
    if columns is not None:
        study.participants(participant_id=names, **columns)
    assert study.call(*options) == 0
    printed = capsys.readouterr().err
    assert note in printed
    assert "Traceback" not in printed
    # What needs no participants.tsv is there.
    assert len(study.table("dualregressionmaps")) == len(study.networks)
    assert (study.out / "group" / "group_report.html").is_file()
    if n > 4:
        of_maps = study.table("dualregressionmaptests")
        assert (of_maps["n"] == 6).all()
        assert (of_maps["n_voxels"] > 0).all()


def test_options_of_the_group_are_no_options_of_a_participant(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    study.add("01")
    arguments = [str(study.bids), str(study.out), "participant", "--group-by=group"]
    assert main([*arguments, "--dry-run"]) == 2
    assert "have no effect on participants" in capsys.readouterr().err


def test_settings_of_a_call_can_be_given_back(study: Study, tmp_path: Path) -> None:
    for subject in ("01", "02"):
        study.add(subject)
    options = {"bids_dir": study.bids, "output_dir": study.out, "analysis_level": "group"}
    settings = tmp_path / "settings.toml"
    settings.write_text(Config.from_options(options).to_toml())
    assert study.call("--model=dualregression", f"--config-file={settings}") == 0
    assert main([*study.arguments, f"--config-file={settings}", "--train", "--model=ica"]) == 2
