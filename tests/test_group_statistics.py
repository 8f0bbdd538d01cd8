from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from nilearn.mass_univariate import permuted_ols
from scipy import stats

from bids_fbn.errors import InputError
from bids_fbn.group import statistics
from bids_fbn.group.design import Comparison, comparisons, paired
from bids_fbn.group.people import as_text, read_people


def _ids(n: int) -> pd.Index:
    return pd.Index([f"sub-{i:02d}" for i in range(n)], name="participant_id")


def _study(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """Two groups, an age, two sites, a motion."""
    return pd.DataFrame(
        {
            "diagnosis": ["control", "patient"] * (n // 2),
            "age": rng.normal(50, 10, n),
            "site": rng.permutation(["x", "y"] * (n // 2)),
            "fd_mean": rng.gamma(2, 0.1, n),
        },
        index=_ids(n),
    )


def _by_diagnosis(people: pd.DataFrame, covariates: list[str]) -> Comparison:
    return comparisons(people, "diagnosis", covariates)[0][0]


def _features(values: np.ndarray, index: pd.Index | None = None) -> pd.DataFrame:
    names = [("dwell_mean", f"net{i}") for i in range(values.shape[1])]
    columns = pd.MultiIndex.from_tuples(names, names=["measure", "network"])
    return pd.DataFrame(
        values, index=_ids(len(values)) if index is None else index, columns=columns
    )


COVARIATES = ["age", "site", "fd_mean"]


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_error_rate_is_as_stated(missing: float) -> None:
    rng = np.random.default_rng(1)
    n_studies, alone, by_max, by_fdr = 200, 0, 0, 0
    for seed in range(n_studies):
        comparison = _by_diagnosis(_study(rng, 20), COVARIATES)
        # Skewed, as dwell times are.
        values = _features(rng.gamma(2, size=(20, 5)))
        values = values.mask(rng.random(values.shape) < missing)
        test = statistics.compare_features(
            values, comparison, correction="max", n_permutations=99, seed=seed
        )
        alone += test["p"][0] <= 0.05
        by_max += test["p_corrected"].min() <= 0.05
        by_fdr += stats.false_discovery_control(test["p"]).min() <= 0.05
    low, high = stats.binom(n_studies, 0.05).ppf([0.001, 0.999])
    assert low <= alone <= high
    assert low <= by_max <= high
    assert by_fdr <= high


def test_known_effect_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(2)
    people = _study(rng, 40)
    values = rng.normal(size=(40, 8))
    values[:, 3] += 1.5 * (people["diagnosis"] == "patient")
    for correction in ("max", "fdr"):
        test = statistics.compare_features(
            _features(values), _by_diagnosis(people, COVARIATES), correction=correction
        )
        assert list(np.flatnonzero(test["p_corrected"] < 0.05)) == [3]
        assert (test["p_corrected"] >= test["p"]).all()
        assert test["effect_size"][3] == pytest.approx(1.5, abs=0.7)
    assert list(test["network"]) == [f"net{i}" for i in range(8)]


def test_what_a_covariate_explains_is_no_effect_of_the_group() -> None:
    rng = np.random.default_rng(3)
    people = _study(rng, 60)
    people["age"] += 10 * (people["diagnosis"] == "patient")
    values = _features((people["age"].to_numpy() / 10 + rng.normal(0, 0.5, 60))[:, None])
    crude, adjusted = (
        statistics.compare_features(
            values, _by_diagnosis(people, covariates), correction="max", n_permutations=999
        )["p"][0]
        for covariates in ([], ["age"])
    )
    assert crude < 0.01
    assert adjusted > 0.05


def test_two_groups_without_covariates_are_a_t_test() -> None:
    rng = np.random.default_rng(4)
    people = _study(rng, 20)
    values = rng.normal(size=(20, 3))
    test = statistics.compare_features(
        _features(values), _by_diagnosis(people, []), correction="max", n_permutations=20_000
    )
    patients, controls = values[1::2], values[::2]
    expected = stats.ttest_ind(patients, controls)
    np.testing.assert_allclose(test["t"], expected.statistic)
    np.testing.assert_allclose(test["estimate"], patients.mean(axis=0) - controls.mean(axis=0))
    spread = np.sqrt((patients.var(axis=0, ddof=1) + controls.var(axis=0, ddof=1)) / 2)
    # The usual approximation of the small-sample factor is good to 1 in 1000 here.
    np.testing.assert_allclose(
        test["effect_size"], test["estimate"] / spread * (1 - 3 / (4 * 18 - 1)), rtol=1e-3
    )
    np.testing.assert_allclose(test["p"], expected.pvalue, atol=0.02)


def test_interval_of_a_difference_by_the_noncentral_t() -> None:
    """The ends are where the observed t is at 97.5 % and at 2.5 % of the distribution."""
    rng = np.random.default_rng(5)
    test = statistics.compare_features(
        _features(rng.normal(size=(20, 6)) * 3),
        _by_diagnosis(_study(rng, 20), []),
        correction="max",
        n_permutations=1,
    )
    for end, share in (("ci_low", 0.975), ("ci_high", 0.025)):
        noncentrality = test[end].to_numpy() * np.sqrt(5)  # √(n₁ n₂ / (n₁ + n₂))
        np.testing.assert_allclose(stats.nct.cdf(test["t"], 18, noncentrality), share, atol=1e-4)


def test_intervals_cover() -> None:
    rng = np.random.default_rng(6)
    n, slope, covered = 24, 0.8, {"groups": 0, "covariate": 0, "paired": 0}
    n_studies = 200
    for _ in range(n_studies):
        people = _study(rng, n).drop(columns=["site", "fd_mean"])
        z = (people["age"] - 50) / 10
        people["score"] = z + rng.normal(size=n)
        groups, _, score = comparisons(people, "diagnosis", ["age", "score"])[0]
        patient = people["diagnosis"] == "patient"
        y = slope * people["score"] - z + slope * patient + rng.normal(size=n)
        values = _features(y.to_numpy()[:, None])
        change = _features(rng.normal(slope, 1, (n, 1)))
        differences, sessions, _ = paired(values * 0, change, ("1", "2"))
        for data, comparison, truth in (
            (values, groups, slope),
            (values, score, slope / np.sqrt(slope**2 + 1)),
            (differences, sessions, slope),
        ):
            row = statistics.compare_features(
                data, comparison, correction="max", n_permutations=1
            ).iloc[0]
            covered[comparison.kind] += row["ci_low"] < truth < row["ci_high"]
    low, high = stats.binom(n_studies, 0.95).ppf([0.001, 0.999])
    assert all(low <= count <= high for count in covered.values()), covered


def test_maximum_is_that_of_nilearn() -> None:
    rng = np.random.default_rng(7)
    people = _study(rng, 30)
    comparison = comparisons(people, "diagnosis", COVARIATES)[0][1]
    assert comparison.term == "age"
    age = (people[["age"]].to_numpy() - 50) / 10
    values = rng.normal(size=(30, 12)) + 0.06 * np.arange(12) * age
    test = statistics.compare_features(
        _features(values), comparison, correction="max", n_permutations=4000
    )
    nilearn = permuted_ols(
        comparison.tested,
        values,
        confounding_vars=comparison.confounds[:, 1:],
        n_perm=4000,
        random_state=1,
        output_type="dict",
    )
    np.testing.assert_allclose(test["t"], nilearn["t"][0])
    np.testing.assert_allclose(
        test["p_corrected"], 10.0 ** -nilearn["logp_max_t"][0], atol=4 * np.sqrt(0.5 / 4000)
    )
    t, p = statistics.compare_voxels(values.astype(np.float32), comparison, 1000, seed=0)
    np.testing.assert_allclose(t, test["t"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(p, test["p_corrected"], atol=4 * np.sqrt(0.25 / 1000))


@pytest.mark.parametrize("seed", range(4))
def test_few_participants_get_the_p_of_all_arrangements(seed: int) -> None:
    """20 arrangements of 3 and 3: the observed one and its mirror image are always ties."""
    rng = np.random.default_rng(seed)
    people = _study(rng, 6)
    comparison = _by_diagnosis(people, [])
    values = rng.normal(size=(6, 1)).astype(np.float32)
    exact = stats.permutation_test(
        (values[1::2, 0], values[::2, 0]),
        lambda a, b: abs(a.mean() - b.mean()),
        alternative="greater",
    ).pvalue
    test = statistics.compare_features(_features(values), comparison, correction="max")
    assert test["p"][0] == test["p_corrected"][0] == pytest.approx(exact, abs=0.03)
    # By signs instead of permutations it would be another one, and a multiple of 1/32.
    assert statistics.compare_voxels(values, comparison, 2000, 0)[1] == pytest.approx(
        exact, abs=0.05
    )


def test_sessions_are_compared_by_signs() -> None:
    rng = np.random.default_rng(8)
    first = _features(rng.normal(size=(8, 4)))
    second = _features(rng.normal(size=(8, 4)) + np.array([0, 0, 1, 2]))
    differences, comparison, notes = paired(first, second.iloc[:-1], ("ses-1", "ses-2"))
    assert notes == ["sub-07: not in both of ses-1 and ses-2; not compared"]
    assert (comparison.name, comparison.levels) == ("ses2VsSes1", ("ses-1", "ses-2"))
    assert len(comparison.participants) == 7
    test = statistics.compare_features(differences, comparison, correction="max")
    np.testing.assert_allclose(test["t"], stats.ttest_1samp(differences, 0).statistic)
    np.testing.assert_allclose(test["effect_size"], differences.mean() / differences.std(ddof=1))
    exact = [_p_by_signs(differences.iloc[:, i].to_numpy()) for i in range(4)]
    np.testing.assert_allclose(test["p"], exact, atol=0.03)
    t, p = statistics.compare_voxels(differences.to_numpy(np.float32), comparison, 1000, seed=0)
    np.testing.assert_allclose(t, test["t"], rtol=1e-4)
    np.testing.assert_allclose(p, test["p_corrected"], atol=0.06)


def _p_by_signs(differences: np.ndarray) -> float:
    n = len(differences)
    signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    means = np.abs(signs @ differences)
    return float((means >= abs(differences.sum()) - 1e-12).mean())


def test_missing_values_leave_only_their_own_features() -> None:
    rng = np.random.default_rng(9)
    people = _study(rng, 24)
    comparison = _by_diagnosis(people, ["age"])
    values = rng.normal(size=(24, 4))
    gaps = values.copy()
    gaps[:3, 1] = np.nan
    gaps[5, 2] = np.inf
    whole, test = (
        statistics.compare_features(_features(x), comparison, correction="max")
        for x in (values, gaps)
    )
    assert list(test["n"]) == [24, 21, 23, 24]
    pd.testing.assert_frame_equal(
        whole.drop(columns="p_corrected").iloc[[0, 3]],
        test.drop(columns="p_corrected").iloc[[0, 3]],
    )
    rest = _by_diagnosis(people.iloc[3:], ["age"])
    alone = statistics.compare_features(
        _features(values[3:, 1:2], people.index[3:]), rest, correction="max"
    )
    assert alone["t"][0] == pytest.approx(test["t"][1])
    assert alone["p"][0] == pytest.approx(test["p"][1], abs=0.03)


def test_smaller_sets_of_participants_are_permuted_uniformly() -> None:
    orders = np.array(list(permutations(range(5))))
    kept = np.array([True, False, True, True, False])
    induced = statistics._induced(orders, kept)
    found, counts = np.unique(induced, axis=0, return_counts=True)
    assert len(found) == 6
    assert (counts == 20).all()
    np.testing.assert_array_equal(statistics._induced(orders, np.ones(5, bool)), orders)


def compare_features_of_few_participants_do_not_hide_the_others() -> None:
    """Chance correlations of 7 participants are higher than any true one of 60."""
    rng = np.random.default_rng(13)
    people = _study(rng, 60)
    values = rng.normal(size=(60, 6))
    values[:, 0] += 1.2 * (people["diagnosis"] == "patient")
    values[7:, 1:] = np.nan
    test = statistics.compare_features(
        _features(values), _by_diagnosis(people, ["age"]), correction="max"
    )
    assert list(test["n"]) == [60, 7, 7, 7, 7, 7]
    assert test["p"][0] <= test["p_corrected"][0] < 0.01


def test_what_cannot_be_tested_is_nan() -> None:
    rng = np.random.default_rng(10)
    people = _study(rng, 12)
    values = rng.normal(size=(12, 5))
    values[:, 1] = 0.1
    values[5:, 2] = np.nan  # 3 controls and 2 patients; one degree of freedom less than it takes
    values[3::2, 3] = np.nan  # one patient
    values[:, 4] = [0.0, 1.0] * 6  # the group itself
    comparison = _by_diagnosis(people, ["age"])
    test = statistics.compare_features(_features(values), comparison, correction="fdr")
    assert list(test["n"]) == [12, 12, 5, 7, 12]
    numbers = ["estimate", "effect_size", "ci_low", "ci_high", "t", "p", "p_corrected"]
    assert test.loc[[1, 2, 3], numbers].isna().all(axis=None)
    assert test.loc[0, numbers].notna().all()
    assert test.loc[4, "estimate"] == pytest.approx(1)
    assert test.loc[4, "p"] < 0.01
    assert np.isnan(test.loc[4, "t"])
    t, p = statistics.compare_voxels(values.astype(np.float32), comparison, 50, seed=0)
    assert list(np.isnan(p)) == [False, True, True, True, False]
    assert np.isfinite(t[0])


def test_families() -> None:
    names = [
        ("dwell_mean", "A"), ("dwell_mean", "B"), ("switching_rate", "all"), ("r", "A"),
        ("held_out_variance", "all"), ("transition_probability", "A > A"),
        ("transition_probability", "A > B"), ("transition_count", "A > B"),
    ]  # fmt: skip
    values = pd.DataFrame(np.zeros((1, len(names))), columns=pd.MultiIndex.from_tuples(names))
    assert statistics.families(values) == {
        "dwell_mean": names[:2],
        "all": [names[2], names[4]],
        "r": [names[3]],
        "transition_probability": [names[6]],
    }


def test_three_groups_share_a_model() -> None:
    rng = np.random.default_rng(11)
    people = _study(rng, 30)
    people["diagnosis"] = ["c", "a", "b"] * 10
    people.loc["sub-00", "age"] = np.nan
    found, notes = comparisons(people, "diagnosis", ["age", "site"])
    assert notes == ["sub-00: no value of age; not in the statistics"]
    assert [c.name for c in found] == ["diagnosisBVsA", "diagnosisCVsA", "diagnosisCVsB", "age"]
    assert [c.kind for c in found] == ["groups"] * 3 + ["covariate"]
    assert {c.formula for c in found} == {"metric ~ diagnosis + age + site"}
    assert found[1].levels == ("a", "c")
    assert [found[1].groups.count(level) for level in found[1].levels] == [10, 9]
    assert {(c.tested.shape, c.confounds.shape) for c in found} == {((29, 1), (29, 4))}
    # Means of a, b and c are 0, 1, 3: each pair has its own difference.
    y = people["diagnosis"].map({"a": 0.0, "b": 1.0, "c": 3.0}).to_numpy()
    values = _features((y + rng.normal(0, 1e-3, 30))[:, None])
    differences = [
        statistics.compare_features(values, c, correction="max", n_permutations=1)["estimate"][0]
        for c in found
    ]
    np.testing.assert_allclose(differences, [1, 3, 2, 0], atol=0.01)


def test_covariates_that_cannot_be_used_are_named() -> None:
    rng = np.random.default_rng(12)
    people = _study(rng, 24)
    people["scanner"] = people["diagnosis"] + " scanner"
    people["one_site"] = "x"
    people["months"] = people["age"] * 12
    people["surname"] = [f"name{i}" for i in range(24)]
    people["town"] = [f"town{i % 12}" for i in range(24)]
    people["empty"] = np.nan
    asked = ["age", "scanner", "one_site", "months", "surname", "town", "empty"]
    found, notes = comparisons(people, "diagnosis", asked)
    assert [c.name for c in found] == ["diagnosisPatientVsControl", "age"]
    assert {c.formula for c in found} == {"metric ~ diagnosis + age"}
    expected = {
        "scanner": "their effects cannot be told apart",
        "one_site": "the same for all participants (x)",
        "months": "a combination of diagnosis, age",
        "surname": "different in each of 24 participants",
        "town": "12 different values are too many",
        "empty": "no participant has a value",
    }
    assert len(notes) == len(expected)
    for name, reason in expected.items():
        assert any(note.startswith(f"{name}: ") and reason in note for note in notes), name


def test_groups_too_small_to_compare_are_named() -> None:
    people = pd.DataFrame(
        {"group": [1.0] * 5 + [2.0] * 5 + [3.0], "age": np.arange(11.0) ** 2}, index=_ids(11)
    )
    found, notes = comparisons(people, "group", [])
    assert [(c.name, c.levels) for c in found] == [("group2Vs1", ("1", "2"))]
    assert [found[0].groups.count(level) for level in ("1", "2")] == [5, 5]
    assert notes == ["group 3: one participant only; not compared with other groups"]

    found, notes = comparisons(people.iloc[:5], "group", ["age"])
    assert [(c.name, c.formula) for c in found] == [("age", "metric ~ age")]
    assert notes == [
        "group: the same for all participants (1); left out of the model",
        "no comparison of groups by group",
    ]

    found, notes = comparisons(people.iloc[[0, 5]], "group", [])
    assert found == []
    assert any("different in each of 2 participants" in note for note in notes)

    found, notes = comparisons(people.iloc[[0, 1, 5, 6]], "group", ["age"])
    assert found == []
    assert notes[0].startswith("4 participants are too few to compare by group + age")


def test_names_are_their_own() -> None:
    people = pd.DataFrame({"g": ["a-b", "ab", "AB!"] * 4}, index=_ids(12))
    names = [c.name for c in comparisons(people, "g", [])[0]]
    assert all(name.isalnum() for name in names)
    assert len({name.lower() for name in names}) == 3


def _table(folder: Path, text: str) -> Path:
    path = folder / "participants.tsv"
    path.write_text(text.replace(" ", "\t"), encoding="utf-8")
    return path


def test_participants_are_read(tmp_path: Path) -> None:
    path = _table(
        tmp_path,
        "\ufeffparticipant_id age sex site scanner\nsub-01 30 F 1 n/a\n02 n/a M 2 7\n"
        "sub-03 41.5 n/a 1 8\nsub-09 1 F 3 9\n",
    )
    (tmp_path / "participants.json").write_text(
        json.dumps({"age": {"Units": "year"}, "site": {"Levels": {"1": "Ulm", "2": "Graz"}}})
    )
    people = read_people(path, ["sub-02", "01", "sub-03"], ["age", "sex", "site"])
    assert people.notes == ()
    assert list(people.table.index) == ["sub-02", "sub-01", "sub-03"]
    np.testing.assert_array_equal(people.table["age"], [np.nan, 30, 41.5])
    assert people.table["sex"].fillna("?").tolist() == ["M", "F", "?"]
    assert people.table["site"].tolist() == ["2", "1", "1"]
    assert read_people(path, ["01"], []).table.shape == (1, 0)


def test_codes_of_groups_are_text_and_stay_different() -> None:
    codes = as_text(pd.Series([1.0, np.nan, 1000001, 1000002, 0.5]))
    assert codes.fillna("?").tolist() == ["1", "?", "1000001", "1000002", "0.5"]
    assert as_text(pd.Series(["1.0", "a"])).tolist() == ["1.0", "a"]


def test_what_is_wrong_with_participants_is_said(tmp_path: Path) -> None:
    path = _table(
        tmp_path,
        "participant_id age sex\nsub-01 30 F\nsub-01 31 F\nsub-02 n/a M\nsub-02 50 n/a\n"
        + "".join(f"sub-1{i} {40 + i}.5 F\n" for i in range(10))
        + "sub-20 89+ F\n",
    )
    people = read_people(path, ["01", "02", "03", "10", "20"], ["age", "sex"])
    assert len(people.notes) == 2
    assert "sub-03 not in it" in people.notes[0]
    assert "sub-01 in several rows with different age" in people.notes[1]
    # Three different values are categories; with those of more participants it is a number.
    assert people.table["age"].fillna("?").tolist() == ["?", "50", "?", "40.5", "89+"]
    more = [f"1{i}" for i in range(10)]
    people = read_people(path, [*more, "20"], ["age"])
    assert people.table["age"].isna().sum() == 1
    assert people.table["age"].iloc[0] == 40.5
    assert "age is not a number for sub-20 ('89+')" in people.notes[0]

    for nowhere in (None, tmp_path / "none.tsv"):
        people = read_people(nowhere, ["01"], ["age"])
        assert people.table.isna().all(axis=None)
        assert "no such file" in people.notes[0]
        assert comparisons(people.table, None, ["age"])[0] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"participant_id\tsex\nsub-01\tF\n", "no column 'age'; the columns are: sex"),
        (b"participant_id,age\nsub-01,3\n", "separated by tabs"),
        (b"participant_id\tage\nsub-77\t3\n", "it has sub-77"),
        (b"participant_id\tage\nsub-01\t\xff\xfe\n", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_file_of_no_use_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "participants.tsv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_people(path, ["sub-01"], ["age"])
    assert str(path) in str(caught.value)
