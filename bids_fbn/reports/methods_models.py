"""Words for a methods section: what each model is and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bids_fbn.config import TRAINED, Config
from bids_fbn.models.naming import NAMING_TURNS

__all__ = ["first_fact", "networks"]

# What each model is, in the words of its papers.
_MODELS: Mapping[str, str] = {
    "stca": (
        "STCA (spatial-temporal convolutional attention) [@Liu2023stca; @Liu2024stca] takes a "
        "window of {window} as the channels of a 3-D convolutional autoencoder and is trained to "
        "reconstruct it; the logits of its spatial attention, {candidates} maps for each window, "
        "are the candidate networks."
    ),
    "scaae": (
        "SCAAE (spatial and channel-wise attention autoencoder) [@Liu2022scaae; @Liu2024scaae] "
        "takes single volumes and is trained to reconstruct them; the logits of its spatial "
        "attention{weighting} give {candidates} candidate maps for each volume.{margin}"
    ),
    "stcnn": (
        "ST-CNN (spatio-temporal convolutional neural network) [@Zhao2020stcnn] takes a window of "
        "{window} as the channels of a 3-D U-Net, which gives the maps of {candidates} networks; "
        "a 1-D U-Net turns the signal within each map into the network's course. It is taught: "
        "what it reproduces are components of dictionary learning [@Mensch2016] in the runs that "
        "it was trained on, each assigned to one template, so its maps are no independent "
        "evidence that a network exists.{turned}"
    ),
    "udr": (
        "Unrolled dual regression is a model of bids_fbn. In each window of {window} it applies "
        "dual regression [@Nickerson2017] from {start}, {prior}. It gives a map of each of "
        "{candidates} {kind}. They resemble what they start from whatever the data, so they are "
        "no independent evidence that a network exists.{courses}"
    ),
    "untrained-stca": (
        "Untrained STCA is the network of STCA [@Liu2023stca; @Liu2024stca], on a window of "
        "{window}, with the random weights that it starts from: it shows what network and search "
        "find without having learned anything. It gives {candidates} maps for each window."
    ),
    "untrained-scaae": (
        "Untrained SCAAE is the network of SCAAE [@Liu2022scaae; @Liu2024scaae] with the random "
        "weights that it starts from: it shows what network and search find without having "
        "learned anything. It gives {candidates} maps for each volume.{margin}"
    ),
    "pca": (
        "Principal component analysis of {scope} gives the {components} maps of most variance, "
        "orthogonal to each other, each turned so that its longer tail is positive."
    ),
    "ica": (
        "Spatial independent component analysis [@McKeown1998; @Beckmann2004] of {scope}, by "
        "scikit-learn's FastICA [@Pedregosa2011] of its leading principal components, gives "
        "{components} maps, each turned so that its longer tail is positive."
    ),
    "sdl": (
        "Sparse dictionary learning [@Mensch2016] of {scope}, by nilearn [@Abraham2014], gives "
        "{components} maps, each turned so that its longer tail is positive."
    ),
    "dualregression": (
        "Dual regression [@Nickerson2017] starts from the templates: least squares of the volumes "
        "on all of them give courses, least squares of the volumes on these the networks' own "
        "maps, here of {scope}. Its maps resemble the templates whatever the data, so they are no "
        "independent evidence that a network exists. Courses of the networks are those of the "
        "first step, over the run."
    ),
    "cap": (
        "Co-activation patterns [@Liu2013cap] are clusters of all volumes by their correlation "
        "(k-means of scikit-learn [@Pedregosa2011], {components} clusters, the best of ten "
        "starts); the candidate of a volume is the mean of the run's volumes in its cluster."
    ),
    "hmm": (
        "A hidden Markov model [@Vidaurre2017] of {components} states, Gaussian with a variance "
        "for each of the ten leading principal components but no covariances, was fitted by "
        "hmmlearn; the candidate of a volume is the mean of the run's volumes in the "
        "same state of the most probable sequence."
    ),
}
# From what unrolled dual regression starts.
_TEMPLATES = {
    "start": "the templates",
    "kind": "networks",
    "courses": " Courses of the networks are those of dual regression, over the run.",
}
_SHRUNK = (
    "and shrinks the maps towards a prior mean (what it starts from, or the mean of the maps of "
    "several participants if it learned from such), at the size that each network has in the "
    "window, by a spread from which noise is taken out, as template ICA has it [@Mejia2020]; the "
    "ridge of its regression and a factor of the noise are learned"
)
_BESIDE_MODES = (
    "{times}with the {modes} leading modes of the volumes of the participants that it was trained "
    "on beside the volumes of the window, which shrinks the window's covariance towards theirs "
    "[@Ledoit2004]; how many volumes the modes count for is learned"
)
_COMPONENTS = {
    "start": (
        "the maps of a group ICA [@Beckmann2004] of the runs that it was trained on, each turned "
        "so that its longer tail is positive"
    ),
    "kind": "components",
    "courses": "",
}
_NAMED = (
    " A component was called after the template that it was assigned by IoU, one to one, if its "
    "group map overlaps with that more than the same search finds for {turns} sets of turned "
    "templates of either kind (see below; p < 0.05 by both, corrected over the templates). Of "
    "templates without a component nothing is claimed."
)
# Whose result depends on where it starts.
_BY_CHANCE = frozenset({"untrained-stca", "untrained-scaae", "ica", "sdl", "cap", "hmm"})
_TURNED = (
    " Windows were first turned in time, by an orthogonal transform, to a reference window of "
    "the first training run [@Joshi2018]."
)
_MARGIN = (
    " Where the image box ends within {voxels} voxels of the brain it was continued with zeros, "
    "so that what the network sees of its padding does not come to lie on the brain."
)
# How the training of a model goes, where it is not Adam on the error of a reconstruction.
_TRAININGS: Mapping[str, str] = {
    "stcnn": (
        "Adadelta, learning rate {rate:g}, {epochs} in each of three stages (spatial part, "
        "temporal part, both), batches of {batch}; mean squared error of the maps less 0.1 times "
        "the correlation of the courses"
    ),
    "udr": (
        "Adam, learning rate {rate:g} at first, {epochs}, batches of {batch}; share of the "
        "variance of other volumes of the run, away from the window, that its maps leave "
        "unexplained"
    ),
}
_AUTOENCODER = (
    "Adam, learning rate {rate:g}, {epochs}, batches of {batch}; mean squared error of the "
    "reconstruction"
)
_PRESETS: Mapping[str, str] = {
    "as-published": (
        "The `as-published` recipe was used, which repeats the papers and their released code "
        "with their shortcomings: loss and statistics are taken over the whole image box rather "
        "than over the brain."
    ),
    "corrected": (
        "The `corrected` recipe of bids_fbn was used, which differs from the published one: loss "
        "and statistics are taken over the brain mask, what lies beyond its bounding box is left "
        "out of the reconstruction, and training samples are drawn in random order."
    ),
    # The only one of its model.
    "unrolled": "",
    "sloppy": (
        "The `sloppy` recipe was used, a small form for trying the software out: its results "
        "mean nothing and must not be reported."
    ),
}


def first_fact(decompositions: Sequence[Mapping[str, Any]], *keys: str) -> Any:
    """A fact of the first decomposition that has it."""
    for facts in decompositions:
        value: Any = facts
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def networks(config: Config, done: Sequence[Mapping[str, Any]]) -> str:
    asked: list[str] = list(config.models.model)
    by_model: dict[str, list[Mapping[str, Any]]] = {} if done else {name: [] for name in asked}
    for facts in sorted(
        done, key=lambda f: asked.index(f["Method"]) if f["Method"] in asked else len(asked)
    ):
        by_model.setdefault(str(facts["Method"]), []).append(facts)
    paragraphs = [_model(name, facts, config) for name, facts in by_model.items()]
    return "\n\n".join(paragraphs)


def _model(name: str, done: Sequence[Mapping[str, Any]], config: Config) -> str:
    window = first_fact(done, "Window") or config.models.window
    words = _MODELS.get(name, f"The model `{name}` gave {{candidates}} candidate maps a step.")
    preset = str(
        first_fact(done, "Preset") or ("sloppy" if config.models.sloppy else config.models.preset)
    )
    kind = first_fact(done, "Candidates") or config.models.candidates
    n_components = first_fact(done, "Recipe", "components") or config.models.components
    margin = first_fact(done, "Recipe", "margin")
    started: dict[str, str] = {}
    if name == "udr":
        started = (_COMPONENTS if n_components else _TEMPLATES) | {"prior": _prior(done)}
        if kind == "named components":
            courses = _TEMPLATES["courses"] + _NAMED.format(turns=NAMING_TURNS // 2)
            started |= {"courses": courses}
    parts = [
        words.format(
            window=f"{window} volumes" if window else "volumes",
            scope=_scope(name, window),
            components=first_fact(done, "Recipe", "components") or "the",
            candidates=first_fact(done, "CandidatesPerStep") or "the",
            weighting="" if kind == "channels" else ", weighted by its channel attention,",
            margin=_MARGIN.format(voxels=margin) if margin else "",
            turned=_TURNED if first_fact(done, "Recipe", "synchronize") else "",
            **started,
        ),
        "" if name not in TRAINED and preset != "sloppy" else _preset(preset),
        _training(name, done) if name in TRAINED else _source(name, done),
    ]
    return " ".join(part for part in parts if part)


def _prior(done: Sequence[Mapping[str, Any]]) -> str:
    """What unrolled dual regression has beside the volumes of a window."""
    modes, times = (first_fact(done, "Recipe", key) for key in ("modes", "repetitions"))
    if not modes:
        return _SHRUNK
    repeated = f"courses and maps fitted to each other {times} times, " if times > 1 else ""
    return _BESIDE_MODES.format(modes=modes, times=repeated)


def _preset(preset: str) -> str:
    return _PRESETS.get(preset, f"The recipe `{preset}` was used.")


def _scope(name: str, window: int | None) -> str:
    if window:
        return f"each window of {window} volumes"
    return "each window" if name == "dualregression" else "the whole run at once"


def _source(name: str, done: Sequence[Mapping[str, Any]]) -> str:
    """Of what a method that is not trained in epochs was learned."""
    sentences = []
    n_runs = len(first_fact(done, "Training", "Runs") or ())
    if isinstance(first_fact(done, "Weights"), list) and n_runs:
        runs = f"{n_runs} run{'' if n_runs == 1 else 's'}"
        sentences.append(f"What it had learned beforehand, of {runs}, was applied to each run.")
    seed = first_fact(done, "Training", "Seed")
    if name in _BY_CHANCE and seed is not None:
        sentences.append(f"Random seed {seed}.")
    return " ".join(sentences)


def _training(name: str, done: Sequence[Mapping[str, Any]]) -> str:
    recipe = first_fact(done, "Recipe")
    training = first_fact(done, "Training")
    if not recipe:
        return ""
    n_runs = len((training or {}).get("Runs", []))
    runs = f" on {n_runs} run{'' if n_runs == 1 else 's'}" if n_runs else ""
    if isinstance(first_fact(done, "Weights"), list):
        source = f"The weights had been trained beforehand{runs}"
        if n_runs:
            seen = sum(bool(facts.get("TrainedOnThisRun")) for facts in done)
            source += (
                f", {seen} of the {len(done)} analysed here among them"
                if seen
                else ", none of which is analysed here"
            )
    elif n_runs:
        source = f"The network was trained{runs}, the same to which it was then applied"
    else:
        source = "The network was trained"
    how = _TRAININGS.get(name, _AUTOENCODER).format(
        rate=recipe["learning_rate"],
        epochs=f"{recipe['epochs']} epoch{'' if recipe['epochs'] == 1 else 's'}",
        batch=recipe["batch"],
    )
    sentence = f"{source} ({how})."
    n_held_out = len((training or {}).get("ValidationRuns", []))
    if n_held_out:
        sentence += (
            f" Of its epochs the one was kept that did best on {n_held_out} further runs of "
            "participants held out."
        )
    if training and training.get("Seed") is not None:
        sentence += (
            f" Random seed {training['Seed']}, {training.get('Device', 'unknown device')}, "
            f"{training.get('Precision', '')} precision."
        )
    return sentence
