"""Words for a methods section, from what was asked and what was done."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_fbn import __version__
from bids_fbn.bids.writing import write_text
from bids_fbn.config import NUISANCE_PRESETS, Config, SignalOptions
from bids_fbn.networks.dynamics import SMALLEST_SINGULAR_VALUE
from bids_fbn.reports.bibliography import Reference, cited_keys, references
from bids_fbn.reports.methods_evidence import weighing
from bids_fbn.reports.methods_models import first_fact, networks
from bids_fbn.reports.templating import listed, render

__all__ = ["markdown_to_html", "methods_text", "write_citation"]

_NUISANCE: Mapping[str, str] = {
    "motion": "head motion",
    "wm_csf": "mean signals of white matter and cerebrospinal fluid",
    "global_signal": "the global signal",
    "high_pass": "cosine drift terms",
    "compcor": "CompCor components",
    "non_steady_state": "non-steady-state volumes",
}
_MOTION: Mapping[str, str] = {
    "basic": "six parameters",
    "derivatives": "six parameters and their derivatives",
    "power2": "six parameters and their squares",
    "full": "six parameters, their derivatives, and the squares of both",
}


def methods_text(
    config: Config,
    decompositions: Iterable[Mapping[str, Any]] = (),
    surrogates: Mapping[str, int] | None = None,
) -> str:
    """A methods section in Markdown, with citation keys as pandoc reads them.

    Parameters
    ----------
    config : Config
        What was asked for.
    decompositions : iterable of mapping
        Contents of the ``decomposition.json`` files that the text is to speak of: what was
        done. Without any, the text says what would be done.
    surrogates : mapping, optional
        Claim of the evidence tables → surrogates. None where it is not known what there is.

    Returns
    -------
    str
        Paragraphs under headings of the third level.
    """
    done = list(decompositions)
    sections = [
        ("Signals", _signals(config, done)),
        ("Networks", networks(config, done)),
        ("Comparison with templates", _comparison(config, done)),
        ("States and their dynamics", _states(config, done)),
        ("Evidence", weighing(config, done, surrogates)),
        ("How to take the numbers", _caveats(done)),
        ("Software", _software(done)),
    ]
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in sections) + "\n"


def _signals(config: Config, done: Sequence[Mapping[str, Any]]) -> str:
    options = config.signal
    space = first_fact(done, "Grid", "Space") or config.data.space
    mask = str(first_fact(done, "Grid", "MaskSource") or "")
    smoothing = (
        f"smoothed with a Gaussian kernel of {options.smoothing:g} mm FWHM at their own "
        "resolution, then resampled"
        if options.smoothing
        else "resampled, without smoothing,"
    )
    parts = [
        "Preprocessed runs were read as BIDS derivatives [@Gorgolewski2016] in the layout of "
        f"fMRIPrep [@Esteban2019]{f', in the space {space}' if space else ''}.",
        f"They were {smoothing} with cubic splines to an isotropic grid of "
        f"{options.resolution:g} mm"
        + (f"; the analysis was confined to a brain mask ({_cite_source(mask)})" if mask else "")
        + ".",
        _nuisance(options),
        _censoring(options),
        _filtering(options),
        "Each voxel's signal was detrended and standardized to zero mean and unit standard "
        "deviation over the volumes kept.",
    ]
    return " ".join(part for part in parts if part)


def _cite_source(source: str) -> str:
    for word, key in (
        ("TemplateFlow", "Ciric2022"),
        ("Dosenbach", "Dosenbach2010"),
        ("nilearn", "Abraham2014"),
    ):
        if word in source:
            return f"{source} [@{key}]"
    return source


def _nuisance(options: SignalOptions) -> str:
    motion = _MOTION[options.motion]
    if options.nuisance == ("none",):
        return "No nuisance regression was done."
    if options.nuisance[0] in NUISANCE_PRESETS:
        what = f"the regressors of nilearn's `{options.nuisance[0]}` strategy"
        what += f" (head motion as {motion})" if options.nuisance[0] != "ica_aroma" else ""
    else:
        names = [_NUISANCE[name] for name in options.nuisance]
        names = [f"{name} ({motion})" if name == "head motion" else name for name in names]
        what = listed(names)
    return (
        f"With nilearn's `signal.clean` [@Abraham2014], {what} were regressed out [@Ciric2017]; "
        "only the volumes kept took part in the fit."
    )


def _censoring(options: SignalOptions) -> str:
    if options.dummy_scans == "auto":
        dummies = "Volumes that the preprocessing had marked as before the steady state"
    elif options.dummy_scans:
        dummies = f"The first {options.dummy_scans} volumes"
    else:
        dummies = ""
    moved = ""
    if options.fd_thresh is not None:
        moved = f"volumes with a framewise displacement [@Power2012] over {options.fd_thresh:g} mm"
    elif options.nuisance == ("scrubbing",):
        moved = "volumes marked by nilearn's scrubbing strategy [@Power2012]"
    if not dummies:
        moved = moved[:1].upper() + moved[1:]
    left_out = " and ".join(part for part in (dummies, moved) if part)
    if not left_out:
        return ""
    return (
        f"{left_out} were left out, as were volumes without signal; runs with less than "
        f"{options.min_time:g} s remaining were not analysed."
    )


def _filtering(options: SignalOptions) -> str:
    low, high = options.lower_bpf, options.upper_bpf
    if low is None and high is None:
        return ""
    band = (
        f"{low:g} to {high:g} Hz"
        if low and high
        else (f"above {low:g} Hz" if low else f"below {high:g} Hz")
    )
    return (
        f"Signals and regressors were filtered alike ({band}, fifth-order Butterworth), so that "
        "the regression brought nothing back [@Lindquist2019]; volumes left out were bridged by "
        "cubic splines for the filter only."
    )


def _comparison(config: Config, done: Sequence[Mapping[str, Any]]) -> str:
    name = str(first_fact(done, "Templates") or config.networks.templates)
    n_networks = len(first_fact(done, "Networks") or ())
    key = {"smith2009": "Smith2009", "seitzman2018": "Seitzman2020"}.get(name.lower())
    template_rule = first_fact(done, "TemplateRule")
    rule = _support_rule(done)
    places = first_fact(done, "PeakPlaces")
    parts = [
        f"Candidate maps were compared with the {n_networks or ''} networks of {name}".replace(
            "the  networks", "the networks"
        )
        + (f" [@{key}]" if key else "")
        + (
            f"; a voxel belonged to a template by this rule: {template_rule}"
            if template_rule
            else ""
        )
        + ".",
        f"The support of a candidate was: {rule}." if rule else "",
        "Overlap is the intersection over union (IoU) of the two supports; the Dice coefficient "
        "and Pearson's r over voxels stand beside it. In each time step the IoU of a network is "
        "that of the best candidate. For the map of a network (FBN) each candidate served one "
        "template at most (one-to-one assignment); the map is the mean of the network's own "
        "candidates, weighted by IoU, over the steps where that reached "
        f"{_threshold(config, done):g}, as z over the mask. A network whose own candidate never "
        "reached it is called weak, and its map is the candidate assigned to it in the step in "
        "which that overlaps most. Where the model gives no courses of its own, they are the "
        "least-squares fit of the cleaned signal by the maps of all networks that are not weak at "
        f"once, without singular values below {SMALLEST_SINGULAR_VALUE:.2f} of the largest, so "
        "that maps which nearly depend on each other share a course; the course of a weak network "
        "is fitted by its map alone.",
        f"Places of peaks are named after {_cite_source(_places(str(places)))}." if places else "",
    ]
    return " ".join(part for part in parts if part)


def _support_rule(done: Sequence[Mapping[str, Any]]) -> str:
    """The rule, or the rule of each model where they differ."""
    models: dict[str, list[str]] = {}
    for facts in done:
        of_rule = models.setdefault(str(facts["SupportRule"]), [])
        if facts["Method"] not in of_rule:
            of_rule.append(str(facts["Method"]))
    if len(models) < 2:
        return "".join(models)
    return "; ".join(f"{rule} ({', '.join(names)})" for rule, names in models.items())


def _places(source: str) -> str:
    return source.replace("TemplateFlow:", "the 400 parcels [@Schaefer2018] of TemplateFlow,")


def _threshold(config: Config, done: Sequence[Mapping[str, Any]]) -> float:
    value = first_fact(done, "StateThreshold")
    return float(config.networks.state_threshold if value is None else value)


def _by_amplitude(done: Sequence[Mapping[str, Any]]) -> str:
    told = [facts for facts in done if facts.get("StateCertainty") is not None]
    if not told:
        return ""
    names = ", ".join(dict.fromkeys(str(facts["Method"]) for facts in told))
    return (
        f"By methods that are told of their networks ({names}) it is the one with the largest "
        "amplitude [@Nickerson2017]: the root mean square of its course, about its mean over the "
        "run, in the window, by that over the run; where the probability that it is the largest "
        "is at least "
        f"{float(told[0]['StateCertainty']):g}, by what courses from two halves of the voxels "
        "differ by, else none. "
    )


def _states(config: Config, done: Sequence[Mapping[str, Any]]) -> str:
    if done and all(facts.get("Window") is None for facts in done):
        return (
            "Each model took the whole run at once: there is one time step, hence no states and "
            "no change over time."
        )
    return (
        "The state of a time step is the network with the highest IoU, where that is at least "
        f"{_threshold(config, done):g}, else none [@Liu2022scaae]. {_by_amplitude(done)}"
        "Transitions are counted "
        "between consecutive steps that both have a state. Fractional occupancy is the share of "
        "steps with a state; a visit is an unbroken stretch in one state, and its length is the "
        "dwell time; the switching rate counts changes of state per minute of steps with a state; "
        "entropies (bit) are those of the occupancies and of the rows of the transition matrix, "
        "weighted by departures. Time steps are volumes, or centres of windows of kept volumes; a "
        "step that was left out, or whose window bridges a gap longer than a tenth of itself, is "
        "missing (n/a)."
    )


def _caveats(done: Sequence[Mapping[str, Any]]) -> str:
    windows = {
        (int(facts["Window"]), int(facts["Stride"]))
        for facts in done
        if (facts.get("Window") or 1) > 1 and facts.get("Stride") is not None
    }
    shared = [
        f"windows of {window} volumes at a stride of {stride} share "
        f"{max(0.0, 1 - stride / window):.1%} of their volumes"
        for window, stride in sorted(windows)
    ]
    overlap = (
        f"Neighbouring steps are not independent ({'; '.join(shared)}): IoU with the previous "
        "step is high for anything and is given beside that of windows a full width apart. "
        if shared
        else ""
    )
    return (
        "The highest IoU over all candidates and steps, the figure that the literature reports, "
        "rises with the number of maps searched whether or not there is a network; it is given "
        f"with that number and is no evidence by itself. {overlap}What is not below 0.05 after "
        "correction should not be reported as found."
    )


def _software(done: Sequence[Mapping[str, Any]]) -> str:
    version = first_fact(done, "GeneratedBy", "Version") or __version__
    torch = first_fact(done, "Training", "TorchVersion")
    return (
        f"bids_fbn {version}, a BIDS App [@Gorgolewski2017], on nipype [@Gorgolewski2011], pybids "
        f"[@Yarkoni2019], nilearn [@Abraham2014] and PyTorch{f' {torch}' if torch else ''} "
        "[@Paszke2019]."
    )


def markdown_to_html(text: str, cited: Sequence[Reference]) -> str:
    """The Markdown that :func:`methods_text` writes, as HTML; citations link to ``#ref-KEY``."""
    by_key = {reference.key: reference for reference in cited}

    def citation(match: re.Match[str]) -> str:
        links = [
            f'<a href="#ref-{key}">{html.escape(by_key[key].short)}</a>'
            for key in re.findall(r"@(\w+)", match[1])
        ]
        return f"({'; '.join(links)})"

    blocks = []
    for block in text.strip().split("\n\n"):
        inline = html.escape(block.removeprefix("### "), quote=False)
        inline = re.sub(r"`([^`]+)`", r"<code>\1</code>", inline)
        inline = re.sub(r"\[(@[^\]]+)\]", citation, inline)
        tag = "h3" if block.startswith("### ") else "p"
        blocks.append(f"<{tag}>{inline}</{tag}>")
    return "\n".join(blocks)


