"""Results of a run → files with sidecars.

Functions here only write; what they write was computed before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_fbn.bids.boldrun import BoldRun
from bids_fbn.bids.columns import EVIDENCE, METRICS, ONSET, OUTLIERS, STATE_METRICS
from bids_fbn.bids.naming import output_path, resolution_label
from bids_fbn.bids.writing import (
    Columns,
    sidecar_path,
    write_image,
    write_json,
    write_table,
    write_text,
)
from bids_fbn.networks.dynamics import RunNetworks, mean_over_steps
from bids_fbn.networks.maps import Peak, label_voxels
from bids_fbn.networks.states import NO_STATE, StateSummary
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.nulls.pvalues import network_p
from bids_fbn.signal.grid import Grid
from bids_fbn.signal.windows import Steps

__all__ = ["NetworkResults", "RunWriter", "denoised_image"]

_MASK_TEXT = "Brain mask of the standard space on the analysis grid, the same for every run"


@dataclass(frozen=True, eq=False)
class NetworkResults:
    """All that a model has found in a run.

    Parameters
    ----------
    model : str
    networks : RunNetworks
    steps : Steps
    states : ndarray (S,) of int
    summary : StateSummary
    courses : ndarray (T_kept, P)
    peaks : list of Peak
    final_overlap : DataFrame (P rows, by network)
        Overlap of the FBN maps with their templates, by the size-matched and by a fixed rule.
    courses_by_model : bool
        The courses come from the model's own temporal part, rather than from least squares.
    evidence : DataFrame
        See :mod:`bids_fbn.evidence`.
    """

    model: str
    networks: RunNetworks
    steps: Steps
    states: np.ndarray
    summary: StateSummary
    courses: np.ndarray
    peaks: list[Peak]
    final_overlap: pd.DataFrame
    evidence: pd.DataFrame
    courses_by_model: bool = False

    def of_networks(self, measure: str) -> list[float]:
        """A measure of the evidence for each network, NaN where it was not taken."""
        rows = self.evidence[self.evidence["measure"] == measure]
        values = rows.drop_duplicates("network").set_index("network")["observed"]
        return [float(value) for value in values.reindex(self.final_overlap.index)]

    def p_of_networks(self, column: str) -> list[float]:
        """p of each network, NaN where there is none."""
        values = network_p(self.evidence, column).reindex(self.final_overlap.index)
        return [float(value) for value in values]


class RunWriter:
    """Writes the outputs of one run.

    Parameters
    ----------
    out : Path
        The output dataset.
    run : BoldRun
    grid : Grid
    templates : TemplateSet
    source : str
        BIDS URI of the input, as the output dataset's ``DatasetLinks`` name it.
    """

    def __init__(
        self, out: Path, run: BoldRun, grid: Grid, templates: TemplateSet, source: str
    ) -> None:
        self._out = out
        self._run = run
        self._grid = grid
        self._templates = templates
        self._networks = list(templates.networks)
        self._source = source

    def path(self, kind: str, model: str = "", label: str = "") -> Path:
        """Absolute path of an output."""
        return self._out / output_path(
            kind,
            self._run,
            resolution=self._grid.resolution,
            model=model,
            atlas=self._templates.name,
            label=label,
        )

    def _facts(self, description: str, **more: Any) -> dict[str, Any]:
        return {"Description": description, "Sources": [self._source], **more}

    def _image_facts(self, description: str, **more: Any) -> dict[str, Any]:
        label = resolution_label(self._grid.resolution)
        return self._facts(
            description,
            Resolution={label: f"{self._grid.resolution:g} mm isotropic, the analysis grid"},
            SpatialReference=self._grid.space,
            AnalysisMask=self._grid.mask_source,
            **more,
        )

    def _timing(self, steps: Steps) -> dict[str, Any]:
        return {
            "SamplingFrequency": 1 / steps.seconds,
            "StartTime": float(steps.onset[0]) if len(steps) else None,
            "WindowVolumes": steps.window,
            "WindowSeconds": steps.window * self._run.repetition_time,
            "StrideVolumes": steps.stride,
            "StrideSeconds": steps.seconds,
        }

    def write_signal(
        self,
        regressors: pd.DataFrame,
        outliers: pd.DataFrame,
        displacement: np.ndarray | None,
        qc: Mapping[str, tuple[Any, str, str]],
        facts: Mapping[str, Any],
    ) -> None:
        """Analysis mask, nuisance design, volumes left out, and quality of the cleaned signal.

        Parameters
        ----------
        regressors, outliers : DataFrame (T, …)
        displacement : ndarray (T,) or None
            Framewise displacement, mm.
        qc : mapping
            Name → (value, what it is, units).
        facts : mapping
            What was asked for, for the sidecars.
        """
        mask = self._grid.image(np.ones(self._grid.n_voxels, dtype=np.uint8))
        write_image(self.path("mask"), mask, self._image_facts(_MASK_TEXT, Type="Brain"))
        design = regressors.copy()
        columns: dict[str, Mapping[str, Any]] = {
            str(name): {
                "Description": "Nuisance regressor by this name in the confounds of the input, "
                "or computed from them; mean removed"
            }
            for name in design.columns
        }
        if design.shape[1] == 0:
            design = pd.DataFrame({"constant": np.ones(len(outliers), dtype=int)})
            columns = {"constant": {"Description": "Mean; no nuisance regressors were asked for"}}
        write_table(
            self.path("design"),
            design,
            columns,
            self._facts("Nuisance regressors, a row for each volume", **facts),
        )
        table = outliers.astype(int)
        table["left_out"] = (table.sum(axis=1) > 0).astype(int)
        table.insert(0, "framewise_displacement", np.nan if displacement is None else displacement)
        write_table(
            self.path("outliers"),
            table,
            {str(name): OUTLIERS[str(name)] for name in table.columns},
            self._facts("Volumes left out of the analysis (1), a row for each volume", **facts),
        )
        write_table(
            self.path("qc"),
            pd.DataFrame([{name: value for name, (value, _, _) in qc.items()}]),
            {
                name: {"Description": text, **({"Units": units} if units else {})}
                for name, (_, text, units) in qc.items()
            },
            self._facts("Quality of the run and of its cleaned signal", **facts),
        )

    def write_networks(
        self, results: NetworkResults, facts: Mapping[str, Any], kept: np.ndarray, n_volumes: int
    ) -> None:
        """Everything of a model; the description of the decomposition comes last.

        Parameters
        ----------
        results : NetworkResults
        facts : mapping
            Content of the ``decomposition.json``.
        kept : ndarray (T_kept,) of int
        n_volumes : int
        """
        # A description from before would say that what is half written now is whole.
        self.path("decomposition", results.model).unlink(missing_ok=True)
        rule = {"SupportRule": facts["SupportRule"], "TemplateRule": facts["TemplateRule"]}
        self._write_maps(results, rule)
        self._write_courses(results, kept, n_volumes)
        self._write_overlaps(results, rule)
        self._write_amplitudes(results)
        self._write_states(results, facts)
        self._write_metrics(results, rule)
        self._write_evidence(results)
        write_json(
            self.path("decomposition", results.model),
            {"Sources": [self._source], **facts},
        )

    def _write_maps(self, results: NetworkResults, rule: Mapping[str, Any]) -> None:
        model, networks = results.model, results.networks
        write_image(
            self.path("components", model),
            self._grid.image(networks.maps.astype(np.float32)),
            self._image_facts(
                "Functional brain networks, one volume for each network of the template set; "
                "z over the covered voxels of the analysis mask, signed",
                Units="z",
                Networks=self._networks,
                Weak=[n for n, weak in zip(self._networks, networks.weak, strict=True) if weak],
                **rule,
            ),
        )
        write_image(
            self.path("probseg", model),
            self._grid.image(networks.membership.astype(np.float32)),
            self._image_facts(
                "Membership, 0 to 1: the share of the time steps in which a network was present "
                "(weighted by its IoU) in which the voxel belonged to it",
                LabelMap=self._networks,
                Manual=False,
                **rule,
            ),
        )
        write_image(
            self.path("dseg", model),
            self._grid.image(label_voxels(networks.membership)),
            self._image_facts(
                "The network with the highest membership, where that is at least 0.5",
                LabelMap={str(i): name for i, name in enumerate(self._networks, start=1)},
                Manual=False,
                **rule,
            ),
        )
        # BIDS itself says what `index` and `name` are, and the sidecar is that of the image.
        write_text(
            self.path("dseg_table", model),
            pd.DataFrame(
                {"index": range(1, len(self._networks) + 1), "name": self._networks}
            ).to_csv(sep="\t", index=False),
        )

    def _write_courses(self, results: NetworkResults, kept: np.ndarray, n_volumes: int) -> None:
        courses = np.full((n_volumes, len(self._networks)), np.nan)
        courses[kept] = results.courses
        table = pd.DataFrame(courses, columns=self._networks)
        how, units = (
            ("by the temporal part of the model, z-scored", "standard deviations")
            if results.courses_by_model
            else (
                "least squares of the cleaned signal on the FBN maps of all networks that are not "
                "weak at once, of a weak one on its own",
                "arbitrary",
            )
        )
        write_table(
            self.path("mixing", results.model),
            table,
            {
                name: {
                    "Description": f"Course of the network: {how}; n/a in volumes left out",
                    "Units": units,
                }
                for name in self._networks
            },
            self._facts(
                "Courses of the networks, a row for each volume",
                SamplingFrequency=1 / self._run.repetition_time,
                StartTime=0.0,
            ),
        )

    def _write_overlaps(self, results: NetworkResults, rule: Mapping[str, Any]) -> None:
        networks, steps = results.networks, results.steps
        whose = "of the step's best candidate (by IoU) with the template"
        series = {
            "iou": (networks.iou, f"IoU {whose}"),
            "dice": (networks.dice, f"Dice coefficient {whose}"),
            "r": (networks.r, f"Pearson correlation over voxels {whose}"),
            "iou_previous": (
                networks.iou_previous,
                "IoU of the network's own candidate with that of the step before",
            ),
            "iou_window_apart": (
                networks.iou_window_apart,
                "IoU of the network's own candidate with that of the last step whose window "
                "shares no volume with this one",
            ),
        }
        for kind, (values, text) in series.items():
            table = pd.DataFrame(values, columns=self._networks)
            table.insert(0, "onset", steps.onset)
            columns: Columns = {
                "onset": ONSET,
                **{name: {"Description": text, "Units": "arbitrary"} for name in self._networks},
            }
            write_table(
                self.path(kind, results.model),
                table,
                columns,
                self._facts(
                    f"{text}; a row for each time step, n/a where the step has no window",
                    Atlas=self._templates.name,
                    Reference=self._templates.reference,
                    **rule,
                    **self._timing(steps),
                ),
            )

    def _write_amplitudes(self, results: NetworkResults) -> None:
        amplitude, sd = results.networks.amplitude, results.networks.amplitude_sd
        path = self.path("amplitude", results.model)
        if amplitude is None or sd is None:
            # Of the same model as it was asked for before.
            for stale in (path, sidecar_path(path)):
                stale.unlink(missing_ok=True)
            return
        table = pd.DataFrame(amplitude, columns=self._networks)
        table.insert(0, "onset", results.steps.onset)
        text = (
            "Amplitude of the network: root mean square of its course (least squares of the "
            "volumes on the group maps, about its mean over the run) in the window, by that over "
            "the run"
        )
        write_table(
            path,
            table,
            {
                "onset": ONSET,
                **{name: {"Description": text, "Units": "arbitrary"} for name in self._networks},
            },
            self._facts(
                f"{text}; a row for each time step, n/a where the step has no window",
                StandardDeviationOfError={
                    name: round(float(value), 4)
                    for name, value in zip(self._networks, sd, strict=True)
                    if np.isfinite(value)
                },
                **self._timing(results.steps),
            ),
        )

    def _write_states(self, results: NetworkResults, facts: Mapping[str, Any]) -> None:
        names, summary, model = self._networks, results.summary, results.model
        asked = "StateThreshold" if results.networks.amplitude is None else "StateCertainty"
        of_steps = {
            **{key: facts[key] for key in ("StateMeasure", asked)},
            **self._timing(results.steps),
        }
        highest = np.full(len(results.states), np.nan)
        valid = results.steps.valid
        highest[valid] = results.networks.iou[valid].max(axis=1)
        state_names = [names[state] if state != NO_STATE else np.nan for state in results.states]
        table = pd.DataFrame(
            {
                "onset": results.steps.onset,
                "state": pd.array(state_names, dtype=object),
                "iou": highest,
            }
        )
        of_state = "Network with the highest IoU, n/a where that is below the threshold"
        columns: dict[str, Mapping[str, Any]] = {
            "onset": ONSET,
            "iou": {"Description": "Highest IoU over the networks", "Units": "arbitrary"},
        }
        if (certainty := results.networks.certainty) is not None:
            table["certainty"] = certainty
            of_state = (
                "Network with the largest amplitude, n/a where that is less certain than asked"
            )
            columns["certainty"] = {
                "Description": "Probability that the network with the largest amplitude truly "
                "has it, by the error of the amplitudes"
            }
        columns["state"] = {
            "Description": f"{of_state}, or the step has no window",
            "Levels": {name: f"network {name}" for name in names},
        }
        write_table(
            self.path("states", model),
            table,
            columns,
            self._facts("State of each time step", **of_steps),
        )
        for kind, matrix, text in (
            ("transition_count", summary.counts, "Number of transitions"),
            (
                "transition_probability",
                summary.probabilities,
                "Probability of a transition, by row; 0 in rows of states never left from",
            ),
        ):
            table = pd.DataFrame(matrix, columns=names)
            table.insert(0, "from", names)
            write_table(
                self.path(kind, model),
                table,
                {
                    "from": {"Description": "State before"},
                    **{name: {"Description": f"{text} to {name}"} for name in names},
                },
                self._facts(
                    f"{text} from the state of the row to that of the column, between consecutive "
                    "time steps that both have a state; the diagonal is staying",
                    Directed=True,
                    **of_steps,
                ),
            )
        self._write_state_metrics(summary, model, of_steps)

    def _write_state_metrics(
        self, summary: StateSummary, model: str, of_steps: Mapping[str, Any]
    ) -> None:
        table = pd.DataFrame(
            {
                "state": [*self._networks, "all"],
                "fractional_occupancy": [*summary.occupancy, np.nan],
                "visits": [*summary.visits.astype(float), float(summary.visits.sum())],
                "dwell_mean": [*summary.dwell_mean, np.nan],
                "dwell_median": [*summary.dwell_median, np.nan],
            }
        )
        for name, value in (
            ("without_state", summary.without_state),
            ("switching_rate", summary.switching_rate),
            ("occupancy_entropy", summary.occupancy_entropy),
            ("transition_entropy", summary.transition_entropy),
        ):
            table[name] = [np.nan] * len(self._networks) + [value]
        write_table(
            self.path("state_metrics", model),
            table,
            STATE_METRICS,
            self._facts(
                "How the run spends its time in states; what belongs to no single state stands in "
                "the row `all`",
                **of_steps,
            ),
        )

    def _write_metrics(self, results: NetworkResults, rule: Mapping[str, Any]) -> None:
        networks, valid = results.networks, results.steps.valid
        n_valid = int(valid.sum())
        table = pd.DataFrame(
            {
                "network": self._networks,
                "weak": networks.weak.astype(int),
                "steps_present": networks.present,
                "fraction_present": networks.present / max(1, n_valid),
                "iou_mean": networks.iou[valid].mean(axis=0) if n_valid else np.nan,
                "iou_search": results.of_networks("iou_search"),
                "coherence": results.of_networks("coherence"),
                "p": results.p_of_networks("p"),
                "p_corrected": results.p_of_networks("p_corrected"),
                "iou_other_half": results.of_networks("iou_other_half"),
                "iou_best_of_all": networks.best_of_all,
                "n_candidates": networks.n_candidates,
                "iou_previous_mean": mean_over_steps(networks.iou_previous),
                "iou_window_apart_mean": mean_over_steps(networks.iou_window_apart),
            }
        )
        table = pd.concat([table, results.final_overlap.reset_index(drop=True)], axis=1)
        table["peak_x"] = [peak.x for peak in results.peaks]
        table["peak_y"] = [peak.y for peak in results.peaks]
        table["peak_z"] = [peak.z for peak in results.peaks]
        table["peak_value"] = [peak.value for peak in results.peaks]
        table["peak_place"] = [peak.place or None for peak in results.peaks]
        write_table(
            self.path("metrics", results.model),
            table,
            METRICS,
            self._facts(
                "Each FBN and its template. iou_best_of_all is the highest of n_candidates "
                "maps: searching raises it whether or not there is a network",
                Atlas=self._templates.name,
                Reference=self._templates.reference,
                **rule,
            ),
        )

    def _write_evidence(self, results: NetworkResults) -> None:
        write_table(
            self.path("evidence", results.model),
            results.evidence,
            EVIDENCE,
            self._facts(
                "What speaks for the networks, and for their coming and going, beside what there "
                "would be without them"
            ),
        )

    def write_denoised(self, image: nib.Nifti1Image) -> None:
        """The cleaned signal as an image."""
        write_image(
            self.path("denoised"),
            image,
            self._image_facts(
                "Cleaned signal, z over the kept volumes of each voxel; 0 in volumes left out",
                TaskName=self._run.entities.get("task", ""),
                RepetitionTime=self._run.repetition_time,
                SkullStripped=True,
            ),
        )

    def write_effects(
        self, model: str, maps: np.ndarray, sd: np.ndarray, networks: Sequence[str]
    ) -> None:
        """Maps over the whole run in units of the signal, and how far off they may be.

        Parameters
        ----------
        model : str
        maps, sd : ndarray (K, V)
        networks : sequence of K str
        """
        units = "standard deviations of the voxel's cleaned series over the run"
        whole = (
            "of the map over the whole run (not the mean over time steps, which is that of "
            "stat-z): signal for one standard deviation of the network's course"
        )
        for kind, values, text in (
            ("effect", maps, f"Estimate {whole}"),
            ("effect_sd", sd, f"Standard deviation of the error {whole}; of stat-effect"),
        ):
            write_image(
                self.path(kind, model),
                self._grid.image(np.asarray(values, dtype=np.float32)),
                self._image_facts(text, Units=units, Networks=list(networks)),
            )

    def write_dynamic_maps(self, model: str, maps: np.ndarray, steps: Steps) -> None:
        """One 4-D image for each network; maps (P, S, V)."""
        for name, of_network in zip(self._networks, maps, strict=True):
            image = self._grid.image(np.asarray(of_network, dtype=np.float32))
            image.header["pixdim"][4] = steps.seconds
            write_image(
                self.path("dynamic_components", model, label=name),
                image,
                self._image_facts(
                    f"The candidate that is {name} at each time step, z over the covered voxels; "
                    "0 where there is none",
                    Units="z",
                    **self._timing(steps),
                ),
            )


def denoised_image(
    data: np.ndarray, kept: np.ndarray, n_volumes: int, grid: Grid, repetition_time: float
) -> nib.Nifti1Image:
    """Cleaned signals (T_kept, V) as an image of all volumes of the run."""
    volumes = np.zeros((n_volumes, grid.n_voxels), dtype=np.float32)
    volumes[kept] = data
    image = grid.image(volumes)
    image.header["pixdim"][4] = repetition_time
    return image
