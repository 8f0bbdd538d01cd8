"""Words on how the group level was computed, for its report."""

from __future__ import annotations

from bids_fbn.config import Config
from bids_fbn.group.collect import Collected

__all__ = ["paragraphs"]


def paragraphs(config: Config, collected: Collected) -> list[str]:
    """What was done, one subject each.

    Parameters
    ----------
    config : Config
    collected : Collected
    """
    asked = config.group
    people = len({results.run.subject for cell in collected.cells for results in cell.results})
    lines = [
        f"Results of {people} participants, each computed with the same settings. A participant's "
        "runs of one kind were averaged first, so that each participant counts once.",
        "Maps of the group are the mean over participants, in each voxel over those whose runs "
        "cover it; consistency is the share of participants among whose highest voxels, as many "
        "as the template has, it is. Whether a network is there at all is asked of the runs: the "
        "p-values of the runs, each against its own nulls, were combined by Fisher's method and "
        "corrected over networks after Holm (1979). The overlap of the mean map with the template "
        "is no evidence of it, since the template chose the maps that the mean is of.",
        "Transition probabilities are means over the participants that were in the state at all; "
        f"intervals are percentiles over {asked.n_bootstrap:,} resampled groups of participants.",
    ]
    if asked.combat:
        fitted = (
            f"the participants with {asked.group_by} {asked.combat_fit_on}"
            if asked.combat_fit_on
            else "all participants"
        )
        lines.append(
            f"The effects of {asked.combat} were estimated in {fitted} by ComBat (Johnson et al. "
            "2007; Fortin et al. 2018), with groups and covariates kept, each measure pooled over "
            "its networks, and taken out of what was compared; the tables of metrics have the "
            "values as they were."
        )
    if asked.group_by or asked.covariates:
        over = (
            "the maximum over the networks of a measure (Westfall & Young 1993)"
            if asked.correction == "max"
            else "the false discovery rate over the networks of a measure (Benjamini & Hochberg "
            "1995)"
        )
        lines.append(
            "Groups and covariates were compared by linear models with the permutations of "
            f"Freedman and Lane (1983), {asked.n_permutations:,} of them, two-sided, corrected by "
            f"{over}; maps voxel by voxel by nilearn's permuted OLS, by the maximum over the "
            "voxels of a network. Effect sizes are Hedges' g, or partial correlations, with 95 % "
            f"intervals. Permutations start from the random seed {config.compute.random_seed}."
        )
    return lines
