"""What the columns of the tables hold, for their sidecars."""

from __future__ import annotations

from bids_fbn.bids.writing import Columns

__all__ = ["METRICS", "ONSET", "OUTLIERS", "STATE_METRICS"]

ONSET = {
    "Description": "Centre of the volume or window, from the start of the original run",
    "Units": "s",
}

OUTLIERS: Columns = {
    "framewise_displacement": {
        "Description": "Framewise displacement (Power et al. 2012); n/a where not known",
        "Units": "mm",
    },
    "dummy_scan": {"Description": "1: before the scanner's steady state"},
    "high_motion": {"Description": "1: framewise displacement over --fd-thresh"},
    "scrubbing": {"Description": "1: left out by nilearn's scrubbing strategy"},
    "empty_volume": {"Description": "1: the volume holds no signal"},
    "left_out": {"Description": "1: left out for any of these reasons"},
}

STATE_METRICS: Columns = {
    "state": {"Description": "Network, or `all` for what belongs to no single one"},
    "fractional_occupancy": {"Description": "Share of the time steps that have a state"},
    "visits": {"Description": "Unbroken stretches in the state"},
    "dwell_mean": {
        "Description": "Mean length of a visit; n/a if there was none",
        "Units": "s",
    },
    "dwell_median": {
        "Description": "Median length of a visit; n/a if there was none",
        "Units": "s",
    },
    "without_state": {"Description": "Share of the time steps with a window that have no state"},
    "switching_rate": {
        "Description": "Changes of state per minute of time steps that have a state",
        "Units": "1/min",
    },
    "occupancy_entropy": {"Description": "Entropy of the occupancies", "Units": "bit"},
    "transition_entropy": {
        "Description": "Entropy of the rows of the transition matrix, weighted by departures",
        "Units": "bit",
    },
}

METRICS: Columns = {
    "network": {"Description": "Network of the template set"},
    "weak": {
        "Description": "1: in no time step did the network's own candidate reach the state "
        "threshold; its map is the best single candidate, not a mean"
    },
    "steps_present": {
        "Description": "Time steps in which the network's own candidate (one-to-one assignment) "
        "reached the state threshold"
    },
    "fraction_present": {"Description": "The same as a share of the time steps with a window"},
    "iou_mean": {"Description": "Mean over time steps of the IoU series"},
    "iou_best_of_all": {
        "Description": "Highest IoU of any candidate of any time step (the published figure); "
        "grows with n_candidates, whether or not there is a network"
    },
    "n_candidates": {"Description": "Candidate maps over which iou_best_of_all is the highest"},
    "iou_previous_mean": {"Description": "Mean IoU with the step before"},
    "iou_window_apart_mean": {"Description": "Mean IoU with the step a full window before"},
    "iou": {"Description": "IoU of the FBN map with the template, as many voxels as it has"},
    "dice": {"Description": "Dice coefficient of the same supports"},
    "r": {"Description": "Pearson correlation over voxels of FBN map and template"},
    "iou_fixed": {
        "Description": "IoU of the FBN map with the template at z > 1.7 (about what the published "
        "3.6 over the whole box comes to within the brain)"
    },
    "dice_fixed": {"Description": "Dice coefficient at the same threshold"},
    "peak_x": {"Description": "Highest voxel of the FBN map, MNI", "Units": "mm"},
    "peak_y": {"Description": "Highest voxel of the FBN map, MNI", "Units": "mm"},
    "peak_z": {"Description": "Highest voxel of the FBN map, MNI", "Units": "mm"},
    "peak_value": {"Description": "Its value", "Units": "z"},
    "peak_place": {"Description": "Name of the place of that voxel, n/a if it has none"},
}
