"""The page of a participant, from a small output dataset made of synthetic arrays."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.outputs import NetworkResults, RunWriter
from bids_fbn.bids.writing import update_dataset_description
from bids_fbn.config import Config
from bids_fbn.networks.dynamics import RunNetworks
from bids_fbn.networks.maps import Peak
from bids_fbn.networks.overlap import overlap_with_templates
from bids_fbn.networks.maps import SupportRule, zscore_maps
from bids_fbn.networks.states import assign_states, summarize_states
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.reports import Problem, figures, methods_text, pictures, write_citation, write_report
from bids_fbn.reports.bibliography import cited_keys, references
from bids_fbn.reports.interactive import courses_chart, motion_chart, overlap_chart
from bids_fbn.reports.results import read_participant
from bids_fbn.reports.series import courses_of, motion_of, overlap_of
from bids_fbn.signal.grid import Grid, grid_geometry
from bids_fbn.signal.windows import lay_windows

SPACE = "MNI152NLin2009cAsym"
TR = 2.0


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
        window: int = 10,
        level: float = 0.5,
        weak: tuple[int, ...] = (),
        left_out: tuple[int, ...] = (),
        displacement: bool = True,
        session: str | None = None,
        subject: str = "01",
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
        steps = lay_windows(kept, n_volumes, TR, window)

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
        )
        states = assign_states(iou, 0.3)
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
                    }
                ),
            ),
            {
                "Method": model,
                "Preset": "corrected",
                "Candidates": "channels",
                "CandidatesPerStep": 8,
                "Window": window,
                "Stride": 1,
                "Parameters": 1000,
                "Recipe": {"learning_rate": 1e-3, "epochs": 4, "batch": 1, "whole_box": False},
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
