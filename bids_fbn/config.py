"""Everything that a run was asked to do: typed, checked, to and from TOML, hashed.

One :class:`Config` is made by the command line and handed down; there is no other state.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from bids_fbn.errors import InputError

__all__ = [
    "NUISANCE_COMPONENTS",
    "NUISANCE_PRESETS",
    "ComputeOptions",
    "Config",
    "DataOptions",
    "ModelOptions",
    "NetworkOptions",
    "RunOptions",
    "SignalOptions",
    "file_hash",
]

NUISANCE_PRESETS = ("simple", "scrubbing", "compcor", "ica_aroma")
NUISANCE_COMPONENTS = (
    "motion",
    "wm_csf",
    "global_signal",
    "high_pass",
    "compcor",
    "non_steady_state",
)

# Results change when these definitions do; raised by hand whenever a change of the code makes
# the same options give other numbers, so that old and new results are never mixed.
RESULTS_VERSION = 15

Label = Annotated[str, Field(pattern=r"^[0-9a-zA-Z+]+$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataOptions(_Section):
    """Which data."""

    participant_label: tuple[Label, ...] = ()
    session_id: tuple[Label, ...] = ()
    task_id: tuple[Label, ...] = ()
    run_id: tuple[Label, ...] = ()
    space: str | None = None
    bids_filter_file: Path | None = None
    derivatives: dict[str, Path] = {}
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False

    @field_validator("participant_label", "session_id", "task_id", "run_id", mode="before")
    @classmethod
    def _strip_entity(cls, labels: Any) -> Any:
        if not isinstance(labels, list | tuple):
            return labels
        return [re.sub(r"^(sub|ses|task|run)-", "", str(label)) for label in labels]


class SignalOptions(_Section):
    """From a BOLD file to cleaned signals. Lengths in mm, times in s, frequencies in Hz."""

    resolution: float = Field(4.0, gt=0.5, le=20)
    smoothing: float = Field(6.0, ge=0, le=40)
    nuisance: tuple[str, ...] = ("simple",)
    motion: Literal["basic", "derivatives", "power2", "full"] = "full"
    fd_thresh: float | None = Field(None, gt=0)
    lower_bpf: float | None = Field(None, gt=0)
    upper_bpf: float | None = Field(None, gt=0)
    dummy_scans: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    min_time: float = Field(240.0, ge=0)

    @field_validator("nuisance")
    @classmethod
    def _known_nuisance(cls, nuisance: tuple[str, ...]) -> tuple[str, ...]:
        alone = (*NUISANCE_PRESETS, "none")
        if len(nuisance) == 1 and nuisance[0] in alone:
            return nuisance
        unknown = [name for name in nuisance if name not in NUISANCE_COMPONENTS]
        if unknown or not nuisance:
            raise ValueError(
                f"{' '.join(unknown) or 'nothing'} is not one of {', '.join(alone)} (alone), "
                f"{', '.join(NUISANCE_COMPONENTS)} (any of them)"
            )
        if "compcor" in nuisance and "high_pass" not in nuisance:
            # fMRIPrep takes the components after a high-pass filter.
            raise ValueError("compcor needs high_pass beside it; add high_pass")
        return tuple(dict.fromkeys(nuisance))

    @field_validator("upper_bpf")
    @classmethod
    def _band(cls, upper: float | None, info: ValidationInfo) -> float | None:
        lower = info.data.get("lower_bpf")
        if lower and upper and lower >= upper:
            raise ValueError(f"must be above --lower-bpf {lower} Hz")
        return upper


ModelName = Literal[
    "stca",
    "scaae",
    "stcnn",
    "udr",
    "untrained-stca",
    "untrained-scaae",
    "pca",
    "ica",
    "sdl",
    "dualregression",
    "cap",
    "hmm",
]
MODELS: tuple[str, ...] = get_args(ModelName)
# Classical methods, fitted anew to all they are applied to; trained in epochs; able to look at
# windows; told of the templates, so that each of their maps has its network.
BASELINES = frozenset({"pca", "ica", "sdl", "dualregression", "cap", "hmm"})
TRAINED = frozenset({"stca", "scaae", "stcnn", "udr"})
WINDOWED = frozenset(
    {"stca", "stcnn", "udr", "untrained-stca", "pca", "ica", "sdl", "dualregression"}
)
TOLD = frozenset({"stcnn", "udr", "dualregression"})
# Of these, the ones that fit courses to maps which they do not take from the run: they have
# amplitudes, their networks stand by coherence, and there is no other number of maps to choose.
GIVEN_MAPS = frozenset({"udr", "dualregression"})
# Trained on a run they see more change in it than in surrogates (docs/methods.md): these say
# nothing of change unless they get models of their own, or the model is of other runs.
REFIT_FOR_CHANGE = frozenset({"stcnn"})


class ModelOptions(_Section):
    """The models and how they are trained; None means what the model's recipe says."""

    model: tuple[ModelName, ...] = ("dualregression",)
    preset: Literal["corrected", "as-published"] = "corrected"
    weights: tuple[Path, ...] = ()
    sloppy: bool = False
    window: int | None = Field(None, ge=2)
    stride: int = Field(1, ge=1)
    channels: int | None = Field(None, ge=2)
    components: int | None = Field(None, ge=2)
    epochs: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1)
    training_stride: int | None = Field(None, ge=1)
    target_networks: tuple[str, ...] = ()
    candidates: Literal["fbn", "channels"] = "fbn"

    @field_validator("sloppy")
    @classmethod
    def _only_corrected(cls, sloppy: bool, info: ValidationInfo) -> bool:
        if sloppy and info.data.get("preset") == "as-published":
            raise ValueError("there is no small form of the published models")
        return sloppy

    @field_validator("model")
    @classmethod
    def _each_model_once(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if not models:
            raise ValueError("name at least one model")
        return tuple(dict.fromkeys(models))

    def weighted(self, model: str) -> bool:
        """Whether one of the files of weights is of a model, which is then not fitted to runs."""
        return self.weights_of(model) is not None

    def weights_of(self, model: str) -> Path | None:
        """The file of weights that is of a model, if there is one."""
        return next((path for path in self.weights if _model_of(path) == model), None)

    def told(self, model: str) -> bool:
        """Whether a model is told of the templates, rather than to find components of its own."""
        return model in TOLD and not (model == "udr" and self.components is not None)

    def idle(self) -> list[str]:
        """A line for each option that was given and would change nothing."""
        lines = []
        if self.window is not None and not WINDOWED.intersection(self.model):
            lines.append("--window: none of the models asked for uses windows")
        if self.channels is not None and GIVEN_MAPS.issuperset(self.model):
            lines.append("--channels: none of the models asked for has any to choose")
        if self.preset == "as-published" and (BASELINES | {"udr"}).issuperset(self.model):
            lines.append("--preset: none of the models asked for has one that was published")
        if "stcnn" not in self.model and self.target_networks:
            lines.append("--target-networks: is about stcnn, which is not asked for")
        if self.components is not None and "udr" not in self.model:
            lines.append("--components: is about udr, which is not asked for")
        if self.candidates != "fbn" and not {"scaae", "untrained-scaae"}.intersection(self.model):
            lines.append("--candidates: is about scaae, which is not asked for")
        of_training = ("epochs", "batch", "training_stride")
        of_recipe = ("window", "channels", "components", *of_training, "target_networks")
        if self.weights and all(map(self.weighted, self.model)):
            lines += self._without_effect(of_recipe, "with --weights, which are trained already")
        elif not TRAINED.intersection(self.model):
            lines += self._without_effect(of_training, "on models that are not trained in epochs")
        return lines

    def _without_effect(self, names: Sequence[str], why: str) -> list[str]:
        given = [name for name in names if getattr(self, name) not in (None, ())]
        return [f"--{name.replace('_', '-')}: has no effect {why}" for name in given]


class NetworkOptions(_Section):
    """From candidate maps to networks and states."""

    templates: str = "smith2009"
    state_threshold: float = Field(0.3, ge=0, le=1)
    state_certainty: float = Field(0.5, ge=0, le=1)
    support: Literal["size-matched"] | float | None = None
    save_dynamic_maps: bool = False
    save_denoised: bool = False


# What a search for networks is held against in space.
SurrogateMaps = Literal["turned", "fields"]


class NullOptions(_Section):
    """What the results are held against."""

    n_surrogates: int = Field(39, ge=0)
    surrogates: Literal["phase", "var"] = "phase"
    n_surrogate_maps: int = Field(1000, ge=0)
    surrogate_maps: SurrogateMaps = "turned"
    refit_surrogates: bool = False
    budget: int = Field(20, ge=1)

    def idle(self, models: ModelOptions) -> list[str]:
        """A line for each option that was given and would change nothing for these models."""
        if self.surrogate_maps != "turned" and all(map(models.told, models.model)):
            return [
                "--surrogate-maps: is about a search; the models asked for know their networks"
            ]
        return []


class GroupOptions(_Section):
    """What is asked of all participants together."""

    group_by: str | None = None
    covariates: tuple[str, ...] = ()
    participants_file: Path | None = None
    correction: Literal["max", "fdr"] = "max"
    n_permutations: int = Field(5000, ge=19)
    n_bootstrap: int = Field(2000, ge=100)
    combat: str | None = None
    combat_fit_on: str | None = None
    train: bool = False
    held_out: float = Field(0.2, ge=0, lt=1)

    @field_validator("covariates")
    @classmethod
    def _each_covariate_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names))

    def idle(self) -> list[str]:
        """A line for each option that was given and would change nothing."""
        # By value: a settings file has all of them.
        default = GroupOptions()
        given = {
            name
            for name in type(self).model_fields
            if getattr(self, name) != getattr(default, name)
        }
        lines = []
        if self.combat_fit_on is not None and self.combat is None:
            lines.append("--combat-fit-on: needs --combat, the column of the sites")
        if self.combat_fit_on is not None and self.group_by is None:
            lines.append("--combat-fit-on: needs --group-by, whose group it names")
        if self.train:
            lines += [
                f"--{name.replace('_', '-')}: has no effect with --train"
                for name in sorted(given - {"train", "held_out"})
            ]
        elif "held_out" in given:
            lines.append("--held-out: needs --train")
        return lines


