"""What the columns of the tables hold, for their sidecars."""

from __future__ import annotations

from bids_fbn.bids.writing import Columns

__all__ = ["EVIDENCE", "METRICS", "ONSET", "OUTLIERS", "STATE_METRICS"]

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
        "threshold; its map is not a mean, but that candidate in the step in which it overlaps "
        "most"
    },
    "steps_present": {
        "Description": "Time steps in which the network's own candidate (one-to-one assignment) "
        "reached the state threshold"
    },
    "fraction_present": {"Description": "The same as a share of the time steps with a window"},
    "iou_mean": {"Description": "Mean over time steps of the IoU series"},
    "iou_search": {
        "Description": "IoU of the map that a one-to-one assignment gives to the template, among "
        "an equal budget of maps: those that explain most of the run, whatever the method"
    },
    "coherence": {
        "Description": "Pearson correlation of the courses that two halves of the network's "
        "voxels give (tanh of the mean z of four chessboards); of models whose maps are given "
        "before the run is seen (dualregression, udr), else n/a"
    },
    "p": {
        "Description": "p that the network is there: of coherence if it has one, else of "
        "iou_search; the highest of those by its nulls, the networks turned elsewhere in the "
        "brain in two ways and runs of noise; the evidence table has all. Of stcnn, which does "
        "not search, that by runs of noise"
    },
    "p_corrected": {"Description": "The same, corrected over the templates by the maximum"},
    "iou_other_half": {
        "Description": "IoU with the template of the map that is most like the chosen one in the "
        "half of the run in which it was not chosen; mean of both ways"
    },
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

EVIDENCE: Columns = {
    "claim": {
        "Description": "What the row is about",
        "Levels": {
            "network": "that a network is there",
            "fit": "that the maps explain the data",
            "dynamics": "that something changes over time",
            "task": "that a network follows the task",
        },
    },
    "measure": {
        "Description": "What was measured",
        "Levels": {
            "iou_search": "IoU of the template with the map that a one-to-one assignment gives "
            "it, among the budget of maps that explain most of the run; of models that know their "
            "networks, with the mean map of the network",
            "coherence": "correlation of the courses that two halves of the network's voxels "
            "give, all networks fitted at once in each half: blocks of 45 mm like a chessboard, "
            "four positions of it, tanh of the mean z",
            "iou_selected": "the same in the half of the run in which the map was chosen",
            "iou_other_half": "IoU of the template with the map of the other half that is most "
            "like the chosen one; mean of both ways",
            "r_other_half": "Pearson correlation over voxels of the same two",
            "reproducibility": "correlation over voxels of the chosen map with its like",
            "budget": "maps of a half that were searched",
            "held_out_variance": "share of the variance of one half that the budget of maps of "
            "the other explains by least squares; mean of both ways",
            "iou_previous": "mean IoU of a network's own candidate with that of the step before",
            "iou_window_apart": "the same with the last step that shares no volume",
            "iou_variation": "standard deviation over time of the IoU with the template",
            "amplitude_variation": "standard deviation over time of the amplitude",
            "switching_rate": "changes of state per minute of time steps that have a state",
            "dwell_mean": "mean length of a visit to a state, s",
            "occupancy_entropy": "entropy of the occupancies, bit",
            "transition_entropy": "entropy of the transitions, bit",
            "states_visited": "number of states that were visited",
            "without_state": "share of the time steps with a window that have no state",
            "r_course": "correlation of the network's course with the expected response",
            "r_iou": "correlation of its IoU over time with the expected response",
            "r_amplitude": "the same of its amplitude",
        },
    },
    "network": {"Description": "Network, or `all`"},
    "condition": {"Description": "Condition of the task; n/a for what is not about a task"},
    "observed": {"Description": "The measure, in its units"},
    "null_mean": {"Description": "Its mean under the null"},
    "null_low": {"Description": "2.5th percentile under the null"},
    "null_high": {"Description": "97.5th percentile under the null"},
    "p": {
        "Description": "Share of the surrogates, the observed one among them, that are as "
        "extreme; of claim `network` one-sided, else two-sided"
    },
    "p_corrected": {
        "Description": "The same by the maximum: over the networks; of `dynamics` and network "
        "`all` over the measures; of `task` over networks and conditions"
    },
    "n_surrogates": {"Description": "Surrogates that have a value"},
    "null": {
        "Description": "Of what the surrogates are",
        "Levels": {
            "turned": "the networks, turned all alike about the middle of the brain by more than "
            "a radian, about any axis, in coordinates by their standard deviations along x, y and "
            "z; not for models that learn networks by name",
            "mirrored": "likewise, each hemisphere about its own middle, one as the mirror image "
            "of the other",
            "fields": "sets of random maps as smooth and as correlated as the candidates "
            "(--surrogate-maps)",
            "noise": "runs of noise as smooth as the run, with its mean spectrum and the mean "
            "signals of its tissues, cleaned like it, to which the method was applied in the same "
            "way",
            "phase": "random phases, the same for all voxels or networks: static correlation; a "
            "run's within what cleaning has left of it",
            "var": "a stationary Gaussian autoregressive model of the run, cleaned like it",
        },
    },
}
