"""A small output dataset made of synthetic arrays, for pages and texts about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pages import NETWORKS, SPACE

from bids_fbn import evidence
from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.outputs import NetworkResults, RunWriter
from bids_fbn.bids.writing import update_dataset_description
from bids_fbn.config import Config
from bids_fbn.networks.dynamics import RunNetworks
from bids_fbn.networks.maps import Peak, SupportRule, zscore_maps
from bids_fbn.networks.overlap import overlap_with_templates
from bids_fbn.networks.states import StateRule, summarize_states
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.windows import Steps, lay_windows

TR = 2.0
CHANGES = ("iou_window_apart", "switching_rate", "dwell_mean")


def evidence_table(
    n_surrogates: int = 99,
    *,
    beyond: tuple[str, ...] = NETWORKS,
    against: tuple[str, ...] = (),
    changes: tuple[str, ...] = (),
    over_time: bool = True,
    task: tuple[str, ...] | None = None,
    coherence: bool = False,
) -> pd.DataFrame:
    """The table of a run in which some networks, measures of change and couplings stand.

    What stands has the least p that so many surrogates allow, the others 0.6. By the nulls in
    `against` no network stands. With `coherence` it is that which networks stand by, and their
    overlap is untested.
    """
    null = {"null_mean": 0.15, "null_low": 0.1, "null_high": 0.2, "n_surrogates": n_surrogates}

    def row(claim: str, measure: str, network: str, stands: bool, **more: Any) -> dict[str, Any]:
        p = (1 / (n_surrogates + 1) if stands else 0.6) if n_surrogates else np.nan
        tested = {"p": p, "p_corrected": p, **(null if n_surrogates else {"n_surrogates": 0})}
        observed = 0.4 if stands else 0.16
        return {
            "claim": claim,
            "measure": measure,
            "network": network,
            "observed": observed,
            **tested,
            **more,
        }

    claim = "coherence" if coherence else "iou_search"
    rows = [
        row("network", claim, name, name in beyond and null not in against, null=null)
        for null in ("turned", "mirrored", "noise")
        for name in NETWORKS
    ]
    if coherence:
        rows += [
            {"claim": "network", "measure": "iou_search", "network": name, "observed": 0.9}
            for name in NETWORKS
        ]
    for measure in ("iou_other_half", "reproducibility"):
        rows += [
            {"claim": "network", "measure": measure, "network": name, "observed": 0.31}
            for name in NETWORKS
        ]
    rows += [
        {"claim": "fit", "measure": measure, "network": "all", "observed": value}
        for measure, value in (("budget", 20), ("held_out_variance", 0.42))
    ]
    if over_time:
        rows += [row("dynamics", m, "all", m in changes, null="phase") for m in CHANGES]
        rows += [row("dynamics", CHANGES[0], n, False, null="phase") for n in NETWORKS]
    for measure, stand in (("r_course", task), ("r_iou", ())):
        if task is not None:
            rows += [
                row("task", measure, n, n in (stand or ()), null="phase", condition="faces")
                for n in NETWORKS
            ]
    return pd.DataFrame(rows, columns=list(evidence.COLUMNS))


@dataclass
class Study:
    """An output dataset that grows run by run."""

    out: Path
    grid: Grid
    templates: TemplateSet

    def config(self, **sections: Any) -> Config:
        """The settings that the dataset was made with."""
        return Config(bids_dir=self.out.parent / "in", output_dir=self.out, **sections)

    def add(
        self,
        run: str = "1",
        model: str = "stca",
        *,
        n_volumes: int = 60,
        window: int | None = 10,
        level: float = 0.5,
        weak: tuple[int, ...] = (),
        left_out: tuple[int, ...] = (),
        displacement: bool = True,
        session: str | None = None,
        subject: str = "01",
        weighed: pd.DataFrame | None = None,
        amplitude_sd: float | None = None,
    ) -> None:
        """Write a run: the network that is present takes turns with the others.

        Parameters
        ----------
        level : float
            IoU of the network that is present; the others lie at a third of it.
        weak : tuple of int
            Networks that never are present.
        left_out : tuple of int
            Volumes left out.
        window : int or None
            Volumes; None for a model that takes the whole run at once.
        weighed : DataFrame, optional
            The evidence; by default all networks stand and nothing changes over time.
        """
        rng = np.random.default_rng(int(run))
        n_networks, n_voxels = self.templates.maps.shape
        entities = {"subject": subject, "session": session, "task": "rest", "run": run}
        bold = BoldRun(
            {key: value for key, value in entities.items() if value},
            Path("bold.nii.gz"),
            TR,
            SPACE,
            n_volumes,
        )
        writer = RunWriter(self.out, bold, self.grid, self.templates, "bids:in:bold.nii.gz")
        kept = np.setdiff1d(np.arange(n_volumes), left_out)
        steps = (
            lay_windows(kept, n_volumes, TR, window)
            if window
            else Steps(np.array([0]), np.array([n_volumes]), len(kept), n_volumes, TR * n_volumes)
        )

        iou = level / 3 + 0.02 * rng.random((len(steps), n_networks))
        able = [p for p in range(n_networks) if p not in weak]
        chosen = np.repeat(rng.choice(able, len(steps)), 4)[: len(steps)]
        iou[np.arange(len(steps)), chosen] = level + 0.1 * rng.random(len(steps))
        iou[~steps.valid] = np.nan
        present = np.nan_to_num(iou >= 0.3).sum(axis=0)
        maps = zscore_maps(self.templates.maps + 0.6 * rng.standard_normal((n_networks, n_voxels)))
        networks = RunNetworks(
            maps=maps,
            membership=self.templates.supports.astype(float),
            present=present,
            iou=iou,
            dice=2 * iou / (1 + iou),
            r=iou,
            iou_previous=iou,
            iou_window_apart=np.full_like(iou, np.nan),
            best_of_all=np.nan_to_num(iou).max(axis=0),
            n_candidates=8 * len(steps),
            amplitude=None if amplitude_sd is None else 2 * iou,
            amplitude_sd=None if amplitude_sd is None else np.full(n_networks, amplitude_sd),
        )
        states = networks.states(StateRule())
        found = overlap_with_templates(
            maps, self.templates.maps, self.templates.supports, SupportRule()
        )
        own = np.arange(n_networks)
        courses = rng.standard_normal((len(kept), n_networks)).cumsum(axis=0)
        writer.write_networks(
            NetworkResults(
                model=model,
                networks=networks,
                steps=steps,
                states=states,
                summary=summarize_states(states, steps.valid, n_networks, steps.seconds),
                courses=courses,
                peaks=[Peak(0.0, -20.0, 10.0, 3.0, "")] * n_networks,
                final_overlap=pd.DataFrame(
                    {
                        "iou": found.iou[own, own],
                        "dice": found.dice[own, own],
                        "r": found.r[own, own],
                        "iou_fixed": found.iou[own, own],
                        "dice_fixed": found.dice[own, own],
                    },
                    index=list(NETWORKS),
                ),
                evidence=evidence_table(over_time=window is not None)
                if weighed is None
                else weighed,
            ),
            {
                "Method": model,
                "Preset": "corrected",
                "Candidates": "channels",
                "CandidatesPerStep": 8,
                "Window": window,
                "Stride": 1,
                "Parameters": 1000,
                "Recipe": (
                    {"learning_rate": 1e-3, "epochs": 4, "batch": 1, "whole_box": False}
                    if model in ("stca", "scaae")
                    else {"components": 8, "window": window}
                ),
                "Training": {
                    "Runs": [bold.prefix],
                    "Seed": 0,
                    "Device": "CPU, 2 threads",
                    "Precision": "fp32",
                    "TorchVersion": "2.6.0",
                    "LossCurve": {
                        "Step": [10.0 * step for step in range(1, 80)],
                        "Loss": list(0.8 + 0.4 * np.exp(-np.arange(79) / 15)),
                    },
                },
                "Templates": self.templates.name,
                "TemplateRule": self.templates.support_rule,
                "Networks": list(self.templates.networks),
                "SupportRule": str(SupportRule()),
                "StateThreshold": 0.3,
                "StateMeasure": "iou" if amplitude_sd is None else "amplitude",
                **({} if amplitude_sd is None else {"StateCertainty": 0.5}),
                "Grid": {
                    "Space": SPACE,
                    "ResolutionMM": self.grid.resolution,
                    "Voxels": n_voxels,
                    "MaskSource": "a ball",
                },
                "ConfigurationHash": "0123456789abcdef",
            },
            kept,
            n_volumes,
        )
        outliers = pd.DataFrame(
            {"dummy_scan": np.zeros(n_volumes), "high_motion": np.zeros(n_volumes)}, dtype=int
        )
        outliers.loc[list(left_out), "high_motion"] = 1
        moved = rng.gamma(2, 0.06, n_volumes)
        moved[list(left_out)] += 0.7
        moved[0] = np.nan
        writer.write_signal(
            pd.DataFrame({"csf": rng.standard_normal(n_volumes)}),
            outliers,
            moved if displacement else None,
            {
                "n_volumes": (n_volumes, "Volumes of the run", ""),
                "n_kept": (len(kept), "Volumes that were analysed", ""),
                "kept_seconds": (len(kept) * TR, "Time that was analysed", "s"),
                "fd_mean": (float(np.nanmean(moved)) if displacement else None, "Motion", "mm"),
                "fd_max": (float(np.nanmax(moved)) if displacement else None, "Motion", "mm"),
                "coverage": (0.98, "Share of the mask that the run covers", ""),
            },
            {},
        )
        update_dataset_description(self.out, {}, {})
