"""What we write and what it is called: one table.

Names without a standard of their own yet follow the drafts BEP012 (``components``, ``mixing``,
``decomposition``, ``timeseries``), BEP017 (``relmat``) and BEP038 (``atlas-``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bids_fbn.bids.boldrun import BoldRun

__all__ = [
    "BIDSIGNORE",
    "OUTPUTS",
    "Name",
    "model_weights_path",
    "output_path",
    "resolution_label",
    "run_outputs",
]

# Without a trailing slash: with one, the validator does not match.
BIDSIGNORE = (
    "*.html",
    "figures",
    "sub-*/log",
    "group",
    "models",
    "*_components.*",
    "*_mixing.*",
    "*_decomposition.json",
    "*_timeseries.*",
    "*_relmat.*",
    "*_metrics.*",
    "*_outliers.*",
    "*_design.*",
    "*_qc.*",
)

_IMAGE = ".nii.gz"
_TABLE = ".tsv"


@dataclass(frozen=True)
class Name:
    """Name of one kind of output.

    Parameters
    ----------
    suffix, extension : str
    desc : str
        ``{model}`` stands for the model.
    on_grid : bool
        Has ``space-`` and ``res-``.
    in_space : bool
        Has ``space-`` (tables that depend on it).
    atlas : bool
        Has ``atlas-`` of the template set.
    seg, label, stat : str
        Further entities; ``{label}`` stands for a network.
    """

    suffix: str
    desc: str
    extension: str = _TABLE
    on_grid: bool = False
    in_space: bool = False
    atlas: bool = False
    seg: str = ""
    label: str = ""
    stat: str = ""


# Of a run, whatever the model.
SIGNAL_OUTPUTS: Mapping[str, Name] = {
    "mask": Name("mask", "brain", _IMAGE, on_grid=True),
    "design": Name("design", "fbn"),
    "outliers": Name("outliers", "fbn"),
    "qc": Name("qc", "fbn"),
}
# Of a run and a model.
MODEL_OUTPUTS: Mapping[str, Name] = {
    "components": Name("components", "{model}", _IMAGE, on_grid=True, stat="z"),
    "probseg": Name("probseg", "{model}", _IMAGE, on_grid=True, seg="fbn"),
    "dseg": Name("dseg", "{model}", _IMAGE, on_grid=True, seg="fbn"),
    "dseg_table": Name("dseg", "{model}", on_grid=True, seg="fbn"),
    "mixing": Name("mixing", "{model}"),
    "iou": Name("timeseries", "{model}", in_space=True, atlas=True, stat="iou"),
    "dice": Name("timeseries", "{model}", in_space=True, atlas=True, stat="dice"),
    "r": Name("timeseries", "{model}", in_space=True, atlas=True, stat="r"),
    "iou_previous": Name("timeseries", "{model}", stat="iouprevious"),
    "iou_window_apart": Name("timeseries", "{model}", stat="iouwindowapart"),
    "states": Name("timeseries", "{model}states"),
    "transition_count": Name("relmat", "{model}states", stat="transitioncount"),
    "transition_probability": Name("relmat", "{model}states", stat="transitionprobability"),
    "state_metrics": Name("metrics", "{model}states"),
    "metrics": Name("metrics", "{model}"),
    "evidence": Name("metrics", "{model}evidence"),
    # Last: its presence says that all others are there.
    "decomposition": Name("decomposition", "{model}", ".json"),
}
# Of models that say how sure they are.
SURE_OUTPUTS: Mapping[str, Name] = {
    "effect": Name("components", "{model}", _IMAGE, on_grid=True, stat="effect"),
    "effect_sd": Name("components", "{model}", _IMAGE, on_grid=True, stat="sd"),
}
# Of models whose states are by amplitude.
AMPLITUDE_OUTPUTS: Mapping[str, Name] = {
    "amplitude": Name("timeseries", "{model}", stat="amplitude"),
}
# On request.
OPTIONAL_OUTPUTS: Mapping[str, Name] = {
    "dynamic_components": Name(
        "components", "{model}dynamic", _IMAGE, on_grid=True, label="{label}", stat="z"
    ),
    "denoised": Name("bold", "denoised", _IMAGE, on_grid=True),
}
OUTPUTS: Mapping[str, Name] = {
    **SIGNAL_OUTPUTS,
    **SURE_OUTPUTS,
    **AMPLITUDE_OUTPUTS,
    **MODEL_OUTPUTS,
    **OPTIONAL_OUTPUTS,
}


def resolution_label(resolution: float) -> str:
    """Value of ``res-`` for a grid, mm.

    Examples
    --------
    >>> resolution_label(4.0), resolution_label(2.5)
    ('4', '2p5')
    """
    return f"{resolution:g}".replace(".", "p")


def output_path(
    kind: str,
    run: BoldRun,
    *,
    resolution: float,
    model: str = "",
    atlas: str = "",
    label: str = "",
) -> Path:
    """Path of an output, relative to the output dataset.

    Parameters
    ----------
    kind : str
        Key of :data:`OUTPUTS`.
    run : BoldRun
    resolution : float
        Of the analysis grid, mm.
    model, atlas, label : str
        Model, name of the template set, and network, where the name has them.
    """
    name = OUTPUTS[kind]
    on_grid = name.on_grid or name.in_space
    parts = {
        "space": run.space if on_grid else "",
        "atlas": atlas if name.atlas else "",
        "seg": name.seg,
        "res": resolution_label(resolution) if name.on_grid else "",
        "label": name.label.format(label=label),
        "stat": name.stat,
        "desc": name.desc.format(model=model.replace("-", "")),
    }
    entities = [f"{key}-{value}" for key, value in parts.items() if value]
    return run.folder / ("_".join([run.prefix, *entities, name.suffix]) + name.extension)


def run_outputs(
    run: BoldRun, models: Iterable[str], *, resolution: float, atlas: str
) -> list[Path]:
    """Everything that is always written for a run, relative to the output dataset."""
    paths = [output_path(kind, run, resolution=resolution) for kind in SIGNAL_OUTPUTS]
    for model in models:
        paths += [
            output_path(kind, run, resolution=resolution, model=model, atlas=atlas)
            for kind in MODEL_OUTPUTS
        ]
    return paths


def model_weights_path(model: str, run: BoldRun | None = None) -> Path:
    """Weights of a model, relative to the output dataset; shared ones name no run."""
    start = f"{run.prefix}_" if run else ""
    return Path("models", f"{start}desc-{model.replace('-', '')}_model.safetensors")