class ComputeOptions(_Section):
    """With what it is computed. None of it but seed and precision changes results."""

    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    nprocs: int | None = Field(None, ge=1)
    omp_nthreads: int | None = Field(None, ge=1)
    mem_gb: float | None = Field(None, gt=0)
    use_plugin: Path | None = None
    work_dir: Path = Path("work")
    random_seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("not one of auto, cpu, cuda, cuda:N")
        return device


class RunOptions(_Section):
    """How it goes; none of it changes results."""

    dry_run: bool = False
    resume: bool = True
    overwrite: bool = False
    stop_on_first_crash: bool = False
    signals_only: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    write_graph: bool = False
    verbose: int = 0


class Config(_Section):
    """What one call was asked to do."""

    bids_dir: Path
    output_dir: Path
    analysis_level: Literal["participant", "group"] = "participant"
    data: DataOptions = DataOptions()
    signal: SignalOptions = SignalOptions()
    models: ModelOptions = ModelOptions()
    networks: NetworkOptions = NetworkOptions()
    nulls: NullOptions = NullOptions()
    group: GroupOptions = GroupOptions()
    compute: ComputeOptions = ComputeOptions()
    run: RunOptions = RunOptions()

    @classmethod
    def from_options(cls, options: Mapping[str, Any], config_file: Path | None = None) -> Config:
        """Put command-line options over those of a TOML file.

        Parameters
        ----------
        options : mapping
            Field name → value, of any section: field names are unique over all sections.
        config_file : Path, optional
            TOML with the sections ``[data]``, ``[signal]``, ``[models]``, ``[networks]``,
            ``[nulls]``, ``[group]``, ``[compute]``, ``[run]``.

        Raises
        ------
        InputError
            With one line for each fault.
        """
        values: dict[str, Any] = _read_toml(config_file) if config_file else {}
        for name, value in options.items():
            section = _SECTION_OF[name]
            if section is None:
                values[name] = value
            else:
                values.setdefault(section, {})[name] = value
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            origin = f" ({config_file} or the command line)" if config_file else ""
            raise InputError(*(_fault(item) + origin for item in error.errors())) from None

    def tests_change(self, model: str) -> bool:
        """Whether surrogates, as they are used, say anything of change over time by a model."""
        return model not in REFIT_FOR_CHANGE or not self.of_the_run(model)

    def of_the_run(self, model: str) -> bool:
        """Whether surrogates of a run get the model that was fitted to the run."""
        return not (self.nulls.refit_surrogates or self.models.weighted(model))

    def to_toml(self) -> str:
        """All settings, in the form that ``--config-file`` reads; unset ones are left out."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))

    def only(self, *sections: str) -> Config:
        """The same settings in the named sections, defaults elsewhere.

        What is handed to a stage holds what changes its result and nothing else, so that a
        result is taken up again whenever it may be.
        """
        kept: dict[str, Any] = {name: getattr(self, name) for name in sections}
        if "compute" in kept:
            kept["compute"] = ComputeOptions(
                device=self.compute.device,
                precision=self.compute.precision,
                omp_nthreads=self.compute.omp_nthreads,
                random_seed=self.compute.random_seed,
            )
        return Config(bids_dir=Path(), output_dir=Path(), **kept)

    def signal_hash(self, source: str) -> str:
        """Of what changes the cleaned signals.

        Parameters
        ----------
        source : str
            Of what and on which grid, as settled by discovery: space, ``res-`` of the input,
            fingerprint of the grid.
        """
        return _hash(
            {
                "version": RESULTS_VERSION,
                "signal": self.signal.model_dump(mode="json", exclude={"min_time"}),
                "source": source,
            }
        )

    def model_hash(self, model: str, source: str) -> str:
        """Of what changes the results of one model: signals, recipe, templates, seed."""
        return _hash(
            {
                "signal": self.signal_hash(source),
                "model": model,
                "options": self.models.model_dump(mode="json", exclude={"model", "weights"}),
                "weights": sorted(file_hash(path) for path in self.models.weights)
                if self.models.weighted(model)
                else [],
                "networks": self.networks.model_dump(
                    mode="json", exclude={"save_dynamic_maps", "save_denoised"}
                ),
                "nulls": self.nulls.model_dump(mode="json"),
                "templates": file_hash(Path(self.networks.templates)),
                "seed": self.compute.random_seed,
                "precision": self.compute.precision,
            }
        )


def _sections() -> dict[str, str | None]:
    where: dict[str, str | None] = {}
    for name, info in Config.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, _Section):
            for option in info.annotation.model_fields:
                if option in where:
                    raise TypeError(f"option {option} stands in two sections")
                where[option] = name
        else:
            where[name] = None
    return where


_SECTION_OF = _sections()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


def _fault(item: Mapping[str, Any]) -> str:
    # Inside a union pydantic appends the name of the member that failed: of no use to a user.
    names = [str(part) for part in item["loc"] if str(part) in _SECTION_OF]
    option = f"--{names[-1].replace('_', '-')}: " if names else ""
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"unknown setting {'.'.join(str(part) for part in item['loc'])}"
    given = item.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float) else ""
    return f"{option}{message}{shown}"


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _model_of(weights: Path) -> str | None:
    """By the card; None where that cannot be read, which is said when the weights are loaded."""
    try:
        return str(json.loads(weights.with_suffix(".json").read_text())["Model"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Content, not name: the same file elsewhere gives the same results."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else str(path)