def write_citation(
    out: Path, config: Config, decompositions: Iterable[Mapping[str, Any]] = ()
) -> tuple[Path, Path, Path]:
    """Write ``logs/CITATION.md``, ``.html`` and ``.bib``.

    Parameters
    ----------
    out : Path
        The output dataset.
    config : Config
    decompositions : iterable of mapping
        As for :func:`methods_text`.

    Returns
    -------
    tuple of Path
        The three files; the ``.bib`` has the entries that the text cites.
    """
    text = methods_text(config, decompositions)
    cited = references(cited_keys(text))
    markdown, page, bibliography = (
        out / "logs" / f"CITATION.{suffix}" for suffix in ("md", "html", "bib")
    )
    write_text(bibliography, "\n\n".join(entry.bibtex for entry in cited) + "\n")
    write_text(markdown, f"{text}\n### References\n\n{_reference_list(cited)}\n")
    write_text(
        page,
        render(
            "citation.html.jinja",
            version=__version__,
            methods=markdown_to_html(text, cited),
            references=cited,
        ),
    )
    return markdown, page, bibliography


def _reference_list(cited: Sequence[Reference]) -> str:
    return "\n".join(
        f"- {entry.text}" + (f" https://doi.org/{entry.doi}" if entry.doi else "")
        for entry in cited
    )
