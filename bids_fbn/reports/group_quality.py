"""Motion and volumes left of a group, beside its results; participants far from the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bids_fbn.group.tables import of_kind
from bids_fbn.reports.group_page import GroupPage, GroupSection, combine_runs
from bids_fbn.reports.group_strips import measure_label
from bids_fbn.reports.templating import fixed, number, percent

__all__ = ["motion_limit", "outliers", "quality_of_effects", "robust_z"]

# Robust standard deviations beyond which a value is named.
_FAR = 3.0
# The median absolute deviation of a normal distribution is 1 / 1.4826 of its standard deviation.
_MAD_TO_SD = 1.4826
# Share of volumes left below which a participant is named.
_FEW = 0.5


def robust_z(values: pd.DataFrame) -> pd.DataFrame:
    """Distance of each value from the median of its column, in 1.4826 × MAD.

    NaN in columns in which more than half are the same.
    """
    distance = values - values.median()
    spread = _MAD_TO_SD * distance.abs().median()
    return distance / spread.where(spread > 0)


def motion_limit(page: GroupPage) -> float:
    """Mean FD, mm, over which a participant is named; NaN where there is no spread."""
    motion = page.quality_of_participants["fd_mean"].dropna()
    spread = _MAD_TO_SD * (motion - motion.median()).abs().median()
    return float(motion.median() + _FAR * spread) if spread > 0 else float("nan")


def outliers(page: GroupPage) -> list[dict[str, Any]]:
    """Participants beyond 3 robust standard deviations, by motion first, then in most measures.

    Transitions are left out: most are 0, so that any other value lies far out.
    """
    far: dict[str, list[tuple[float, str]]] = {name: [] for name in page.participants}
    tested = dict.fromkeys(page.participants, 0)
    for section in page.sections:
        wide = section.features
        kept = [column for column in wide.columns if not column[0].startswith("transition_p")]
        kept = [column for column in kept if column[0] != "transition_count"]
        distances = robust_z(wide[kept])
        for name, n in distances.notna().sum(axis=1).items():
            tested[str(name)] += int(n)
        values = distances.to_numpy()
        for i, j in zip(*np.nonzero(np.abs(values) > _FAR), strict=True):
            measure, network = kept[j]
            what = measure_label(measure) + ("" if network == "all" else f", {network}")
            if len(page.sections) > 1:
                what += f" ({section.title})"
            far[str(wide.index[i])].append((float(values[i, j]), what))
    limit = motion_limit(page)
    quality = page.quality_of_participants
    rows: list[dict[str, Any]] = []
    for name, found in far.items():
        motion, share = quality.loc[name, "fd_mean"], quality.loc[name, "share_kept"]
        reasons = [f"mean FD {fixed(motion, 2)} mm"] if motion > limit else []
        reasons += [f"only {percent(share)} of the volumes left"] if share < _FEW else []
        if not found and not reasons:
            continue
        found.sort(key=lambda item: -abs(item[0]))
        rows.append(
            {
                "name": name,
                "quality": "; ".join(reasons),
                "motion": float(np.nan_to_num(motion)),
                "n": len(found),
                "of": tested[name],
                "worst": "; ".join(
                    f"{what} ({'+' if z > 0 else '−'}{abs(z):.1f})" for z, what in found[:3]
                ),
            }
        )
    return sorted(
        rows, key=lambda row: (not row["quality"], -row["motion"] if row["quality"] else -row["n"])
    )


def quality_of_effects(section: GroupSection, page: GroupPage) -> list[dict[str, str]]:
    """Motion and volumes left of the participants behind each test, a row for each test.

    Of those who have a value of the measure; by group or by session where two are compared.
    """
    features = section.features.reindex(page.participants)
    known = {column: features[column].notna().to_numpy() for column in features.columns}
    everyone = np.ones(len(page.participants), dtype=bool)
    members = _members(section, page)
    rows = []
    for test in section.tests.itertuples(index=False):
        has_value = known.get((test.measure, test.network), everyone)
        parts = members(test.kind, section.levels.get(str(test.comparison)))
        motion = [_mean(of_part["fd_mean"], has_value & chosen) for of_part, chosen in parts]
        share = [_mean(of_part["share_kept"], has_value & chosen) for of_part, chosen in parts]
        rows.append(
            {
                "motion": " / ".join("n/a" if np.isnan(m) else fixed(m, 2) for m in motion),
                "kept": " / ".join(map(percent, share)),
            }
        )
    return rows


def _members(section: GroupSection, page: GroupPage) -> Any:
    """(kind, levels) → [(quality by participant, who belongs)], one for each level."""
    runs = of_kind(page.quality, section.entities)
    whole = combine_runs(runs).reindex(page.participants)
    everyone = np.ones(len(whole), dtype=bool)
    sessions = (
        {
            f"ses-{session}": combine_runs(of_session).reindex(page.participants)
            for session, of_session in runs.groupby("session", observed=True)
        }
        if "session" in runs
        else {}
    )

    def members(
        kind: str, levels: tuple[str, str] | None
    ) -> list[tuple[pd.DataFrame, np.ndarray]]:
        if levels is None:
            return [(whole, everyone)]
        if kind == "paired" and all(level in sessions for level in levels):
            return [(sessions[level], everyone) for level in levels]
        if page.groups is None:
            return [(whole, everyone)]
        return [(whole, (page.groups == level).to_numpy()) for level in levels]

    return members


def _mean(values: pd.Series, chosen: np.ndarray) -> float:
    kept = values.to_numpy(dtype=float)[chosen]
    return float(np.nanmean(kept)) if np.isfinite(kept).any() else float("nan")


def quality_by_group(page: GroupPage) -> list[dict[str, str]]:
    """A row for each group, and one for all."""
    quality = page.quality_of_participants
    chosen = [("all", quality)]
    if page.groups is not None:
        levels = sorted(page.groups.dropna().unique())
        chosen = [(level, quality[page.groups == level]) for level in levels] + chosen
    return [
        {
            "name": name,
            "n": number(len(rows)),
            "motion": _spread(rows["fd_mean"], 2),
            "kept": percent(float(rows["share_kept"].mean())),
            "minutes": _spread(rows["kept_seconds"] / 60, 1),
        }
        for name, rows in chosen
    ]


def _spread(values: pd.Series, decimals: int) -> str:
    known = values.dropna()
    if known.empty:
        return "n/a"
    mean = fixed(float(known.mean()), decimals)
    return mean if len(known) < 2 else f"{mean} ± {fixed(float(known.std()), decimals)}"
