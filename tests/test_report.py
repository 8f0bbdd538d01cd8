"""The page of a participant, from a small output dataset made of synthetic arrays."""

from __future__ import annotations

import itertools
import json
import re
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from pages import NETWORKS, SPACE, Page
from study import Study, evidence_table

from bids_fbn.networks.templates import TemplateSet
from bids_fbn.nulls.pvalues import lowest_p
from bids_fbn.reports import Problem, figures, pictures, write_report
from bids_fbn.reports.evidence import evidence_of
from bids_fbn.reports.interactive import courses_chart, motion_chart, overlap_chart
from bids_fbn.reports.intervals import Scale, interval_picture
from bids_fbn.reports.results import read_participant
from bids_fbn.reports.series import courses_of, motion_of, overlap_of


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


def test_network_stands_only_by_all_nulls(study: Study) -> None:
    for null in ("turned", "mirrored", "noise"):
        study.add("1", weighed=evidence_table(against=(null,)))
        page = Page(write_report(study.out, "01", config=study.config()))
        assert _greyed(page.rows) == _greyed(page.cards) == set(NETWORKS)
        assert "None of 4 networks overlap" in page.text


def test_networks_whose_maps_are_given_stand_by_coherence(study: Study) -> None:
    for against in ((), ("turned",), ("mirrored",), ("noise",)):
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


def test_networks_that_no_component_is_called_after_are_named(study: Study) -> None:
    weighed = evidence_table(beyond=("DefaultMode",), coherence=True)
    lacking = (weighed["measure"] == "coherence") & (weighed["network"] == "Salience")
    weighed.loc[lacking, ["observed", "p", "p_corrected"]] = np.nan
    study.add("1", weighed=weighed)
    page = Page(write_report(study.out, "01", config=study.config()))
    assert _greyed(page.rows) == _greyed(page.cards) == set(NETWORKS) - {"DefaultMode"}
    assert "1 of 4 networks are more coherent" in page.text
    assert "The model has no map of its own for Salience." in page.text


def test_whom_the_components_were_found_in_is_not_tested(study: Study) -> None:
    study.add("1", weighed=evidence_table(0, coherence=True))
    (facts,) = study.out.rglob("*_decomposition.json")
    found_here = {**json.loads(facts.read_text()), "MapsFoundInThisParticipant": True}
    facts.write_text(json.dumps(found_here))
    page = Page(write_report(study.out, "01", config=study.config()))
    assert _greyed(page.rows) == set(NETWORKS)
    assert "the model was trained on this participant too" in page.text
    assert "No surrogates were made of" not in page.text


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
        "No surrogates were made of other places, mirrored places and runs of noise: nothing"
        in page.text
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


def test_of_several_nulls_the_one_with_the_fewest_surrogates_limits_p() -> None:
    rows = evidence_table(39)
    claimed = rows[rows["measure"] == "iou_search"].copy()
    assert lowest_p(claimed) == 1 / 40
    claimed.loc[claimed["null"] == "mirrored", "n_surrogates"] = 9
    assert lowest_p(claimed) == 1 / 10
    assert lowest_p(claimed.iloc[:0]) == 1


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


def test_embedded_data_cannot_end_its_element(study: Study) -> None:
    study.add("1")
    page = write_report(study.out, "01", config=study.config()).read_text()
    for block in re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL):
        assert "<" not in block
        json.loads(block)
