"""Does the group level find what differs, and nothing else? Simulated studies, as tables.

    python benchmarks/group_level.py [--runs 20] [--permutations 1000] [--per-group 20] [--sites 3]

Each run is one study with a known difference in one dwell and one transition, and one without any.
Groups are compared with age, sex, motion and site in the model, each family of metrics corrected
by the maximum. Found: corrected p < 0.05. False: any metric of a family that is the same in both
groups. Sites are compared pairwise in the same way, as they are and after ComBat, which is fitted
to all participants, or without those whom it is applied to (five folds).

Fails where a known difference is found in fewer than 80 % of the studies; where false ones are
found more often than 5 % allow (95 % of the binomial distribution); where sites are not found
without ComBat, or found with it.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict

import numpy as np
import pandas as pd
from scipy.stats import binom
from sklearn.model_selection import StratifiedKFold

from bids_fbn.group.design import comparisons
from bids_fbn.group.harmonise import Combat
from bids_fbn.group.statistics import compare_features, families
from bids_fbn.simulation.tables import STUDY_EFFECT, simulate_features

ALPHA = 0.05
POWER = 0.8
FOLDS = 5
COVARIATES = ("age", "sex", "fd_mean")
# What is kept by ComBat, and in the model when sites are compared.
PROTECTED = ("group", *COVARIATES)


def significant(
    values: pd.DataFrame,
    people: pd.DataFrame,
    group_by: str,
    covariates: tuple[str, ...],
    n_permutations: int,
    seed: int,
) -> dict[str, list[set[tuple[str, str]]]]:
    """Features with corrected p < 0.05 by family, one set for each pair of groups."""
    found, notes = comparisons(people, group_by, covariates)
    if notes:
        raise RuntimeError("; ".join(notes))
    by_family: dict[str, list[set[tuple[str, str]]]] = {}
    for family, columns in families(values).items():
        by_family[family] = []
        for comparison in found:
            if comparison.kind != "groups":
                continue
            table = compare_features(
                values[columns],
                comparison,
                correction="max",
                n_permutations=n_permutations,
                seed=seed,
            )
            hits = table[table["p_corrected"] < ALPHA]
            by_family[family].append(set(zip(hits["measure"], hits["network"], strict=True)))
    return by_family


def harmonised(values: pd.DataFrame, people: pd.DataFrame, n_folds: int | None) -> pd.DataFrame:
    """After ComBat, each measure a pool; fitted in folds if asked."""
    covariates = pd.get_dummies(people[list(PROTECTED)], drop_first=True, dtype=float)
    everyone = np.arange(len(people))
    folds = [(everyone, everyone)]
    if n_folds is not None:
        strata = people["site"] + people["group"]
        folds = list(StratifiedKFold(n_folds).split(values, strata))
    result = values.copy()
    for training, held_out in folds:
        combat = Combat.fit(
            values.iloc[training],
            people["site"].iloc[training],
            covariates.iloc[training],
            pools=values.columns.get_level_values("measure"),
        )
        result.iloc[held_out] = combat.apply(
            values.iloc[held_out], people["site"].iloc[held_out], covariates.iloc[held_out]
        )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--per-group", type=int, default=20)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    n_pairs = asked.sites * (asked.sites - 1) // 2
    # Whether something was found, of each comparison.
    known: dict[str, list[bool]] = defaultdict(list)
    false: dict[tuple[str, str], list[bool]] = defaultdict(list)
    sites: dict[tuple[str, str], list[bool]] = defaultdict(list)
    site_studies: list[bool] = []
    for run in range(asked.runs):
        seed = asked.seed + run
        for study, effect in (("one dwell, one transition", STUDY_EFFECT), ("none", None)):
            made = simulate_features(asked.per_group, asked.sites, effect=effect, seed=seed)
            features, people = made.values, made.people  # noqa: PD011
            hits = significant(
                features, people, "group", (*COVARIATES, "site"), asked.permutations, seed
            )
            everything = set().union(*(found for pair in hits.values() for found in pair))
            for feature in sorted(made.known):
                known[" ".join(feature)].append(feature in everything)
            for family, columns in families(features).items():
                if set(columns) - made.changed:
                    false[study, family].append(bool(hits[family][0] - made.changed))
            if effect is None:
                continue
            tables = {
                "as they are": features,
                "ComBat": harmonised(features, people, None),
                "ComBat, held out": harmonised(features, people, FOLDS),
            }
            for name, values in tables.items():
                pairs = significant(values, people, "site", PROTECTED, asked.permutations, seed)
                for family, found in pairs.items():
                    changed = not made.site_changed.isdisjoint(families(features)[family])
                    where = "iou_mean" if changed else "families that sites leave alone"
                    sites[name, where].extend(bool(hit) for hit in found)
            site_studies.append(any(sites["as they are", "iou_mean"][-n_pairs:]))
        print(f"{run + 1} of {asked.runs} studies", file=sys.stderr, flush=True)

    passed = True

    def row(title: str, what: str, outcomes: list[bool], least: int, most: int) -> None:
        nonlocal passed
        good = least <= sum(outcomes) <= most
        passed &= good
        allowed = f"at least {least}" if least else f"at most {most}"
        verdict = "yes" if good else "**no**"
        print(f"| {title} | {what} | {sum(outcomes)} of {len(outcomes)} | {allowed} | {verdict} |")

    def allowed_false(outcomes: list[bool], together: int = 1) -> int:
        """At most, with so many outcomes that are not independent of each other."""
        return together * int(binom.ppf(0.95, len(outcomes) // together, ALPHA))

    print("| what | where | found | must be | it is |")
    print("|---|---|---|---|---|")
    for what, outcomes in known.items():
        row("known difference", what, outcomes, int(np.ceil(POWER * len(outcomes))), len(outcomes))
    for (study, family), outcomes in false.items():
        row(f"false, groups differ in {study}", family, outcomes, 0, allowed_false(outcomes))
    row(
        "studies in which sites differ, as they are",
        "iou_mean",
        site_studies,
        int(np.ceil(POWER * len(site_studies))),
        len(site_studies),
    )
    for (name, where), outcomes in sites.items():
        if (name, where) != ("as they are", "iou_mean"):
            most = allowed_false(outcomes, n_pairs)
            row(f"pairs of sites that differ, {name}", where, outcomes, 0, most)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
