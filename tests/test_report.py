"""The page of a participant, from a small output dataset made of synthetic arrays."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from pages import NETWORKS, SPACE, Page, background_of, chromium, quarters, shown

from bids_fbn import evidence
from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.outputs import NetworkResults, RunWriter
from bids_fbn.bids.writing import update_dataset_description
from bids_fbn.config import MODELS, Config
from bids_fbn.networks.dynamics import RunNetworks
from bids_fbn.networks.maps import Peak, SupportRule, zscore_maps
from bids_fbn.networks.overlap import overlap_with_templates
from bids_fbn.networks.states import StateRule, summarize_states
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.reports import Problem, figures, methods_text, pictures, write_citation, write_report
from bids_fbn.reports.bibliography import cited_keys, references
from bids_fbn.reports.evidence import evidence_of
from bids_fbn.reports.interactive import courses_chart, motion_chart, overlap_chart
from bids_fbn.reports.intervals import Scale, interval_picture
from bids_fbn.reports.results import read_participant
from bids_fbn.reports.series import courses_of, motion_of, overlap_of
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.windows import Steps, lay_windows

TR = 2.0
CHANGES = ("iou_window_apart", "switching_rate", "dwell_mean")


def evidence_table(
    n_surrogates: int = 99,
    *,
    beyond: tuple[str, ...] = NETWORKS,
    against: tuple[str, ...] = (),
    changes: tuple[str, ...] = (),
    over_time: bool = True,
    task: tuple[str, ...] | None = None,
    coherence: bool = False,
) -> pd.DataFrame:
    """The table of a run in which some networks, measures of change and couplings stand.

    What stands has the least p that so many surrogates allow, the others 0.6. By the nulls in
    `against` no network stands. With `coherence` it is that which networks stand by, and their
    overlap is untested.
    """
    null = {"null_mean": 0.15, "null_low": 0.1, "null_high": 0.2, "n_surrogates": n_surrogates}

    def row(claim: str, measure: str, network: str, stands: bool, **more: Any) -> dict[str, Any]:
        p = (1 / (n_surrogates + 1) if stands else 0.6) if n_surrogates else np.nan
        tested = {"p": p, "p_corrected": p, **(null if n_surrogates else {"n_surrogates": 0})}
        observed = 0.4 if stands else 0.16
        return {
            "claim": claim,
            "measure": measure,
            "network": network,
            "observed": observed,
            **tested,
            **more,
        }

    claim = "coherence" if coherence else "iou_search"
    rows = [
        row("network", claim, name, name in beyond and null not in against, null=null)
        for null in ("turned", "noise")
        for name in NETWORKS
    ]
    if coherence:
        rows += [
            {"claim": "network", "measure": "iou_search", "network": name, "observed": 0.9}
            for name in NETWORKS
        ]
    for measure in ("iou_other_half", "reproducibility"):
        rows += [
            {"claim": "network", "measure": measure, "network": name, "observed": 0.31}
            for name in NETWORKS
        ]
    rows += [
        {"claim": "fit", "measure": measure, "network": "all", "observed": value}
        for measure, value in (("budget", 20), ("held_out_variance", 0.42))
    ]
    if over_time:
        rows += [row("dynamics", m, "all", m in changes, null="phase") for m in CHANGES]
        rows += [row("dynamics", CHANGES[0], n, False, null="phase") for n in NETWORKS]
    for measure, stand in (("r_course", task), ("r_iou", ())):
        if task is not None:
            rows += [
                row("task", measure, n, n in (stand or ()), null="phase", condition="faces")
                for n in NETWORKS
            ]
    return pd.DataFrame(rows, columns=list(evidence.COLUMNS))


@dataclass
class Study:
    """An output dataset that grows run by run."""

    out: Path
    grid: Grid
    templates: TemplateSet

    def config(self, **sections: Any) -> Config:
        """The settings that the dataset was made with."""
        return Config(bids_dir=self.out.parent / "in", output_dir=self.out, **sections)

    def add(
        self,
        run: str = "1",
        model: str = "stca",
        *,
        n_volumes: int = 60,
        window: int | None = 10,
        level: float = 0.5,
        weak: tuple[int, ...] = (),
        left_out: tuple[int, ...] = (),
        displacement: bool = True,
        session: str | None = None,
        subject: str = "01",
        weighed: pd.DataFrame | None = None,
        amplitude_sd: float | None = None,
    ) -> None:
        """Write a run: the network that is present takes turns with the others.

        Parameters
        ----------
        level : float
            IoU of the network that is present; the others lie at a third of it.
        weak : tuple of int
            Networks that never are present.
        left_out : tuple of int
            Volumes left out.
        window : int or None
            Volumes; None for a model that takes the whole run at once.
        weighed : DataFrame, optional
            The evidence; by default all networks stand and nothing changes over time.
        """
        rng = np.random.default_rng(int(run))
        n_networks, n_voxels = self.templates.maps.shape
        entities = {"subject": subject, "session": session, "task": "rest", "run": run}
        bold = BoldRun(
            {key: value for key, value in entities.items() if value},
            Path("bold.nii.gz"),
            TR,
            SPACE,
            n_volumes,
        )
        writer = RunWriter(self.out, bold, self.grid, self.templates, "bids:in:bold.nii.gz")
        kept = np.setdiff1d(np.arange(n_volumes), left_out)
        steps = (
            lay_windows(kept, n_volumes, TR, window)
            if window
            else Steps(np.array([0]), np.array([n_volumes]), len(kept), n_volumes, TR * n_volumes)
        )

        iou = level / 3 + 0.02 * rng.random((len(steps), n_networks))
        able = [p for p in range(n_networks) if p not in weak]
        chosen = np.repeat(rng.choice(able, len(steps)), 4)[: len(steps)]
        iou[np.arange(len(steps)), chosen] = level + 0.1 * rng.random(len(steps))
        iou[~steps.valid] = np.nan
        present = np.nan_to_num(iou >= 0.3).sum(axis=0)
        maps = zscore_maps(self.templates.maps + 0.6 * rng.standard_normal((n_networks, n_voxels)))
        networks = RunNetworks(
            maps=maps,
            membership=self.templates.supports.astype(float),
            present=present,
            iou=iou,
            dice=2 * iou / (1 + iou),
            r=iou,
            iou_previous=iou,
            iou_window_apart=np.full_like(iou, np.nan),
            best_of_all=np.nan_to_num(iou).max(axis=0),
            n_candidates=8 * len(steps),
            amplitude=None if amplitude_sd is None else 2 * iou,
            amplitude_sd=None if amplitude_sd is None else np.full(n_networks, amplitude_sd),
        )
        states = networks.states(StateRule())
        found = overlap_with_templates(
            maps, self.templates.maps, self.templates.supports, SupportRule()
        )
        own = np.arange(n_networks)
        courses = rng.standard_normal((len(kept), n_networks)).cumsum(axis=0)
        writer.write_networks(
            NetworkResults(
                model=model,
                networks=networks,
                steps=steps,
                states=states,
                summary=summarize_states(states, steps.valid, n_networks, steps.seconds),
                courses=courses,
                peaks=[Peak(0.0, -20.0, 10.0, 3.0, "")] * n_networks,
                final_overlap=pd.DataFrame(
                    {
                        "iou": found.iou[own, own],
                        "dice": found.dice[own, own],
                        "r": found.r[own, own],
                        "iou_fixed": found.iou[own, own],
                        "dice_fixed": found.dice[own, own],
                    },
                    index=list(NETWORKS),
                ),
                evidence=evidence_table(over_time=window is not None)
                if weighed is None
                else weighed,
            ),
            {
                "Method": model,
                "Preset": "corrected",
                "Candidates": "channels",
                "CandidatesPerStep": 8,
                "Window": window,
                "Stride": 1,
                "Parameters": 1000,
                "Recipe": (
                    {"learning_rate": 1e-3, "epochs": 4, "batch": 1, "whole_box": False}
                    if model in ("stca", "scaae")
                    else {"components": 8, "window": window}
                ),
                "Training": {
                    "Runs": [bold.prefix],
                    "Seed": 0,
                    "Device": "CPU, 2 threads",
                    "Precision": "fp32",
                    "TorchVersion": "2.6.0",
                    "LossCurve": {
                        "Step": [10.0 * step for step in range(1, 80)],
                        "Loss": list(0.8 + 0.4 * np.exp(-np.arange(79) / 15)),
                    },
                },
                "Templates": self.templates.name,
                "TemplateRule": self.templates.support_rule,
                "Networks": list(self.templates.networks),
                "SupportRule": str(SupportRule()),
                "StateThreshold": 0.3,
                "StateMeasure": "iou" if amplitude_sd is None else "amplitude",
                **({} if amplitude_sd is None else {"StateCertainty": 0.5}),
                "Grid": {
                    "Space": SPACE,
                    "ResolutionMM": self.grid.resolution,
                    "Voxels": n_voxels,
                    "MaskSource": "a ball",
                },
                "ConfigurationHash": "0123456789abcdef",
            },
            kept,
            n_volumes,
        )
        outliers = pd.DataFrame(
            {"dummy_scan": np.zeros(n_volumes), "high_motion": np.zeros(n_volumes)}, dtype=int
        )
        outliers.loc[list(left_out), "high_motion"] = 1
        moved = rng.gamma(2, 0.06, n_volumes)
        moved[list(left_out)] += 0.7
        moved[0] = np.nan
        writer.write_signal(
            pd.DataFrame({"csf": rng.standard_normal(n_volumes)}),
            outliers,
            moved if displacement else None,
            {
                "n_volumes": (n_volumes, "Volumes of the run", ""),
                "n_kept": (len(kept), "Volumes that were analysed", ""),
                "kept_seconds": (len(kept) * TR, "Time that was analysed", "s"),
                "fd_mean": (float(np.nanmean(moved)) if displacement else None, "Motion", "mm"),
                "fd_max": (float(np.nanmax(moved)) if displacement else None, "Motion", "mm"),
                "coverage": (0.98, "Share of the mask that the run covers", ""),
            },
            {},
        )
        update_dataset_description(self.out, {}, {})


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    grid, templates = quarters()
    # The real ones are downloads or take seconds to put on a grid.
    brain = background_of(grid)
    monkeypatch.setattr(pictures, "load_templates", lambda name, grid: templates)
    monkeypatch.setattr(pictures, "load_background", lambda space: brain)
    return Study(tmp_path / "out", grid, templates)


def test_page_names_everything_and_loads_only_what_lies_beside_it(study: Study) -> None:
    study.add("1", weak=(3,), left_out=(20, 21))
    study.add("1", "scaae", window=1)
    study.add("2", n_volumes=50)
    page = Page(write_report(study.out, "01", config=study.config()))

    for name in NETWORKS:
        assert name in page.text
    local = [url for url in page.loaded if not url.startswith("data:")]
    assert len(local) > 12
    for url in local:
        assert not re.match(r"[a-z]+:|//", url), url
        assert (study.out / url).is_file(), url
    assert all(page.alts)
    assert "url(" not in page.html
    assert "@import" not in page.html
    # Links go to places of the page or to a DOI; nothing is fetched by following none.
    for anchor in page.anchors:
        assert anchor.startswith("https://doi.org/") or anchor[1:] in page.ids, anchor
    assert len(page.ids) == len(set(page.ids))


def test_weak_networks_are_shown_and_marked(study: Study) -> None:
    study.add("1", weak=(1, 3))
    page = Page(write_report(study.out, "01", config=study.config()))
    weak = {name for name, classes in page.cards.items() if "weak" in classes}
    assert set(page.cards) == set(NETWORKS)
    assert weak == {"Visual", "Salience"}
    assert page.text.count("not reliably present") == 2


def test_search_is_called_a_search(study: Study) -> None:
    study.add("1")
    text = Page(write_report(study.out, "01", config=study.config())).text
    # 51 windows of 8 candidates
    assert "highest of 408 candidate maps: a search" in text
    assert "share 90.0% of their volumes" in text


def _greyed(classes: dict[str, list[str]]) -> set[str]:
    return {name for name, given in classes.items() if "chance" in given}


def test_network_that_the_null_does_not_support_is_greyed_and_not_hidden(study: Study) -> None:
    study.add("1", weighed=evidence_table(beyond=("DefaultMode", "Auditory")))
    page = Page(write_report(study.out, "01", config=study.config()))
    assert set(page.rows) == set(page.cards) == set(NETWORKS)
    assert _greyed(page.rows) == _greyed(page.cards) == {"Visual", "Salience"}
    # In the table and on the card.
    assert page.text.count("not more than chance") - page.text.count(", not more than chance") == 4
    assert "2 of 4 networks overlap with their template more than" in page.text
    assert "99 places elsewhere in this brain" in page.text
    assert "99 runs of smooth noise" in page.text
    assert "42 % of one half explained by 20 maps of the other" in page.text


def test_network_stands_only_by_both_nulls(study: Study) -> None:
    for null in ("turned", "noise"):
        study.add("1", weighed=evidence_table(against=(null,)))
        page = Page(write_report(study.out, "01", config=study.config()))
        assert _greyed(page.rows) == _greyed(page.cards) == set(NETWORKS)
        assert "None of 4 networks overlap" in page.text


def test_networks_whose_maps_are_given_stand_by_coherence(study: Study) -> None:
    for against in ((), ("turned",), ("noise",)):
        weighed = evidence_table(
            beyond=("DefaultMode", "Auditory"), against=against, coherence=True
        )
        study.add("1", weighed=weighed)
        page = Page(write_report(study.out, "01", config=study.config()))
        expected = set(NETWORKS) if against else {"Visual", "Salience"}
        assert _greyed(page.rows) == _greyed(page.cards) == expected
        stand = "None" if against else "2"
        assert f"{stand} of 4 networks are more coherent than in 99 places elsewhere" in page.text
        assert "overlap with their template more than" not in page.text


def test_change_that_a_static_run_has_too_is_greyed(study: Study) -> None:
    study.add("1")
    study.add("2", weighed=evidence_table(changes=("switching_rate",)))
    page = Page(write_report(study.out, "01", config=study.config()))
    assert "None of 3 measures of change over time differs from those of 99" in page.text
    assert "1 of 3 measures of change over time differs from those of 99" in page.text
    # Where states are shown, of the first run only.
    assert page.text.count("is no evidence of change") == 1
    assert page.html.count('class="hint unsupported"') == 2


def test_without_surrogates_nothing_stands(study: Study) -> None:
    study.add("1", weighed=evidence_table(0))
    page = Page(write_report(study.out, "01", config=study.config(nulls={"n_surrogates": 0})))
    assert _greyed(page.rows) == _greyed(page.cards) == set(NETWORKS)
    assert "No surrogates were made: nothing speaks for change over time." in page.text
    assert (
        "No surrogates were made of other places and runs of noise: nothing says what" in page.text
    )
    assert "0 of 4" in page.text


def test_change_is_not_tested_where_surrogates_say_nothing_of_it(study: Study) -> None:
    weighed = evidence_table()
    of_change = weighed["claim"] == "dynamics"
    weighed.loc[of_change, ["p", "p_corrected", "null_mean", "null_low", "null_high"]] = np.nan
    weighed.loc[of_change, "n_surrogates"] = 0
    study.add("1", weighed=weighed)
    page = Page(write_report(study.out, "01", config=study.config()))
    assert "Not tested, since the model was trained on this run" in page.text
    assert "No surrogates were made" not in page.text
    # Not 0 of them: nobody looked.
    assert "measures of change differ from a static run" not in page.text
    weighed.loc[weighed["null"] == "noise", ["p", "p_corrected", "n_surrogates"]] = (
        np.nan,
        np.nan,
        0,
    )
    study.add("1", weighed=weighed)
    page = Page(write_report(study.out, "01", config=study.config(nulls={"n_surrogates": 0})))
    assert "Not tested, since the model was trained on this run" not in page.text


def test_too_few_surrogates_are_not_taken_for_chance(study: Study) -> None:
    study.add("1", weighed=evidence_table(19, beyond=("Visual",)))
    page = Page(write_report(study.out, "01", config=study.config()))
    assert _greyed(page.rows) == set(NETWORKS)
    assert page.text.count("too few surrogates to tell") == 2
    assert "With 19 surrogates no p can fall below 0.05" in page.text


def test_results_without_evidence_say_so(study: Study) -> None:
    study.add("1", weak=(3,))
    for path in (study.out / "sub-01" / "func").glob("*evidence_metrics.*"):
        path.unlink()
    page = Page(write_report(study.out, "01", config=study.config()))
    assert "No evidence was written with these results" in page.text
    assert "No test against surrogate data is part of these results" in page.text
    assert page.rows == {}
    assert _greyed(page.cards) == set()
    assert "beyond chance" not in page.text.split("How to read")[1].split("Methods")[0]


def test_model_of_the_whole_run_has_no_states(study: Study) -> None:
    study.add("1", "ica", window=None, level=0.2, weighed=evidence_table(over_time=False))
    page = Page(write_report(study.out, "01", config=study.config(models={"model": ("ica",)})))
    assert "they say nothing of change over time" in page.text
    assert "Transitions between states" not in page.text
    assert not any(name.endswith("_overlap") for name in page.ids)
    # There is no time in which they could be present: the null alone decides.
    assert all(given == ["card"] for given in page.cards.values())
    assert "not reliably present" not in page.text
    assert "hence no states" in page.text


def test_task_couplings_that_do_not_stand_are_greyed_or_folded(study: Study) -> None:
    study.add("1", weighed=evidence_table(task=("Visual",)))
    study.add("2")
    html = write_report(study.out, "01", config=study.config()).read_text()
    first, second = re.split(r'<section class="run"', html)[1:3]
    table = first[first.index('class="plain stands task"') :].split("</table>")[0]
    rows = re.findall(r'<tr class="(\w*)">.*?</i>(\w+)</span>', table)
    assert rows == [("" if name == "Visual" else "chance", name) for name in NETWORKS]
    assert "1 of 4 courses follow the task" in re.sub(r"<[^>]+>", " ", first).replace("  ", " ")
    assert "IoU over time and expected response: nothing beyond chance</summary>" in first
    assert "Networks and the task" not in second


def test_dot_lies_where_its_value_does() -> None:
    scale = Scale(0.0, 0.5)
    low, middle, high = (scale.place(value) for value in (0.0, 0.25, 0.5))
    assert middle == pytest.approx((low + high) / 2)
    picture = interval_picture(scale, 0.25, [(0.0, 0.1, 0.2)], "#123456", "a < b")
    assert f'cx="{middle:.1f}"' in picture
    assert "a &lt; b" in picture
    # Beyond the scale, and where there is no null.
    assert "<polygon" in interval_picture(scale, 0.9, [(0.0, 0.1, 0.2)], None, "")
    assert "<rect" not in interval_picture(scale, 0.2, [(np.nan,) * 3], None, "")


def test_step_before_counts_once_where_steps_are_volumes(study: Study) -> None:
    table = evidence_table()
    twice = table[table["measure"] == "iou_window_apart"].assign(measure="iou_previous")
    table = pd.concat([table, twice], ignore_index=True)
    study.add("1", "cap", window=1, weighed=table)
    study.add("2", weighed=table)
    first, second = read_participant(study.out, "01")
    counts = [len(found.whole) for run in (first, second) if (found := evidence_of(run.models[0]))]
    assert counts == [3, 4]


def test_problems_stand_at_the_top_with_their_crash_file(study: Study) -> None:
    study.add("1")
    crash = study.out / "sub-01" / "log" / "crash-1.txt"
    crash.parent.mkdir(parents=True)
    crash.write_text("trace")
    page = Page(
        write_report(
            study.out,
            "01",
            config=study.config(),
            problems=[Problem("sub-01_task-rest_run-2", "cut off <at> volume 3", crash)],
            skipped=[Problem("sub-01_task-rest_run-3", "40 s left")],
        )
    )
    assert page.ids.index("problems") < page.ids.index("summary")
    assert "cut off <at> volume 3" in page.text
    assert "sub-01/log/crash-1.txt" in page.anchors
    assert "40 s left" in page.text


def test_participant_of_whom_every_run_failed_has_a_page(study: Study) -> None:
    problem = Problem("sub-01_task-rest_run-1", "no signal in any volume")
    page = Page(write_report(study.out, "01", config=study.config(), problems=[problem]))
    assert "No run of this participant has results" in page.text
    assert "no signal in any volume" in page.text


def test_run_without_any_state(study: Study) -> None:
    study.add("1", level=0.2)
    page = Page(write_report(study.out, "01", config=study.config()))
    assert "No time step reached the threshold 0.3" in page.text
    assert 'class="transitions"' not in page.html
    (run,) = read_participant(study.out, "01")
    notes = overlap_chart(overlap_of(run.models[0]))["layout"]["annotations"]
    assert any("no time step reached the threshold 0.3" in note["text"] for note in notes)


def test_states_by_amplitude_are_shown_as_such(study: Study) -> None:
    study.add("1", "dualregression", amplitude_sd=0.01, left_out=(30,))
    page = Page(write_report(study.out, "01", config=study.config()))
    assert "Amplitudes over time, and states" in page.text
    assert "have a state (largest amplitude, certain by ≥ 0.5)" in page.text
    assert "methods that are told of their networks (dualregression) it is" in page.text
    (run,) = read_participant(study.out, "01")
    (results,) = run.models
    chart = overlap_chart(overlap_of(results))
    assert "amplitude" in chart["layout"]["yaxis"]["title"]["text"]
    assert chart["layout"]["shapes"] == []
    drawn = np.array([trace["y"] for trace in chart["data"][: len(NETWORKS)]]).T
    amplitude = results.table("amplitude")
    written = amplitude.data[list(NETWORKS)].to_numpy()
    np.testing.assert_array_equal(drawn, written)
    assert amplitude.facts["StandardDeviationOfError"] == dict.fromkeys(NETWORKS, 0.01)
    states = results.states.data
    certain = states["certainty"] >= 0.5
    assert certain.any()
    assert [NETWORKS[p] for p in written[certain].argmax(axis=1)] == list(states["state"][certain])

    # The same model by overlap, later, leaves no table of before.
    study.add("1", "dualregression")
    assert not results.path("amplitude").exists()
    assert "certainty" not in read_participant(study.out, "01")[0].models[0].states.data


def test_a_run_in_which_no_network_is_surely_the_largest(study: Study) -> None:
    study.add("1", "dualregression", amplitude_sd=5.0)
    page = Page(write_report(study.out, "01", config=study.config()))
    assert "In no time step is it certain which network is the largest" in page.text


def test_run_without_a_single_window(study: Study) -> None:
    # A gap of two volumes in every window of ten.
    study.add("1", left_out=tuple(v for v in range(60) if v % 6 in (4, 5)), displacement=False)
    page = Page(write_report(study.out, "01", config=study.config()))
    assert "0 of 51 steps have a window" in page.text
    assert "Framewise displacement is not known" in page.text
    assert "n/a" in page.text
    assert "NaN" not in page.html.split("<script>")[0]


def test_run_that_was_cleaned_but_has_no_model(study: Study) -> None:
    study.add("1")
    study.add("2")
    for path in (study.out / "sub-01" / "func").glob("*run-2_desc-stca_decomposition.json"):
        path.unlink()
    page = Page(write_report(study.out, "01", config=study.config()))
    assert "no model has results for this run" in page.text
    assert "task-rest run-2" in page.text


def test_sessions_and_runs_in_their_order(study: Study) -> None:
    for run in ("10", "2"):
        study.add(run, session="a")
    runs = read_participant(study.out, "01")
    assert [run.title for run in runs] == ["ses-a task-rest run-2", "ses-a task-rest run-10"]
    assert all(path.is_file() for run in runs for m in run.models for path in [m.path("iou")])


def test_plotly_is_written_once_for_all_pages(study: Study) -> None:
    study.add("1")
    study.add("1", subject="02")
    write_report(study.out, "01", config=study.config())
    before = (study.out / "figures" / "plotly.min.js").stat().st_mtime_ns
    write_report(study.out, "02", config=study.config())
    copies = list(study.out.rglob("plotly*.js"))
    assert copies == [study.out / "figures" / "plotly.min.js"]
    assert copies[0].stat().st_mtime_ns == before


def test_templates_that_are_gone(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    other = TemplateSet(
        "Others",
        NETWORKS,
        study.templates.maps,
        study.templates.supports,
        "",
        "",
        "",
    )
    study.add("1")
    monkeypatch.setattr(pictures, "load_templates", lambda name, grid: other)
    page = Page(write_report(study.out, "01", config=study.config()))
    assert "Quarters is not at hand any more" in page.text
    assert set(page.cards) == set(NETWORKS)


def test_charts_are_what_plotly_accepts(study: Study) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    study.add("1", weak=(2,), left_out=(7, 8, 30))
    (run,) = read_participant(study.out, "01")
    motion = motion_of(run)
    assert motion is not None
    for chart in (
        overlap_chart(overlap_of(run.models[0])),
        courses_chart(courses_of(run.models[0])),
        motion_chart(motion, 0.5),
    ):
        graph_objects.Figure(chart)  # raises for a property that plotly does not have


def test_gaps_and_visits_follow_the_tables(study: Study) -> None:
    study.add("1", left_out=(30, 31, 32))
    (run,) = read_participant(study.out, "01")
    (results,) = run.models
    overlap = overlap_of(results)
    states = results.states.data["state"]
    # Every step is in one stretch, and visits are those of the metrics table.
    assert sum(v.steps for v in (*overlap.visits, *overlap.missing)) == len(states)
    assert sum(v.steps for v in overlap.missing) == np.isnan(overlap.presence[:, 0]).sum() > 0
    counted = results.state_metrics.data.set_index("state")["visits"]
    for p, name in enumerate(NETWORKS):
        assert sum(v.state == p for v in overlap.visits) == counted[name]
    # The ribbon covers time without a gap or an overlap.
    edges = sorted((v.start, v.end) for v in (*overlap.visits, *overlap.missing))
    assert all(a[1] == pytest.approx(b[0]) for a, b in itertools.pairwise(edges))


def test_picture_is_coloured_where_the_map_is_high(study: Study) -> None:
    brain = pictures.load_background(SPACE)
    template, support = study.templates.maps[3], study.templates.supports[3]

    def colourful(weak: bool) -> float:
        picture = figures.draw_network(template, template, support, study.grid, brain, weak)
        pixels = imread(BytesIO(picture.png))[..., :3]
        # Warm colours alone: the blue outline is drawn for weak networks too.
        return float((pixels[..., 0] - pixels[..., 2] > 0.4).mean())

    assert colourful(weak=False) > 0.05
    assert colourful(weak=True) == 0
    # The last quarter is right (x > 0) and in front (y > −18).
    x, y, _ = figures.choose_cuts(support, study.grid)
    assert x > 0
    assert y > -18


def test_every_citation_has_a_reference(study: Study) -> None:
    for nuisance in (
        ("simple",),
        ("none",),
        ("scrubbing",),
        ("motion", "wm_csf", "high_pass", "compcor"),
    ):
        for templates in ("smith2009", "seitzman2018", "my.nii.gz"):
            text = methods_text(
                study.config(
                    signal={"nuisance": nuisance, "lower_bpf": 0.01, "dummy_scans": 0},
                    networks={"templates": templates},
                    models={"model": ("stca", "scaae")},
                )
            )
            entries = references(cited_keys(text))
            assert {"Liu2023stca", "Liu2024scaae"} <= {entry.key for entry in entries}
            assert ("Smith2009" in cited_keys(text)) == (templates == "smith2009")


def test_methods_say_what_was_done(study: Study) -> None:
    study.add("1")
    (run,) = read_participant(study.out, "01")
    config = study.config(signal={"smoothing": 0, "fd_thresh": 0.4, "nuisance": ("none",)})
    text = methods_text(config, [run.models[0].facts])
    assert "without smoothing" in text
    assert "No nuisance regression" in text
    assert "over 0.4 mm" in text
    assert "window of 10 volumes" in text
    assert "trained on 1 run, the same to which it was then applied" in text
    assert "4 networks of Quarters" in text
    assert "no evidence by itself" in text


def test_every_model_has_words_and_references(study: Study) -> None:
    for surrogates in ("phase", "var"):
        text = methods_text(
            study.config(models={"model": MODELS}, nulls={"surrogates": surrogates})
        )
        assert "gave" not in text
        assert "{" not in text
        entries = {entry.key for entry in references(cited_keys(text))}
        assert {"Nickerson2017", "Liu2013cap", "Vidaurre2017", "Beckmann2004"} <= entries
        assert {"Liegeois2017", "Phipson2010", "Westfall1993"} <= entries


def test_methods_speak_only_of_the_nulls_that_were_used(study: Study) -> None:
    study.add("1", "ica", window=None)
    (run,) = read_participant(study.out, "01")
    config = study.config(
        models={"model": ("ica",)}, nulls={"n_surrogate_maps": 1234}, compute={"random_seed": 7}
    )
    text = methods_text(config, [run.models[0].facts], {"network": 1234, "fit": 0})
    assert "1,234 sets of the templates turned, all alike, about the middle" in text
    assert "39 runs of Gaussian noise" in text
    assert "start from the random seed 7" in text
    for absent in ("haemodynamic", "static", "Prichard1994"):
        assert absent not in text
    assert "have their networks from the start" not in text
    with_task = methods_text(config, [run.models[0].facts], {"network": 9, "task": 2000})
    assert "2,000 series with random phases" in with_task


def test_methods_say_what_networks_stand_by(study: Study) -> None:
    words = {
        "search": "given a budget of 20 maps",
        "coherence": "Evidence of a network is instead its coherence",
        "by name": "held against its template",
        "random maps": "sets of Gaussian random fields",
        "turned": "turned, all alike, about the middle of the brain",
        "not by name": "For stcnn, turned templates have no meaning",
        "none by name": "For stcnn, random fields have no meaning",
    }
    turned, fields = {"surrogate_maps": "turned"}, {"surrogate_maps": "fields"}
    for models, nulls, said in (
        (("ica",), turned, {"search", "turned"}),
        (("ica",), fields, {"search", "random maps"}),
        (("udr",), turned, {"coherence", "turned"}),
        (("udr",), fields, {"coherence", "turned"}),
        (("stcnn",), turned, {"by name"}),
        (("ica", "udr", "stcnn"), turned, set(words) - {"random maps", "none by name"}),
        (("ica", "udr", "stcnn"), fields, set(words) - {"not by name"}),
    ):
        text = methods_text(study.config(models={"model": models}, nulls=nulls))
        assert {name for name, part in words.items() if part in text} == said, (models, nulls)


def test_citation_files(study: Study) -> None:
    markdown, page, bibliography = write_citation(study.out, study.config())
    text = markdown.read_text()
    for key in cited_keys(text):
        assert f"{{{key}," in bibliography.read_text()
        assert f'id="ref-{key}"' in page.read_text()
    assert "@" not in re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@dataclass
class Opened:
    """A page in a browser."""

    page: Any

    def visible(self, chart: str) -> dict[str, Any]:
        """Line → whether it is shown."""
        script = (
            "id => Object.fromEntries(document.getElementById(id).querySelector('.plot').data"
            ".filter(t => t.meta).map(t => [t.legendgroup, t.visible ?? true]))"
        )
        shown: dict[str, Any] = self.page.evaluate(script, chart)
        return shown

    def span(self, chart: str, axis: str = "xaxis") -> list[float]:
        """Time that a chart shows."""
        script = (
            "([id, axis]) => document.getElementById(id).querySelector('.plot').layout[axis].range"
        )
        shown: list[float] = self.page.evaluate(script, [chart, axis])
        return shown

    def ready(self, chart: str) -> None:
        self.page.locator(f"[id='{chart}']").scroll_into_view_if_needed()
        self.page.wait_for_selector(f"[id='{chart}'][data-ready]")


@pytest.fixture
def opened(browser: Any, study: Study) -> Iterator[Opened]:
    study.add("1", weak=(3,), left_out=(20, 21))
    path = write_report(study.out, "01", config=study.config())
    with shown(browser, path) as page:
        yield Opened(page)


IOU = "sub-01_task-rest_run-1_desc-stca_overlap"
COURSES = "sub-01_task-rest_run-1_desc-stca_courses"
MOTION = "sub-01_task-rest_run-1_motion"


def test_browser_legend_switches_networks_off(opened: Opened) -> None:
    opened.ready(IOU)
    assert set(opened.visible(IOU).values()) == {True}
    for name in ("DefaultMode", "Auditory"):
        toggle = opened.page.locator(f"[id='{IOU}'] g.traces", has_text=name)
        toggle.locator(".legendtoggle").click()
        opened.page.wait_for_function(
            "([id, name]) => document.getElementById(id).querySelector('.plot').data"
            ".find(t => t.legendgroup === name).visible === 'legendonly'",
            arg=[IOU, name],
        )
    assert opened.visible(IOU) == {
        "DefaultMode": "legendonly",
        "Visual": True,
        "Auditory": "legendonly",
        "Salience": True,
    }
    opened.page.locator("button[data-show='present']").click()
    assert opened.visible(IOU)["Salience"] == "legendonly"
    assert opened.visible(IOU)["DefaultMode"] is True


def test_browser_offers_no_button_that_sends_data(opened: Opened) -> None:
    opened.ready(IOU)
    titles = opened.page.eval_on_selector_all(
        ".modebar-btn", "buttons => buttons.map(b => b.dataset.title)"
    )
    allowed = {"Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}
    assert set(titles) == allowed


def test_browser_charts_of_a_run_zoom_together(opened: Opened) -> None:
    opened.ready(IOU)
    opened.ready(MOTION)
    opened.page.evaluate(
        "id => Plotly.relayout(document.getElementById(id).querySelector('.plot'),"
        " {'xaxis.range': [20, 60]})",
        IOU,
    )
    assert opened.span(IOU, "xaxis2") == [20, 60]
    assert opened.span(MOTION) == [20, 60]
    # One that is drawn later takes up what the others show.
    opened.page.locator("details.lazy summary").click()
    opened.ready(COURSES)
    assert opened.span(COURSES) == [20, 60]


def test_browser_without_plotly_shows_pictures(browser: Any, study: Study) -> None:
    study.add("1")
    path = write_report(study.out, "01", config=study.config())
    (study.out / "figures" / "plotly.min.js").unlink()
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(".no-plotly:not([hidden])")
    assert page.locator(f"[id='{IOU}'] img.picture").is_visible()
    page.close()


def test_browser_print_opens_what_is_folded(opened: Opened) -> None:
    opened.page.pdf()
    assert opened.page.locator("details:not([open])").count() == 0
    opened.page.emulate_media(media="print")
    assert opened.page.locator(f"[id='{IOU}'] img.picture").is_visible()
    assert opened.page.locator(f"[id='{COURSES}'] img.picture").is_visible()
    assert not opened.page.locator("nav").is_visible()


def test_embedded_data_cannot_end_its_element(study: Study) -> None:
    study.add("1")
    page = write_report(study.out, "01", config=study.config()).read_text()
    for block in re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL):
        assert "<" not in block
        json.loads(block)
