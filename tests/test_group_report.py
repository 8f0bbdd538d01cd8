"""The page of a group, from a made-up study."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from pages import NETWORKS, Page, background_of, chromium, quarters, shown

from bids_fbn.reports import group_view
from bids_fbn.reports.group import GroupPage, GroupSection, write_group_report
from bids_fbn.reports.group_quality import outliers, quality_of_effects, robust_z
from bids_fbn.reports.group_strips import lanes_of, section_strips
from bids_fbn.reports.palette import network_colour
from bids_fbn.reports.transitions import ArrowStyle, transition_graph

OF_NETWORK = ("iou_mean", "fractional_occupancy", "dwell_mean")
OF_RUN = ("switching_rate", "occupancy_entropy")
MOVES = tuple(f"{a} > {b}" for a, b in itertools.permutations(NETWORKS, 2))
# What the made-up tests find; everything else has p corrected 0.4.
STANDING = (("dwell_mean", "DefaultMode"), ("transition_probability", "Visual > Auditory"))


def make_page(n: int = 40, *, groups: bool = True, runs: int = 2, seed: int = 0) -> GroupPage:
    """A study in which patients stay longer in the default mode."""
    rng = np.random.default_rng(seed)
    names = [f"sub-{k + 1:04d}" for k in range(n)]
    patient = np.arange(n) % 2 == 1
    rows = [
        (name, f"{run + 1}", measure, network, value)
        for name, ill in zip(names, patient, strict=True)
        for run in range(runs)
        for measure, network, value in _values(rng, ill and groups)
    ]
    keys = ["participant_id", "run", "measure", "network"]
    long = pd.DataFrame(rows, columns=[*keys, "value"]).astype(dict.fromkeys(keys, "category"))
    quality = pd.DataFrame(
        {
            "participant_id": np.repeat(names, runs),
            "run": [f"{run + 1}" for _ in names for run in range(runs)],
            "fd_mean": rng.gamma(6, 0.025, n * runs),
            "n_volumes": 200,
            "n_kept": rng.integers(150, 201, n * runs),
        }
    )
    quality["kept_seconds"] = 2.0 * quality["n_kept"]
    people = pd.DataFrame(
        {
            "diagnosis": np.where(patient, "patient", "control"),
            "age": rng.normal(40, 9, n).round(),
        },
        index=pd.Index(names, name="participant_id"),
    )
    section = GroupSection(
        entities={"task": "rest"},
        model="stca",
        networks=NETWORKS,
        maps=pd.DataFrame(
            {
                "iou": [0.41, 0.52, 0.22, 0.31],
                "dice": [0.58, 0.68, 0.36, 0.47],
                "r": [0.61, 0.7, 0.3, 0.45],
                "p_corrected": [0.001, 0.001, 0.31, np.nan],
                "n_participants": n,
            },
            index=list(NETWORKS),
        ),
        long=long,
        tests=make_tests(n) if groups else pd.DataFrame(),
        transitions=make_transitions(rng, n, groups),
        levels={"patientcontrol": ("patient", "control")} if groups else {},
    )
    return GroupPage(
        dataset="A made-up study",
        version="0.1",
        sections=[section],
        quality=quality,
        people=people if groups else people[[]],
        group_by="diagnosis" if groups else None,
    )


def _values(rng: np.random.Generator, ill: bool) -> Iterator[tuple[str, str, float]]:
    longer = {"DefaultMode": 6.0 * ill}
    for network, share in zip(NETWORKS, rng.dirichlet([6, 5, 3, 2]), strict=True):
        yield "iou_mean", network, rng.normal(0.3, 0.03)
        yield "fractional_occupancy", network, share
        yield "dwell_mean", network, rng.gamma(9, 1.2) + longer.get(network, 0.0)
    yield "switching_rate", "all", rng.gamma(12, 0.2)
    yield "occupancy_entropy", "all", rng.normal(1.8, 0.1)
    for move in MOVES:
        yield "transition_probability", move, rng.beta(1, 9)


def make_tests(n: int) -> pd.DataFrame:
    """Two comparisons of every feature."""
    features = [
        *itertools.product(OF_NETWORK, NETWORKS),
        *itertools.product(OF_RUN, ["all"]),
        *(("transition_probability", move) for move in MOVES),
    ]
    formula = "metric ~ diagnosis + age + fd_mean"
    rows = []
    for measure, network in features:
        stands = (measure, network) in STANDING
        size = 1.4 if stands else 0.1
        shared = {"formula": formula, "measure": measure, "network": network, "n": n, "p": 0.02}
        rows.append(
            shared
            | {"comparison": "patientcontrol", "kind": "groups", "effect": "hedges_g"}
            | {"estimate": size / 10, "effect_size": size, "t": 3 * size}
            | {
                "ci_low": size - 0.6,
                "ci_high": size + 0.6,
                "p_corrected": 0.003 if stands else 0.4,
            }
        )
        rows.append(
            shared
            | {"comparison": "age", "kind": "covariate", "effect": "partial_r"}
            | {"estimate": -0.002, "effect_size": -0.1, "t": -0.6}
            | {"ci_low": -0.4, "ci_high": 0.2, "p_corrected": 0.9}
        )
    return pd.DataFrame(rows)


def make_transitions(rng: np.random.Generator, n: int, groups: bool) -> pd.DataFrame:
    """Probabilities, of which each row sums to 1."""
    rows = []
    for group in ("all", "control", "patient") if groups else ("all",):
        for origin in NETWORKS:
            chances = rng.dirichlet(np.where(np.array(NETWORKS) == origin, 9, 1))
            rows += [
                (group, origin, destination, n, p, 0.8 * p, 1.2 * p)
                for destination, p in zip(NETWORKS, chances, strict=True)
            ]
    columns = ["group", "origin", "destination", "n_participants", "probability"]
    return pd.DataFrame(rows, columns=[*columns, "ci_low", "ci_high"])


def with_maps(page: GroupPage, monkeypatch: pytest.MonkeyPatch) -> GroupPage:
    """The same page with mean maps on a coarse grid."""
    grid, templates = quarters()
    brain = background_of(grid)
    monkeypatch.setattr(group_view, "load_background", lambda space: brain)
    maps = 2 * templates.maps
    section = replace(page.sections[0], grid=grid, mean_maps=maps, templates=templates)
    return replace(page, sections=[section])


def harmonised(page: GroupPage) -> GroupPage:
    """The same page with sites before and after harmonisation."""
    features = page.sections[0].features["iou_mean"]
    rows = features.reset_index().melt("participant_id", value_name="after", var_name="network")
    site = rows["participant_id"].str[-1].astype(int) % 3
    rows = rows.assign(
        measure="iou_mean", site="site" + site.astype(str), before=rows["after"] + 0.05 * site
    )
    return replace(page, sections=[replace(page.sections[0], harmonised=rows)])


def test_page_needs_nothing_beside_it_and_its_links_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = harmonised(with_maps(make_page(), monkeypatch))
    published = pd.DataFrame(
        {"IoU": [0.4, np.nan]}, index=pd.Index(["stca", "pca"], name="method")
    )
    made = replace(
        made,
        notes=["sub-0041 has no results & is <missing>."],
        published=[("Table 1", published, "As in the paper.")],
        methods=["Permutations: 5000."],
    )
    path = write_group_report(tmp_path, made)
    page = Page(path)

    assert path == tmp_path / "group" / "group_report.html"
    assert page.loaded
    assert all(url.startswith("data:") for url in page.loaded)
    assert "@import" not in page.html
    assert "url(" not in page.html
    assert len(page.ids) == len(set(page.ids))
    for anchor in page.anchors:
        assert re.fullmatch(r"\.\./sub-\d{4}\.html", anchor) or anchor[1:] in page.ids, anchor
    assert {f"../{name}.html" for name in made.participants} <= set(page.anchors)
    people = re.search(r'id="people">(.*?)</script>', page.html)
    assert people is not None
    assert json.loads(people[1])["links"] == [f"../{name}.html" for name in made.participants]
    for words in (
        "sub-0041 has no results & is <missing>.",
        "40 participants",
        "80 runs",
        "20 patient",
        "As in the paper.",
        "metric ~ diagnosis + age + fd_mean",
    ):
        assert words in page.text, words


def test_what_does_not_stand_is_grey(tmp_path: Path) -> None:
    page = Page(write_group_report(tmp_path, make_page()))
    tests = {name: classes for name, classes in page.classes.items() if "|" in name}
    assert len(tests) == len(make_tests(40))
    standing = {name for name, classes in tests.items() if "chance" not in classes}
    assert standing == {
        "patient − control|mean dwell, s|DefaultMode",
        "patient − control|transition probability|Visual > Auditory",
    }
    cards = {name: "chance" in page.classes[name] for name in NETWORKS}
    assert cards == {"DefaultMode": False, "Visual": False, "Auditory": True, "Salience": True}
    assert "not tested" in page.text
    marked = {name for name, kind in page.arrows if kind == "arrow stands"}
    assert marked == {"Visual > Auditory"}
    assert any(kind == "arrow chance" for _, kind in page.arrows)


def test_a_network_with_too_few_surrogates_to_tell_is_grey_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = with_maps(make_page(), monkeypatch)
    section = made.sections[0]
    # Both have p 0.31; that of the second could not have been lower than 0.2.
    maps = section.maps.assign(p_corrected=[0.001, 0.31, 0.31, 0.001], p_lowest=0.01)
    maps.loc["Auditory", "p_lowest"] = 0.2
    made = replace(made, sections=[replace(section, maps=maps)])
    weak: list[bool] = []
    draw = group_view.draw_network
    monkeypatch.setattr(
        group_view, "draw_network", lambda *drawn: weak.append(drawn[-1]) or draw(*drawn)
    )
    page = Page(write_group_report(tmp_path, made))
    assert [("chance" in page.classes[name]) for name in NETWORKS] == [False, True, True, False]
    assert weak == [False, True, True, False]
    assert page.text.count("not more than chance") == 1
    assert page.text.count("too few surrogates to tell") == 1


def test_arrows_and_nodes_of_a_graph_can_be_drawn_otherwise() -> None:
    occupancy, counts = np.array([0.6, 0.4, 0.0]), np.array([[5, 0.2, 0.1], [0, 3, 0], [0, 0, 0]])

    def style(a: int, b: int) -> ArrowStyle:
        text = f"{a} < {b}"
        return ArrowStyle(text, "arrow own", "#123456", 9) if b == 1 else ArrowStyle(text)

    drawn = transition_graph(["A", "B", "C"], occupancy, counts, "", style, "#654321")
    graph = ElementTree.fromstring(drawn)
    svg = "{http://www.w3.org/2000/svg}"
    plain, own = graph.findall(f"{svg}g[@opacity]")  # wider ones on top
    assert own.attrib == {"opacity": "0.8", "class": "arrow own", "data-arrow": "A > B"}
    assert [part.text for part in (own[0], plain[0])] == ["0 < 1", "0 < 2"]
    assert (own[1].get("stroke"), own[1].get("stroke-width")) == ("#123456", "9.0")
    assert own[2].get("fill") == "#123456"
    assert (plain[1].get("stroke"), plain[1].get("stroke-width")) == (network_colour(0), "4.5")
    # A state never visited stays a ring.
    fills = [circle.get("fill") for circle in graph.iter(f"{svg}circle")]
    assert fills == ["#654321", "#654321", "#fff"]


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_group_report(tmp_path, make_page()).read_bytes()
    assert write_group_report(tmp_path, make_page()).read_bytes() == first


def test_dots_are_the_participants_means_and_the_first_picture_is_what_stands() -> None:
    page = make_page()
    section = page.sections[0]
    shown = section_strips(section, page, lanes_of(page))
    measure = shown["data"]["measures"][shown["first"]]
    assert measure["label"] == "mean dwell, s"
    row = measure["rows"][0]
    assert (row["name"], row["stands"], row["note"]) == ("DefaultMode", True, "p 0.003")
    here = section.long.query("measure == 'dwell_mean' and network == 'DefaultMode'")
    expected = here.groupby("participant_id")["value"].mean()
    np.testing.assert_allclose(row["values"], expected, rtol=5e-4)
    medians = expected.groupby(page.people["diagnosis"]).median()
    np.testing.assert_allclose([q[1] for q in row["quartiles"]], medians)
    # A path for each lane, a move for each dot.
    lanes = re.findall(r'<path class="dots"[^>]*d="([^"]*)"', shown["picture"])
    assert [lane.count("M") for lane in lanes] == [20, 20] * len(NETWORKS)


def test_outliers_are_named_with_their_reason() -> None:
    page = make_page()
    quality, long = page.quality.copy(), page.sections[0].long.copy()
    quality.loc[quality["participant_id"] == "sub-0007", "fd_mean"] = 1.4
    quality.loc[quality["participant_id"] == "sub-0012", "n_kept"] = 40
    far = (long["participant_id"] == "sub-0020") & (long["measure"] == "switching_rate")
    long.loc[far, "value"] = 30.0
    page = replace(page, quality=quality, sections=[replace(page.sections[0], long=long)])
    found = {row["name"]: row for row in outliers(page)}
    assert found["sub-0007"]["quality"] == "mean FD 1.40 mm"
    assert found["sub-0012"]["quality"] == "only 20 % of the volumes left"
    assert found["sub-0020"]["worst"].startswith("changes of state per minute (+")
    assert [row["name"] for row in outliers(page)[:2]] == ["sub-0007", "sub-0012"]


def test_robust_z_of_a_normal_sample_is_its_z_and_of_a_constant_none() -> None:
    values = np.random.default_rng(0).normal(5, 2, 20_000)
    z = robust_z(pd.DataFrame({"a": values, "b": 1.0}))
    np.testing.assert_allclose(z["a"], (values - 5) / 2, atol=0.12)
    assert z["b"].isna().all()


def test_quality_beside_an_effect_is_of_those_who_have_the_value() -> None:
    page = make_page(4, runs=1)
    quality = page.quality.assign(fd_mean=[0.1, 0.2, 0.3, 0.6], n_kept=[200, 100, 200, 100])
    long = page.sections[0].long
    gone = (long["participant_id"] == "sub-0004") & (long["measure"] == "dwell_mean")
    section = replace(page.sections[0], long=long[~gone])
    page = replace(page, quality=quality, sections=[section])
    rows = dict(
        zip(
            section.tests[["comparison", "measure"]].itertuples(index=False, name=None),
            quality_of_effects(section, page),
            strict=True,
        )
    )
    # sub-0002 and sub-0004 are the patients, who come first in the comparison.
    assert rows["patientcontrol", "iou_mean"] == {"motion": "0.40 / 0.20", "kept": "50 % / 100 %"}
    assert rows["patientcontrol", "dwell_mean"]["motion"] == "0.20 / 0.20"
    assert rows["age", "iou_mean"] == {"motion": "0.30", "kept": "75 %"}


def test_quality_beside_a_paired_effect_is_that_of_the_sessions_and_the_task() -> None:
    page = make_page(4, groups=False, runs=2)
    runs = page.quality.assign(session=["1", "2"] * 4, task="rest", fd_mean=[0.1, 0.3] * 4)
    other = runs.assign(task="faces", fd_mean=5.0)
    tests = make_tests(4).query("comparison == 'patientcontrol'").assign(kind="paired")
    section = replace(page.sections[0], tests=tests, levels={"patientcontrol": ("ses-2", "ses-1")})
    page = replace(page, quality=pd.concat([runs, other]), sections=[section])
    assert {row["motion"] for row in quality_of_effects(section, page)} == {"0.30 / 0.10"}


def test_runs_of_another_acquisition_have_a_section_of_their_own(tmp_path: Path) -> None:
    made = make_page(4)
    sections = [
        replace(made.sections[0], entities={"task": "rest", "acquisition": label})
        for label in ("fast", "slow")
    ]
    page = Page(write_group_report(tmp_path, replace(made, sections=sections)))
    assert len(page.ids) == len(set(page.ids))
    assert "task-rest_acquisition-slow_desc-stca" in page.ids
    assert "stca, task rest, acquisition fast" in page.text


def test_without_motion_maps_and_quality_the_rest_is_shown(tmp_path: Path) -> None:
    made = make_page(6)
    section = replace(made.sections[0], maps=pd.DataFrame(index=list(NETWORKS)))
    made = replace(made, sections=[section])
    for quality in (made.quality.drop(columns="fd_mean"), pd.DataFrame()):
        page = Page(write_group_report(tmp_path, replace(made, quality=quality)))
        assert "mean dwell, s" in page.text
        assert not set(page.classes) & set(NETWORKS)


@pytest.mark.parametrize("n", [1, 3])
def test_few_participants_without_groups_tests_or_states(tmp_path: Path, n: int) -> None:
    made = make_page(n, groups=False, runs=1)
    section = replace(made.sections[0], transitions=pd.DataFrame())
    page = Page(write_group_report(tmp_path, replace(made, sections=[section])))
    assert "Nothing was compared" in page.text
    assert f"{n} participant" in page.text
    assert not any("|" in name for name in page.classes)


def test_no_results_at_all(tmp_path: Path) -> None:
    made = replace(make_page(2, groups=False), sections=[], notes=["No model has finished."])
    page = Page(write_group_report(tmp_path, made))
    assert "No model has results." in page.text


def test_a_participant_without_a_group_is_in_a_lane_of_its_own() -> None:
    page = make_page()
    people = page.people.copy()
    people.loc["sub-0003", "diagnosis"] = np.nan
    lanes = lanes_of(replace(page, people=people.drop("sub-0005")))
    assert lanes.names == ["control", "patient", "no group"]
    assert [k for k, lane in enumerate(lanes.of_participant) if lane == 2] == [2, 4]


def test_a_thousand_participants_fit_in_a_page(tmp_path: Path) -> None:
    path = write_group_report(tmp_path, make_page(1000, runs=1))
    # Two dozen numbers for each participant; the fixed part is under 0.2 MB.
    assert path.stat().st_size < 1.5e6


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    path = write_group_report(tmp_path, harmonised(make_page()))
    with shown(browser, path) as page:
        yield page


SECTION = "task-rest_desc-stca"


def _column(page: Any, column: int) -> list[str]:
    texts: list[str] = page.eval_on_selector_all(
        f"[id='{SECTION}_effects-table'] tbody tr:not([hidden])",
        f"rows => rows.map(row => row.cells[{column}].textContent)",
    )
    return texts


def test_browser_sorts_and_filters_effects(opened: Any) -> None:
    table = opened.locator(f"[id='{SECTION}_effects-table']")
    assert _column(opened, 8)[:2] == ["0.003", "0.003"]
    heading = table.locator("thead th", has_text="p corr.")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    sorted_p = [float(text) for text in _column(opened, 8)]
    assert sorted_p == sorted(sorted_p, reverse=True)
    assert sorted_p[0] == 0.9

    bar = opened.locator(f".filter[data-table='{SECTION}_effects-table']")
    bar.locator("input[type=search]").fill("dwell visual")
    assert set(_column(opened, 0)) == {"mean dwell, s"}
    assert set(_column(opened, 1)) == {"Visual"}
    assert bar.locator("output").text_content() == f"2 of {len(make_tests(40))}"
    bar.locator("input[type=search]").fill("")
    bar.locator("input[type=checkbox]").check()
    assert len(_column(opened, 0)) == len(STANDING)


def test_browser_changes_measure_links_dots_and_marks_a_participant(opened: Any) -> None:
    chart = opened.locator(f"[id='{SECTION}_strips']")
    chart.scroll_into_view_if_needed()
    opened.wait_for_selector(f"[id='{SECTION}_strips'][data-ready]")
    assert chart.locator("a").count() == 40 * len(NETWORKS)
    assert chart.locator("a[data-p='2']").first.get_attribute("href") == "../sub-0003.html"
    chart.locator("select").select_option(label="transition probability from Salience")
    assert chart.locator(".strip-title").text_content() == "transition probability from Salience"
    assert chart.locator("text.name title").all_text_contents() == [
        "to DefaultMode",
        "to Visual",
        "to Auditory",
    ]

    opened.locator(".finder input").fill("0003")
    assert chart.locator("a.marked").count() == len(NETWORKS) - 1
    assert opened.locator(".finder output a").get_attribute("href") == "../sub-0003.html"
    # A picture that is drawn later marks the same participant.
    chart.locator("select").select_option(label="changes of state per minute")
    assert chart.locator("a.marked").get_attribute("data-p") == "2"
    quality = opened.locator("#quality_motion")
    quality.scroll_into_view_if_needed()
    opened.wait_for_selector("#quality_motion[data-ready]")
    assert quality.locator("a.marked").count() == 1
    assert opened.locator("#participants tr.marked a").text_content() == "sub-0003"
    opened.locator(".finder input").fill("")
    assert opened.locator(".marked").count() == 0


def test_browser_draws_what_stands_without_script(browser: Any, tmp_path: Path) -> None:
    path = write_group_report(tmp_path, make_page())
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator(f"[id='{SECTION}_strips'] path.dots").count() == 2 * len(NETWORKS)
    assert not page.locator(f"[id='{SECTION}_strips'] select").is_visible()
    assert page.locator(f"[id='{SECTION}_effects-table'] tbody tr").count() == len(make_tests(40))
    context.close()
