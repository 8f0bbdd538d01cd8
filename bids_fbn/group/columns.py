"""What the columns of the group's tables hold, for their sidecars."""

from __future__ import annotations

from bids_fbn.bids.writing import Columns

__all__ = ["MAPS", "MAP_TESTS", "TESTS", "TRANSITIONS"]

TESTS: Columns = {
    "comparison": {"Description": "Name of the comparison, as in names of files"},
    "kind": {
        "Description": "What is compared",
        "Levels": {
            "groups": "two groups of participants",
            "covariate": "a metric and a number",
            "paired": "two sessions of the same participants",
        },
    },
    "term": {"Description": "What the estimate is of"},
    "formula": {"Description": "The model, in the notation of Wilkinson and Rogers (1973)"},
    "measure": {"Description": "What was measured"},
    "network": {"Description": "Network, two of them (`from > to`), or `all`"},
    "n": {"Description": "Participants with a value"},
    "estimate": {
        "Description": "Adjusted difference of means (second minus first group or session), or "
        "slope; in the units of the measure"
    },
    "effect": {
        "Description": "Which effect size",
        "Levels": {
            "hedges_g": "adjusted difference over residual standard deviation, corrected for "
            "small groups",
            "partial_r": "partial correlation, given the other terms",
            "d_z": "mean of the differences over their standard deviation",
        },
    },
    "effect_size": {"Description": "Its value"},
    "ci_low": {"Description": "Lower end of its 95 % confidence interval"},
    "ci_high": {"Description": "Upper end of its 95 % confidence interval"},
    "t": {"Description": "t of the tested term"},
    "p": {"Description": "Two-sided, by permutation"},
    "p_corrected": {
        "Description": "Corrected over the networks of a measure; over all measures that are of "
        "no single network; over all transitions"
    },
}
TRANSITIONS: Columns = {
    "group": {"Description": "Group, or `all` participants"},
    "origin": {"Description": "State that is left"},
    "destination": {"Description": "State of the next step; the same: it stays"},
    "n_participants": {"Description": "Participants that were ever in the origin"},
    "probability": {"Description": "Mean over these participants"},
    "ci_low": {"Description": "2.5th percentile over resampled participants"},
    "ci_high": {"Description": "97.5th percentile over resampled participants"},
}
MAPS: Columns = {
    "network": {"Description": "Network of the template set"},
    "iou": {
        "Description": "IoU of the mean map with its template, as many voxels as that has. Says "
        "how alike they look, not that the network is there: the templates chose the maps"
    },
    "dice": {"Description": "Dice coefficient of the same supports"},
    "r": {"Description": "Pearson correlation over voxels of mean map and template"},
    "p": {
        "Description": "Whether the network is there in any run: p of the single runs, combined "
        "by Fisher's method"
    },
    "p_corrected": {"Description": "The same, corrected over the networks (Holm)"},
    "p_lowest": {
        "Description": "Lowest corrected p that the surrogates of the runs allow, were all "
        "networks as clear as can be"
    },
    "n_runs": {"Description": "Runs that have a p"},
    "standing": {
        "Description": "Share of these runs with p < 0.05, not corrected; chance gives 0.05"
    },
    "n_participants": {"Description": "Participants whose maps are in the mean"},
}
MAP_TESTS: Columns = {
    "comparison": TESTS["comparison"],
    "term": TESTS["term"],
    "formula": TESTS["formula"],
    "network": MAPS["network"],
    "n": {"Description": "Participants"},
    "n_voxels": {"Description": "Voxels that were tested: those that all participants cover"},
    "n_below": {"Description": "Voxels with corrected p < 0.05"},
    "peak_t": {"Description": "t of the voxel with the lowest p"},
    "peak_x": {"Description": "Its place, MNI", "Units": "mm"},
    "peak_y": {"Description": "Its place, MNI", "Units": "mm"},
    "peak_z": {"Description": "Its place, MNI", "Units": "mm"},
    "p_corrected": {"Description": "Its p, by the maximum over voxels of this network"},
}
