"""Words for a methods section: what the results were held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from bids_fbn.config import BASELINES, GIVEN_MAPS, TRAINED, Config
from bids_fbn.networks.budget import GAP
from bids_fbn.reports.templating import listed

__all__ = ["weighing"]

_STATIC: Mapping[str, str] = {
    "phase": (
        "surrogates of the run whose phases were randomised, the same for all voxels and within "
        "what nuisance regression had left [@Prichard1994; @Liegeois2017]"
    ),
    "var": (
        "realisations of a stationary Gaussian vector autoregressive model of the run, fitted to "
        "its leading principal components [@Liegeois2017], of which the same nuisances were "
        "regressed out"
    ),
}


def weighing(
    config: Config, done: Sequence[Mapping[str, Any]], surrogates: Mapping[str, int] | None
) -> str:
    """What the networks, their change over time and the task were held against.

    Parameters
    ----------
    config : Config
    done : sequence of mapping
        Contents of the ``decomposition.json`` files; without any, of the models asked for.
    surrogates : mapping or None
        Claim of the evidence tables → surrogates; None where it is not known what there is.
    """
    if surrogates is not None and not surrogates:
        return "No test against surrogate data is part of these results."
    models = list(dict.fromkeys(str(facts["Method"]) for facts in done)) or config.models.model
    over_time = not done or any(facts.get("Window") is not None for facts in done)
    # Of weights that were given only the results know what they are of.
    unnamed = {facts["Method"] for facts in done if facts.get("Candidates") == "components"}
    told = [name for name in models if config.models.told(name) and name not in unnamed]
    named = {facts["Method"] for facts in done if facts.get("Candidates") == "named components"}
    parts = [_networks(config, models, told, named), _halves(config, models)]
    if over_time:
        parts.append(_dynamics(config, list(models)))
    if surrogates is None:
        parts.append("Where a run has events, " + _task("many"))
    elif "task" in surrogates:
        task = _task(f"{surrogates['task']:,}")
        parts.append(task[:1].upper() + task[1:])
    parts.append(
        "Every p is the share of the surrogates, the observed value among them [@Phipson2010], "
        "that are as extreme; what is tested together is corrected by the maximum of its "
        "standardised values [@Westfall1993], networks divided by no less than the median of "
        "their spreads. Surrogates start from the random seed "
        f"{config.compute.random_seed}."
    )
    return "\n\n".join(parts)


def _networks(config: Config, models: Sequence[str], told: Sequence[str], named: Set[str]) -> str:
    nulls = config.nulls
    searching = [name for name in models if name not in told]
    given = [name for name in told if name in GIVEN_MAPS]
    learned = [name for name in told if name not in GIVEN_MAPS]
    sentences = []
    if searching:
        sentences.append(
            "A method that offers more maps finds better matches by that alone. Each was "
            f"therefore given a budget of {nulls.budget} maps, spent on those that explain most "
            "of the run's variance (forward selection by orthogonal least squares [@Chen1989]), "
            "a ranking that knows no template; among these, each template was assigned one map "
            "at most, by IoU."
        )
    if learned:
        sentences.append(
            f"The maps of {listed(learned)} have their networks from the start: there is no "
            "search, and the mean map of each network over time was held against its template."
        )
    if given:
        start = "those of a group" if named >= set(given) else "the templates"
        sentences.append(
            f"The maps of {listed(given)} start from {start} and overlap with them "
            "in any data. Evidence of a network is instead its coherence: all maps that the "
            "method starts from were fitted to the volumes in each half of the voxels by itself "
            "(blocks of 45 mm, like a chessboard), and the courses of the two halves were "
            "correlated over time (mean Fisher z over four positions of the board)."
        )
    kinds = []
    by_fields = searching and nulls.surrogate_maps == "fields"
    sets = f"{nulls.n_surrogate_maps:,} sets of"
    if nulls.n_surrogate_maps and (searching or given):
        fields = (
            f"in {sets} Gaussian random fields with the spatial autocorrelation of the candidate "
            "maps, estimated in the mask, and their correlations with each other"
        )
        turned = (
            f"for {sets} the templates turned, all alike, by more than a radian about a random "
            "axis, as in spin tests [@AlexanderBloch2018]: half of the sets about the middle of "
            "the brain, half in either hemisphere about its own middle, one as the mirror image "
            "of the other (two nulls), in coordinates standardised along each axis; each kept its "
            "values within each quarter of the brain by share of grey matter"
        )
        if not by_fields:
            kinds.append(turned)
        else:
            kinds.append(f"{fields} (the coherence: {turned})" if given else fields)
    if nulls.n_surrogates:
        kinds.append(
            f"in {nulls.n_surrogates:,} runs of Gaussian noise with the smoothness in space and "
            "the mean power spectrum of the run, cleaned of as many nuisances, beside the mean "
            "signals of its grey matter, white matter and fluid by the share of each voxel, to "
            "which the method was applied in the same way"
        )
    if not kinds:
        return " ".join([*sentences, "No surrogates were made: nothing says what chance gives."])
    repeated = f"The same was repeated {'; and '.join(kinds)}."
    if learned and len(models) > len(learned) and nulls.n_surrogate_maps:
        others = "random fields" if by_fields else "turned templates"
        repeated += f" For {listed(learned)}, {others} have no meaning."
    p = "p is one-sided, corrected over the networks"
    if len(kinds) == 2:
        p += "; of the nulls the highest was taken."
    elif searching or given:
        p += ". The other null was not computed, so no network stands."
    else:
        p += "."
    return " ".join([*sentences, repeated, p])


def _halves(config: Config, models: Sequence[str]) -> str:
    both = [name for name in models if name in TRAINED and config.of_the_run(name)]
    seen = f" What {listed(both)} learned is of the whole run, both halves of it." if both else ""
    return (
        f"Each run was also cut in two halves, {GAP} volumes apart. Maps were chosen in one half "
        "in the same way; the map of the other half most similar to the chosen one (|r| over "
        "voxels, no template) was held against the template. So was the share of the variance of "
        "one half that the maps of the other explain, by least squares. Both are means of both "
        f"ways.{seen}"
    )


def _dynamics(config: Config, models: Sequence[str]) -> str:
    nulls = config.nulls
    if not nulls.n_surrogates:
        return "No surrogates were made over time: nothing speaks for change over time."
    untested = [n for n in models if not config.tests_change(n)]
    models = [n for n in models if n not in untested]
    trained = (
        f"{listed(untested)} {'was' if len(untested) == 1 else 'were'} trained on the run itself"
    )
    why = f"{trained}, which surrogates are not: nothing speaks for change over time there."
    if not models:
        return why
    given = [n for n in models if config.models.weighted(n)]
    applied = [
        n for n in models if n in given or (n not in BASELINES and not nulls.refit_surrogates)
    ]
    if given and len(given) == len(models):
        how = "to which each method was applied as it was trained beforehand"
    elif not applied:
        how = "to each of which each method was fitted anew"
    elif len(applied) == len(models):
        how = "to which each network was applied with the weights that it has for the run"
    else:
        how = (
            f"to which {listed(applied)} {'was' if len(applied) == 1 else 'were'} applied "
            "with the weights of the run, the other methods fitted anew"
        )
    return (
        "Measures of change over time (IoU between steps, its variation, switching, dwell, "
        f"entropies, states visited) were held against those of {nulls.n_surrogates:,} "
        f"{_STATIC[nulls.surrogates]}, {how}. Correlations in these are static, so what changes "
        "there is chance; p is two-sided, corrected over the measures."
        f"{' ' + why if untested else ''}"
    )


def _task(n_surrogates: str) -> str:
    return (
        "the course of each network, and its IoU over time, were correlated with the expected "
        "response to each condition: events convolved with SPM's canonical haemodynamic response "
        f"by nilearn [@Abraham2014], for IoU averaged over the window. p is two-sided, from "
        f"{n_surrogates} series with random phases [@Prichard1994], corrected over networks and "
        "conditions."
    )
