"""``group --train``: one model for all participants, and scores of those it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from bids_fbn.bids.group_naming import group_table_path
from bids_fbn.bids.naming import model_weights_path
from bids_fbn.bids.writing import GENERATED_BY, Columns, write_bidsignore, write_table
from bids_fbn.config import TRAINED, Config
from bids_fbn.errors import InputError, RunError
from bids_fbn.nulls.pvalues import network_p
from bids_fbn.train import fit_shared, signals_below

if TYPE_CHECKING:
    from bids_fbn.evidence import Method
    from bids_fbn.signal.signals import Signals

__all__ = ["train_shared"]

logger = logging.getLogger(__name__)

_SCORES: Columns = {
    "participant_id": {"Description": "Participant, never trained on"},
    "run": {"Description": "Name of the run"},
    "network": {"Description": "Network, or `all` for what belongs to none"},
    "iou_best_of_all": {"Description": "Highest IoU of any candidate: a search, not an estimate"},
    "iou_search": {"Description": "IoU of the map assigned to it among an equal budget of maps"},
    "coherence": {"Description": "r of the courses that two halves of its voxels give (udr)"},
    "p": {"Description": "p of coherence, or of iou_search: the highest of those by its nulls"},
    "p_corrected": {"Description": "The same, corrected over the networks by the maximum"},
    "iou_other_half": {
        "Description": "IoU in the half of the run in which the map was not chosen"
    },
    "held_out_variance": {
        "Description": "Share of the variance of one half that the maps of the other explain"
    },
}


def train_shared(config: Config) -> int:
    """Train the asked model on the cleaned runs of a work folder; returns the exit code.

    The weights go to ``models/`` of the output dataset, the scores of the participants held out to
    ``group/``.

    Raises
    ------
    InputError
        If more than one model is asked for, or one that is not trained; if there are no runs.
    """
    from bids_fbn.evidence import Method
    from bids_fbn.models.compute import choose_compute
    from bids_fbn.models.sampling import split_participants
    from bids_fbn.networks.templates import load_templates

    faults = config.models.idle()
    if len(config.models.model) != 1 or not TRAINED.issuperset(config.models.model):
        faults.append(f"--train: name one --model of {', '.join(sorted(TRAINED))}")
    if config.models.weights:
        faults.append("--weights: has no effect with --train, which makes them")
    if faults:
        raise InputError(*faults)
    (name,) = config.models.model
    runs = signals_below([config.compute.work_dir])
    share = config.group.held_out
    try:
        seen, held_out = split_participants(runs, share, config.compute.random_seed)
    except ValueError as error:
        raise InputError(f"--held-out {share:g}: {error}") from None
    options = config.compute
    compute = choose_compute(options.device, options.precision, options.omp_nthreads)
    weights = config.output_dir / model_weights_path(name)
    write_bidsignore(config.output_dir)
    weights.parent.mkdir(parents=True, exist_ok=True)
    logger.info("%s: %d runs to train on, %d held out", name, len(seen), len(held_out))
    # Before hours of training: a template set that cannot be had is a fault of the call.
    templates = load_templates(config.networks.templates, runs[0].grid)
    model = fit_shared(config, seen, compute, weights, held_out=[run.name for run in held_out])
    print(f"weights: {weights}")
    if held_out:
        method = Method.of(model, config, templates, compute)
        # What it is applied to it has not been trained on.
        method = replace(method, refit=False)
        table = _scores(method, held_out, config)
        path = config.output_dir / group_table_path(f"{name.replace('-', '')}heldout", {})
        facts = {
            "Description": "Scores of participants that the shared model was not trained on",
            "TrainedOn": [run.name for run in seen],
            "GeneratedBy": GENERATED_BY,
        }
        write_table(path, table, _SCORES, facts)
        print(f"scores of {table['participant_id'].nunique()} participants held out: {path}")
    return 0


def _scores(method: Method, runs: Sequence[Signals], config: Config) -> pd.DataFrame:
    from bids_fbn.evidence import half_evidence, network_evidence
    from bids_fbn.evidence.table import ALL, COLUMNS
    from bids_fbn.models.sampling import participant_of

    asked = config.nulls
    rows: list[dict[str, Any]] = []
    for run in runs:
        logger.info("%s: scores", run.name)
        name = {"participant_id": f"sub-{participant_of(run)}", "run": run.name}
        try:
            networks, _ = method.networks(method.model, run)
        except RunError as error:
            logger.warning("%s: no scores: %s", run.name, error)
            continue
        search = pd.DataFrame(
            network_evidence(method, run, asked.n_surrogates, asked.n_surrogate_maps),
            columns=list(COLUMNS),
        )
        observed = search.pivot_table("observed", "network", "measure", "first", dropna=False)
        observed = observed.reindex(columns=["iou_search", "coherence"])
        p, corrected = network_p(search, "p"), network_p(search)
        half = half_evidence(method, run)
        for k, network in enumerate(method.templates.networks):
            rows.append(
                {
                    **name,
                    "network": network,
                    "iou_best_of_all": networks.best_of_all[k],
                    **observed.loc[network],
                    "p": p[network],
                    "p_corrected": corrected[network],
                    "iou_other_half": half.scores.iou[k] if half else float("nan"),
                }
            )
        if half:
            rows.append({**name, "network": ALL, "held_out_variance": half.held_out_variance})
    return pd.DataFrame(rows, columns=list(_SCORES))
