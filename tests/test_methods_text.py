"""The methods text: it says what was done, and cites what it names."""

from __future__ import annotations

import re

from study import Study

from bids_fbn.config import MODELS
from bids_fbn.reports import methods_text, write_citation
from bids_fbn.reports.bibliography import cited_keys, references
from bids_fbn.reports.results import read_participant


def test_every_citation_has_a_reference(study: Study) -> None:
    for nuisance in (
        ("simple",),
        ("none",),
        ("scrubbing",),
        ("motion", "wm_csf", "high_pass", "compcor"),
    ):
        for templates in ("smith2009", "seitzman2018", "my.nii.gz"):
            text = methods_text(
                study.config(
                    signal={"nuisance": nuisance, "lower_bpf": 0.01, "dummy_scans": 0},
                    networks={"templates": templates},
                    models={"model": ("stca", "scaae")},
                )
            )
            entries = references(cited_keys(text))
            assert {"Liu2023stca", "Liu2024scaae"} <= {entry.key for entry in entries}
            assert ("Smith2009" in cited_keys(text)) == (templates == "smith2009")


def test_methods_say_what_was_done(study: Study) -> None:
    study.add("1")
    (run,) = read_participant(study.out, "01")
    config = study.config(signal={"smoothing": 0, "fd_thresh": 0.4, "nuisance": ("none",)})
    text = methods_text(config, [run.models[0].facts])
    assert "without smoothing" in text
    assert "No nuisance regression" in text
    assert "over 0.4 mm" in text
    assert "window of 10 volumes" in text
    assert "trained on 1 run, the same to which it was then applied" in text
    assert "4 networks of Quarters" in text
    assert "no evidence by itself" in text


def test_methods_say_when_the_box_was_continued(study: Study) -> None:
    study.add("1", "scaae", window=1)
    (run,) = read_participant(study.out, "01")
    config = study.config(models={"model": ("scaae",)})
    facts = run.models[0].facts
    assert "continued with zeros" not in methods_text(config, [facts])
    with_margin = facts | {"Recipe": {**facts["Recipe"], "margin": 6}}
    assert "ends within 6 voxels of the brain it was continued" in methods_text(
        config, [with_margin]
    )


def test_every_model_has_words_and_references(study: Study) -> None:
    for surrogates in ("phase", "var"):
        text = methods_text(
            study.config(models={"model": MODELS}, nulls={"surrogates": surrogates})
        )
        assert "gave" not in text
        assert "{" not in text
        entries = {entry.key for entry in references(cited_keys(text))}
        assert {"Nickerson2017", "Liu2013cap", "Vidaurre2017", "Beckmann2004"} <= entries
        assert {"Liegeois2017", "Phipson2010", "Westfall1993"} <= entries


def test_methods_speak_only_of_the_nulls_that_were_used(study: Study) -> None:
    study.add("1", "ica", window=None)
    (run,) = read_participant(study.out, "01")
    config = study.config(
        models={"model": ("ica",)}, nulls={"n_surrogate_maps": 1234}, compute={"random_seed": 7}
    )
    text = methods_text(config, [run.models[0].facts], {"network": 1234, "fit": 0})
    assert "1,234 sets of the templates turned, all alike, by more than a radian" in text
    assert "39 runs of Gaussian noise" in text
    assert "start from the random seed 7" in text
    for absent in ("haemodynamic", "static", "Prichard1994"):
        assert absent not in text
    assert "have their networks from the start" not in text
    with_task = methods_text(config, [run.models[0].facts], {"network": 9, "task": 2000})
    assert "2,000 series with random phases" in with_task


def test_methods_say_what_networks_stand_by(study: Study) -> None:
    words = {
        "search": "given a budget of 20 maps",
        "coherence": "Evidence of a network is instead its coherence",
        "by name": "held against its template",
        "random maps": "sets of Gaussian random fields",
        "turned": "turned, all alike, by more than a radian",
        "not by name": "For stcnn, turned templates have no meaning",
        "none by name": "For stcnn, random fields have no meaning",
    }
    turned, fields = {"surrogate_maps": "turned"}, {"surrogate_maps": "fields"}
    for models, nulls, said in (
        (("ica",), turned, {"search", "turned"}),
        (("ica",), fields, {"search", "random maps"}),
        (("udr",), turned, {"coherence", "turned"}),
        (("udr",), fields, {"coherence", "turned"}),
        (("stcnn",), turned, {"by name"}),
        (("ica", "udr", "stcnn"), turned, set(words) - {"random maps", "none by name"}),
        (("ica", "udr", "stcnn"), fields, set(words) - {"not by name"}),
    ):
        text = methods_text(study.config(models={"model": models}, nulls=nulls))
        assert {name for name, part in words.items() if part in text} == said, (models, nulls)


def test_citation_files(study: Study) -> None:
    markdown, page, bibliography = write_citation(study.out, study.config())
    text = markdown.read_text()
    for key in cited_keys(text):
        assert f"{{{key}," in bibliography.read_text()
        assert f'id="ref-{key}"' in page.read_text()
    assert "@" not in re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)
