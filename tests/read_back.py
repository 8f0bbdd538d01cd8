"""Read an output dataset as its user would, with pybids, nibabel and pandas, and check it.

``python -m tests.read_back OUT`` does so from the command line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_fbn.bids.naming import MODEL_OUTPUTS, OUTPUTS, SIGNAL_OUTPUTS
from bids_fbn.bids.reading import output_layout
from bids_fbn.bids.writing import sidecar_path
from bids_fbn.config import GIVEN_MAPS, TOLD

__all__ = ["check_output"]


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False)


def _check_sidecar(path: Path) -> dict[str, Any]:
    sidecar: dict[str, Any] = json.loads(sidecar_path(path).read_text())
    assert sidecar["Description"], path
    assert all(uri.startswith("bids:") for uri in sidecar["Sources"]), path
    if path.suffix == ".tsv" and not path.name.endswith("_dseg.tsv"):
        bare = [name for name in _table(path).columns if "Description" not in sidecar[name]]
        assert not bare, (path, bare)
    return sidecar


def _check_run(layout: Any, decomposition: Path) -> str:
    facts = json.loads(decomposition.read_text())
    model = facts["Method"]
    prefix = decomposition.name.partition("_desc-")[0]
    files = {
        Path(f.path).name: Path(f.path)
        for f in layout.get(regex_search=True, subject=".*")
        if Path(f.path).name.startswith(f"{prefix}_")
    }

    def find(kind: str) -> Path:
        name = OUTPUTS[kind]
        wanted = [
            f"desc-{name.desc.format(model=model.replace('-', ''))}_{name.suffix}{name.extension}"
        ]
        if name.stat:
            wanted.append(f"_stat-{name.stat}_")
        (path,) = [p for n, p in files.items() if all(part in n for part in wanted)]
        return path

    for kind in (*SIGNAL_OUTPUTS, *MODEL_OUTPUTS):
        if kind != "decomposition":
            _check_sidecar(find(kind))
    networks = facts["Networks"]
    quality = _table(find("qc")).iloc[0]
    n_volumes = int(quality["n_volumes"])
    left_out = _table(find("outliers"))["left_out"].to_numpy() == 1
    assert len(left_out) == n_volumes == len(_table(find("design")))
    assert left_out.sum() == quality["n_left_out"]

    mask = np.asanyarray(nib.load(find("mask")).dataobj) > 0
    assert mask.sum() == quality["n_voxels"] == facts["Grid"]["Voxels"]
    for kind, n_maps in (("components", len(networks)), ("probseg", len(networks)), ("dseg", 0)):
        image = nib.load(find(kind))
        values = np.asanyarray(image.dataobj)
        assert values.shape == mask.shape + ((n_maps,) if n_maps else ()), kind
        assert np.allclose(image.affine, nib.load(find("mask")).affine)
        assert np.isfinite(values).all()
        assert not values[~mask].any(), kind
        if kind == "probseg":
            assert values.min() >= 0
            assert values.max() <= 1
        if kind == "components":  # z over the voxels that the run covers
            covered = values[(values != 0).any(axis=3)]
            assert np.allclose(covered.mean(axis=0), 0, atol=1e-3)
            assert np.allclose(covered.std(axis=0), 1, atol=1e-3)
        if kind == "dseg":
            assert set(np.unique(values)) <= set(range(len(networks) + 1))
    assert list(_table(find("dseg_table"))["name"]) == networks
    if model == "udr":
        effect, sd = (
            np.asanyarray(nib.load(find(kind)).dataobj) for kind in ("effect", "effect_sd")
        )
        for kind, values in (("effect", effect), ("effect_sd", sd)):
            own = _check_sidecar(find(kind))["Networks"]
            assert values.shape == (*mask.shape, len(own)), kind
            assert not values[~mask].any(), kind
        assert (sd >= 0).all()
        assert ((sd > 0) == (effect != 0)).all()

    courses = _table(find("mixing"))
    assert list(courses.columns) == networks
    assert len(courses) == n_volumes
    assert (courses.isna().all(axis=1).to_numpy() == left_out).all()

    window = facts["Window"]
    n_steps = 1 if window is None else max(0, (n_volumes - window) // facts["Stride"] + 1)
    iou = _table(find("iou"))
    timing = json.loads(sidecar_path(find("iou")).read_text())
    assert list(iou.columns) == ["onset", *networks]
    assert len(iou) == n_steps
    assert np.allclose(np.diff(iou["onset"]), 1 / timing["SamplingFrequency"])
    values = iou[networks].to_numpy()
    known = np.isfinite(values)
    assert (known.all(axis=1) == known.any(axis=1)).all()
    assert ((values[known] >= 0) & (values[known] <= 1)).all()
    for kind in ("dice", "r", "iou_previous", "iou_window_apart", "states"):
        assert len(_table(find(kind))) == n_steps, kind
    if window == 1:
        assert (~known.any(axis=1) == left_out[:: facts["Stride"]]).all()

    table = _table(find("states"))
    states = table["state"]
    if facts["StateMeasure"] == "iou":
        highest = np.nanmax(np.where(known, values, -1), axis=1)
        assert (states.notna() == (highest >= facts["StateThreshold"])).all()
    else:
        amplitude = _table(find("amplitude"))[networks]
        assert (amplitude.notna().any(axis=1) == known.any(axis=1)).all()
        certain = table["certainty"] >= facts["StateCertainty"]
        assert (states.notna() == certain).all()
        assert (states[certain] == amplitude[certain].idxmax(axis=1)).all()
    counts = _table(find("transition_count"))
    probabilities = _table(find("transition_probability"))
    rows = probabilities[networks].sum(axis=1)
    assert list(counts["from"]) == networks == list(counts.columns[1:])
    assert np.allclose(rows[counts[networks].sum(axis=1) > 0], 1, atol=1e-4)
    assert (rows[counts[networks].sum(axis=1) == 0] == 0).all()

    summary = _table(find("state_metrics")).set_index("state")
    assert list(summary.index) == [*networks, "all"]
    occupancy = summary.loc[networks, "fractional_occupancy"].to_numpy()
    assert np.isclose(occupancy.sum(), 1 if states.notna().any() else 0, atol=1e-4)
    step = 1 / timing["SamplingFrequency"]
    time_in = (summary["visits"] * summary["dwell_mean"]).loc[networks].fillna(0).sum()
    assert np.isclose(time_in, states.notna().sum() * step, rtol=1e-3)
    metrics = _table(find("metrics"))
    assert list(metrics["network"]) == networks
    _check_evidence(_table(find("evidence")), metrics, networks, model)
    return f"{prefix} {model}: {n_volumes} volumes, {n_steps} steps, {quality['n_voxels']} voxels"


def _check_evidence(
    evidence: pd.DataFrame, metrics: pd.DataFrame, networks: list[str], model: str
) -> None:
    measure = "coherence" if model in GIVEN_MAPS else "iou_search"
    claimed = evidence[evidence["measure"] == measure]
    # Beside other places, and beside noise; what learns networks by name beside noise alone.
    others = [] if model in TOLD - GIVEN_MAPS else ["turned", "mirrored"]
    nulls = [*others, "noise"]
    assert list(claimed["network"]) == networks * len(nulls)
    assert list(claimed["null"].unique()) == nulls
    search = evidence[evidence["measure"] == "iou_search"]
    assert np.allclose(search["observed"][: len(networks)], metrics["iou_search"])
    if model in GIVEN_MAPS:
        assert np.allclose(claimed["observed"][: len(networks)], metrics["coherence"])
    else:
        assert metrics["coherence"].isna().all()
    for name in ("p", "p_corrected"):
        tested = evidence[evidence[name].notna()]
        assert (tested[name] >= 1 / (tested["n_surrogates"].max() + 1) - 1e-6).all()
        assert (tested[name] <= 1).all()
    both = claimed["p_corrected"].notna()
    assert (claimed["p_corrected"][both] >= claimed["p"][both] - 1e-6).all()


def check_output(root: Path) -> list[str]:
    """Check every run of an output dataset; a line for each. Raises AssertionError."""
    layout = output_layout(root)
    found = layout.get(suffix="decomposition", extension=".json")
    assert found, f"{root}: no results"
    by_stat = layout.get(stat="iou", suffix="timeseries", extension=".tsv")
    assert len(by_stat) == len(found)
    description = json.loads((root / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "bids_fbn"
    half_written = [path for path in root.rglob("*") if path.name.endswith(".part")]
    assert not half_written, half_written
    return [_check_run(layout, Path(file.path)) for file in found]


if __name__ == "__main__":
    print("\n".join(check_output(Path(sys.argv[1]))))
