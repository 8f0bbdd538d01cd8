"""Which runs a call finds, and what it says of those that it cannot use."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trees import MNI, RAW, Tree

from bids_fbn.bids.discovery import Discovery, RunFault, discover, runs_table
from bids_fbn.bids.filenames import Folders, parse_name
from bids_fbn.bids.inputs import Dataset, find_bold, open_layout
from bids_fbn.bids.spaces import is_adult_mni, parse_space
from bids_fbn.config import Config
from bids_fbn.errors import InputError


def find(root: Path, **options: Any) -> Discovery:
    return discover(Config.from_options({"bids_dir": root, "output_dir": "out", **options}))


def faults_of(root: Path, **options: Any) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        find(root, **options)
    assert all("\n" not in line for line in caught.value.faults)
    return caught.value.faults


def prefixes(found: Discovery) -> list[str]:
    return [run.prefix for run in found.runs]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "fmriprep")


@pytest.fixture
def study(tree: Tree) -> Tree:
    """Two participants; two sessions with rest and two runs of n-back, one of them missing."""
    for prefix in (
        "sub-01_ses-1_task-rest",
        "sub-01_ses-1_task-nback_run-01",
        "sub-01_ses-1_task-nback_run-02",
        "sub-01_ses-2_task-rest",
        "sub-02_ses-1_task-rest",
    ):
        tree.run(prefix)
    return tree


# What is found


def test_a_run_and_its_files(tree: Tree) -> None:
    bold = tree.run("sub-01_ses-1_task-rest_run-01", space=f"space-{MNI}_res-2")
    tree.write("sub-01/ses-1/func/sub-01_ses-1_task-rest_run-01_events.tsv", "onset\tduration\n")
    (run,) = find(tree.root).runs
    assert run.bold == bold
    assert run.entities == {
        "subject": "01",
        "session": "1",
        "task": "rest",
        "run": "01",
        "space": MNI,
        "res": "2",
        "desc": "preproc",
    }
    assert run.prefix == "sub-01_ses-1_task-rest_run-01"
    assert (run.space, run.n_volumes, run.repetition_time) == (MNI, 5, 2.0)
    names = [
        path.name.split("run-01_")[1] for path in (run.mask, run.confounds, run.events) if path
    ]
    assert names == [
        f"space-{MNI}_res-2_desc-brain_mask.nii.gz",
        "desc-confounds_timeseries.tsv",
        "events.tsv",
    ]
    assert run.confounds_metadata is not None
    assert run.confounds_metadata.suffix == ".json"
    assert run.bids_uri == (
        "bids::sub-01/ses-1/func/"
        f"sub-01_ses-1_task-rest_run-01_space-{MNI}_res-2_desc-preproc_bold.nii.gz"
    )


def test_runs_are_sorted_by_name(study: Tree) -> None:
    names = prefixes(find(study.root))
    assert len(names) == 5
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("options", "n_runs"),
    [
        ({"participant_label": ["sub-02"]}, 1),
        ({"session_id": ["ses-1"]}, 4),
        ({"task_id": ["rest"]}, 3),
        ({"task_id": ["nback"], "run_id": ["1"]}, 1),
        ({"run_id": ["02", "01"]}, 2),
        ({"participant_label": ["01"], "session_id": ["2"], "task_id": ["rest"]}, 1),
    ],
)
def test_options_choose(study: Tree, options: dict[str, Any], n_runs: int) -> None:
    assert len(find(study.root, **options).runs) == n_runs


@pytest.mark.parametrize(
    ("bold", "n_runs"),
    [
        ({"run": None}, 3),
        ({"run": "*"}, 2),
        ({"run": 1}, 1),
        ({"run": ["1", None]}, 4),
        ({"session": "2", "datatype": "func", "suffix": "bold", "extension": "nii.gz"}, 1),
        ({"acquisition": None, "task": ["rest", "nback"]}, 5),
    ],
)
def test_filter_file_chooses(study: Tree, bold: dict[str, Any], n_runs: int) -> None:
    file = study.write("../filter.json", {"bold": bold, "t1w": {"session": "1"}})
    assert len(find(study.root, bids_filter_file=file).runs) == n_runs


def test_names_of_folders_above_the_dataset_do_not_matter(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "sub-99" / "ses-9_task-x_desc-y" / "fmriprep")
    tree.run("sub-01_task-rest")
    assert prefixes(find(tree.root)) == ["sub-01_task-rest"]


def test_aroma_surface_and_reference_files_are_no_candidates(tree: Tree) -> None:
    tree.run("sub-01_task-rest")
    func = "sub-01/func/sub-01_task-rest"
    tree.image(f"{func}_space-MNI152NLin6Asym_desc-smoothAROMAnonaggr_bold.nii.gz")
    tree.image(f"{func}_space-{MNI}_boldref.nii.gz", shape=(2, 3, 2))
    tree.write(f"{func}_hemi-L_space-fsaverage5_bold.func.gii", "surface")
    tree.write(f"{func}_space-fsLR_den-91k_bold.dtseries.nii", "cifti")
    assert prefixes(find(tree.root)) == ["sub-01_task-rest"]


@pytest.mark.parametrize(
    "name", ["desc-confounds_timeseries", "desc-confounds_regressors", "bold_confounds"]
)
def test_confounds_of_every_fmriprep(tree: Tree, name: str) -> None:
    tree.run("sub-01_task-rest", confounds=name)
    (run,) = find(tree.root).runs
    assert run.confounds is not None
    assert run.confounds.name == f"sub-01_task-rest_{name}.tsv"


def test_confounds_are_those_of_the_same_run(tree: Tree) -> None:
    tree.run("sub-01_task-rest_run-1")
    tree.run("sub-01_task-rest_run-2", confounds=None)
    found = find(tree.root)
    assert prefixes(found) == ["sub-01_task-rest_run-1"]
    assert [fault.prefix for fault in found.faults] == ["sub-01_task-rest_run-2"]


def test_run_1_and_run_01_are_two_runs(tree: Tree) -> None:
    tree.run("sub-01_task-rest_run-1")
    tree.run("sub-01_task-rest_run-01")
    assert len(find(tree.root, run_id=["1"]).runs) == 2


def test_uncompressed_image_and_missing_mask(tree: Tree) -> None:
    bold = tree.run("sub-01_task-rest", extension=".nii")
    Path(str(bold).replace("preproc_bold", "brain_mask")).unlink()
    (run,) = find(tree.root).runs
    assert run.bold.suffix == ".nii"
    assert run.mask is None


def test_old_derivatives_are_known_by_their_file_names(tmp_path: Path) -> None:
    tree = Tree(tmp_path, {"Name": "old", "BIDSVersion": "1.0.2"})
    tree.run("sub-01_task-rest")
    assert len(find(tree.root).runs) == 1


def test_table_for_dry_run(study: Tree) -> None:
    table = runs_table(find(study.root).runs)
    assert list(table.columns) == [
        *("run", "bold", "mask", "confounds", "repetition_time", "volumes", "space")
    ]
    assert table["volumes"].tolist() == [5] * 5
    assert runs_table([]).empty


# Raw dataset with derivatives


def test_bold_from_derivatives_and_events_from_raw(tmp_path: Path) -> None:
    raw = Tree(tmp_path / "raw", RAW)
    raw.image("sub-01/func/sub-01_task-rest_bold.nii.gz")
    raw.write("task-rest_bold.json", {"RepetitionTime": 1.5})
    events = raw.write("sub-01/func/sub-01_task-rest_events.tsv", "onset\tduration\n")
    tree = Tree(tmp_path / "out")
    tree.run("sub-01_task-rest", repetition_time=None)
    (run,) = find(raw.root, derivatives={"prep": tree.root}).runs
    assert run.events == events
    assert run.repetition_time == 1.5
    assert run.bids_uri.startswith("bids:prep:sub-01/func/sub-01_task-rest_space-")


def test_sidecar_of_derivatives_goes_before_that_of_raw(tmp_path: Path) -> None:
    raw = Tree(tmp_path / "raw", RAW)
    raw.write("task-rest_bold.json", {"RepetitionTime": 1.5})
    tree = Tree(tmp_path / "out")
    tree.run("sub-01_task-rest", repetition_time=3.0)
    (run,) = find(raw.root, derivatives={"prep": tree.root}).runs
    assert run.repetition_time == 3.0


def test_the_same_run_of_two_derivatives_is_a_fault(tmp_path: Path) -> None:
    raw = Tree(tmp_path / "raw", RAW)
    trees = [Tree(tmp_path / name) for name in ("first", "second")]
    for tree in trees:
        tree.run("sub-01_task-rest")
    _, fault = faults_of(raw.root, derivatives={tree.root.name: tree.root for tree in trees})
    assert "are the same run" in fault
    assert all(str(tree.root) in fault for tree in trees)


def test_raw_dataset_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    raw = Tree(tmp_path, RAW)
    raw.image("sub-01/func/sub-01_task-rest_bold.nii.gz")
    (alone,) = faults_of(raw.root)
    assert "is a raw dataset" in alone
    assert "run fMRIPrep" in alone
    Tree(tmp_path / "derivatives" / "aaa")
    fmriprep = Tree(tmp_path / "derivatives" / "fmriprep")
    (suggesting,) = faults_of(raw.root)
    assert f"--derivatives fmriprep={fmriprep.root}" in suggesting


def test_dataset_of_unknown_type_with_raw_names_is_raw(tmp_path: Path) -> None:
    raw = Tree(tmp_path, {"Name": "old", "BIDSVersion": "1.0.2"})
    raw.image("sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz")
    assert "is a raw dataset" in faults_of(raw.root)[0]


# Spaces


def test_several_spaces_must_be_chosen_from(tree: Tree) -> None:
    tree.run("sub-01_task-rest", space=f"space-{MNI}_res-2")
    tree.run("sub-01_task-rest", space="space-MNI152NLin6Asym")
    tree.run("sub-01_task-rest", space="space-T1w")
    (fault,) = faults_of(tree.root)
    assert f"--space {MNI}:res-2 | --space MNI152NLin6Asym" in fault
    assert "T1w" not in fault
    (run,) = find(tree.root, space="MNI152NLin6Asym").runs
    assert run.space == "MNI152NLin6Asym"


def test_resolution_of_the_analysis_chooses_among_resolutions(tree: Tree) -> None:
    for space, voxel in ((f"space-{MNI}_res-1", 1.0), (f"space-{MNI}_res-2", 2.04)):
        tree.run("sub-01_task-rest", space=space, voxel=voxel)
    (run,) = find(tree.root, resolution=2.0, space=MNI).runs
    assert run.entities["res"] == "2"
    (fault,) = faults_of(tree.root, resolution=4.0)
    assert f"--space {MNI}:res-1 | --space {MNI}:res-2" in fault
    (run,) = find(tree.root, resolution=4.0, space=f"{MNI}:res-1").runs
    assert run.entities["res"] == "1"


def test_native_resolution_can_be_asked_for(tree: Tree) -> None:
    tree.run("sub-01_task-rest", voxel=3.0)
    tree.run("sub-01_task-rest", space=f"space-{MNI}_res-2", voxel=2.0)
    (fault,) = faults_of(tree.root)
    assert f"--space {MNI}:res-native | --space {MNI}:res-2" in fault
    (run,) = find(tree.root, space=f"{MNI}:res-native").runs
    assert "res" not in run.entities


def test_space_that_is_not_there(tree: Tree) -> None:
    tree.run("sub-01_task-rest", space=f"space-{MNI}_res-2")
    (fault,) = faults_of(tree.root, space="MNI152NLin6Asym")
    assert fault == f"--space MNI152NLin6Asym: the dataset has no BOLD in it, but in {MNI}:res-2"
    (fault,) = faults_of(tree.root, space=f"{MNI}:res-1")
    assert f"but in {MNI}:res-2" in fault


@pytest.mark.parametrize("space", ["", "space-T1w"])
def test_native_space_only(tree: Tree, space: str) -> None:
    tree.run("sub-01_task-rest", space=space)
    (fault,) = faults_of(tree.root)
    assert "native space only" in fault
    assert "--output-spaces MNI152NLin2009cAsym" in fault


def test_infant_template_is_refused_with_the_reason(tree: Tree) -> None:
    tree.run("sub-01_task-rest", space="space-MNIInfant_cohort-2")
    (fault,) = faults_of(tree.root)
    assert "MNIInfant is an infant or pediatric template" in fault
    (fault,) = faults_of(tree.root, space="MNIInfant")
    assert "infant or pediatric" in fault


def test_a_run_that_lacks_the_space_of_the_others(tree: Tree) -> None:
    tree.run("sub-01_task-rest")
    tree.run("sub-02_task-rest", space="space-T1w")
    found = find(tree.root)
    assert prefixes(found) == ["sub-01_task-rest"]
    (fault,) = found.faults
    assert fault.prefix == "sub-02_task-rest"
    assert f"not there in space {MNI}, only in T1w" in fault.message


@pytest.mark.parametrize(
    "name",
    [
        *("MNI152NLin2009aSym", "MNI152NLin6Asym", "MNI152Lin", "MNI305", "MNIColin27"),
        *("ICBM452AirSpace", "IXI549Space", "MNI152"),
    ],
)
def test_spaces_of_the_adult_mni_brain(name: str) -> None:
    assert is_adult_mni(name)


@pytest.mark.parametrize(
    "name", ["T1w", "MNIInfant", "MNIPediatricAsym", "UNCInfant", "fsLR", "Talairach", "NKI"]
)
def test_spaces_of_other_brains(name: str) -> None:
    assert not is_adult_mni(name)


@pytest.mark.parametrize("text", ["MNI152NLin6Asym:2", "MNI:res-", "a b", "MNI:cohort-1"])
def test_space_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match=r"NAME:res-LABEL"):
        parse_space(text)


# Repetition time


def test_sidecars_are_inherited(tree: Tree) -> None:
    tree.write("task-rest_bold.json", {"RepetitionTime": 1.0})
    tree.run("sub-01_task-rest", repetition_time=None)
    tree.run("sub-02_task-rest", repetition_time=None)
    tree.write("sub-02/func/sub-02_task-rest_desc-preproc_bold.json", {"RepetitionTime": 3.0})
    assert [run.repetition_time for run in find(tree.root).runs] == [1.0, 3.0]


def test_missing_repetition_time_names_file_and_header(tree: Tree) -> None:
    tree.run("sub-01_task-rest", repetition_time=None)
    tree.image(f"sub-01/func/sub-01_task-rest_space-{MNI}_desc-preproc_bold.nii.gz", step=2.52)
    _, fault = faults_of(tree.root)
    assert "has no RepetitionTime; add it to" in fault
    assert "desc-preproc_bold.json (the image header says 2.52 s)" in fault
    tree.image(
        f"sub-01/func/sub-01_task-rest_space-{MNI}_desc-preproc_bold.nii.gz",
        step=2520.0,
        unit="msec",
    )
    assert "says 2.52 s" in faults_of(tree.root)[1]


@pytest.mark.parametrize(
    ("sidecar", "told"),
    [
        ({"RepetitionTime": 0}, "must be above 0 s"),
        ({"RepetitionTime": -2.0}, "must be above 0 s"),
        ({"RepetitionTime": "2"}, "must be a number of seconds, got '2'"),
        ({"RepetitionTime": True}, "must be a number of seconds"),
        ({"RepetitionTime": 2000}, "not milliseconds"),
        ({"VolumeTiming": [0, 3, 7]}, "sparse sampling"),
        ('{\n"RepetitionTime": 2,\n}', "line 3: not valid JSON"),
        ("[2]", "must hold a JSON object"),
    ],
)
def test_bad_sidecar(tree: Tree, sidecar: dict[str, Any] | str, told: str) -> None:
    tree.run("sub-01_task-rest", repetition_time=None)
    tree.run("sub-02_task-rest")
    path = tree.write(f"sub-01/func/sub-01_task-rest_space-{MNI}_desc-preproc_bold.json", sidecar)
    found = find(tree.root)
    assert prefixes(found) == ["sub-02_task-rest"]
    (fault,) = found.faults
    assert fault.prefix == "sub-01_task-rest"
    assert told in fault.message
    assert str(path) in fault.message


# Images


def test_bad_images_leave_the_others_alone(tree: Tree) -> None:
    for number in range(1, 9):
        tree.run(f"sub-0{number}_task-rest")
    name = f"func/sub-0%d_task-rest_space-{MNI}_desc-preproc_bold.nii.gz"
    tree.write("sub-01/" + name % 1, b"")
    tree.write("sub-02/" + name % 2, b"not an image")
    tree.write("sub-03/" + name % 3, gzip.compress(b"not an image either"))
    tree.image("sub-04/" + name % 4, shape=(2, 3, 2))
    tree.image("sub-05/" + name % 5, shape=(2, 3, 2, 1, 5))
    tree.image("sub-06/" + name % 6, shape=(2, 3, 2, 1))
    link = tree.root / ("sub-07/" + name % 7)
    link.unlink()
    link.symlink_to("../../.git/annex/objects/nowhere.nii.gz")
    found = find(tree.root)
    assert prefixes(found) == ["sub-08_task-rest"]
    told = [
        *("empty (0 bytes)", "cannot be read as NIfTI", "cannot be read as NIfTI"),
        *("has 3 dimensions", "has 5 dimensions", "holds 1 volume", "link to nothing"),
    ]
    assert len(found.faults) == len(told)
    for fault, part in zip(found.faults, told, strict=True):
        assert part in fault.message
        assert fault.message.startswith(str(tree.root / fault.prefix[:6] / "func"))


def test_uncompressed_image_that_is_cut_short(tree: Tree) -> None:
    bold = tree.run("sub-01_task-rest", extension=".nii")
    bold.write_bytes(bold.read_bytes()[:-10])
    assert "cut short, 462 of 472 bytes" in faults_of(tree.root)[1]


def test_header_that_fits_nibabel_but_holds_no_nifti(tree: Tree) -> None:
    bold = tree.run("sub-01_task-rest", extension=".nii")
    bold.write_bytes(bold.read_bytes()[:100])
    assert "cannot be read as NIfTI" in faults_of(tree.root)[1]


def test_empty_mask_and_confounds_are_reported(tree: Tree) -> None:
    bold = tree.run("sub-01_task-rest")
    Path(str(bold).replace("preproc_bold", "brain_mask")).write_bytes(b"")
    tree.write("sub-01/func/sub-01_task-rest_desc-confounds_timeseries.tsv", b"")
    _, mask, confounds = faults_of(tree.root)
    assert "brain_mask.nii.gz: empty" in mask
    assert "timeseries.tsv: empty" in confounds
    found_none = faults_of(tree.root, nuisance=["none"])
    assert len(found_none) == 2  # the confounds are not looked at


def test_two_files_of_one_run(tree: Tree) -> None:
    tree.run("sub-01_task-rest")
    tree.run("sub-01_task-rest", extension=".nii")
    tree.run("sub-02_task-rest_den-91k")
    tree.run("sub-02_task-rest")
    tree.run("sub-03_task-rest")
    found = find(tree.root)
    assert prefixes(found) == ["sub-03_task-rest"]
    assert [fault.prefix for fault in found.faults] == ["sub-01_task-rest", "sub-02_task-rest"]
    assert all("are the same run" in fault.message for fault in found.faults)
    assert "bold.nii and" in found.faults[0].message
    file = tree.write("../f.json", {"bold": {"extension": ".nii.gz", "den": None}})
    assert len(find(tree.root, bids_filter_file=file).runs) == 3


def test_file_without_task(tree: Tree) -> None:
    tree.run("sub-01")
    assert "no task- in its name" in faults_of(tree.root)[1]


def test_missing_confounds_say_what_was_looked_for(tree: Tree) -> None:
    tree.run("sub-01_task-rest", confounds=None)
    _, fault = faults_of(tree.root)
    for name in ("desc-confounds_timeseries.tsv", "desc-confounds_regressors.tsv"):
        assert name in fault
    assert "--nuisance none" in fault
    assert len(find(tree.root, nuisance=["none"]).runs) == 1
    assert "no --fd-thresh" in faults_of(tree.root, nuisance=["none"], fd_thresh=0.5)[1]


def test_faults_that_all_runs_share_are_told_once(tree: Tree) -> None:
    for number in range(10, 40):
        tree.run(f"sub-{number}_task-rest", confounds=None)
    first, fault = faults_of(tree.root)
    assert first == "no run can be analysed:"
    assert fault.startswith("sub-10_task-rest: ")
    assert "(29 in all)" in fault


# Requests that are wrong


def test_folder_that_is_missing_or_a_file(tmp_path: Path) -> None:
    assert "does not exist" in faults_of(tmp_path / "nowhere")[0]
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in faults_of(tmp_path / "file")[0]


def test_missing_description(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "study" / "derivatives" / "fmriprep", None)
    tree.run("sub-01_task-rest")
    (above,) = faults_of(tmp_path / "study")
    assert f"did you mean {tree.root}?" in above
    (itself,) = faults_of(tree.root)
    assert "no dataset_description.json" in itself
    assert len(find(tree.root, skip_bids_validation=True).runs) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"Name": "x",\n\n "BIDSVersion"}', "line 3: not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"GeneratedBy": {"Name": "x"}}', '"GeneratedBy" must be a list'),
        ('{"PipelineDescription": "x"}', '"PipelineDescription" must be an object'),
        (b"\xff\xfe{", "not UTF-8"),
    ],
)
def test_bad_description(tree: Tree, content: str | bytes, told: str) -> None:
    tree.run("sub-01_task-rest")
    path = tree.write("dataset_description.json", content)
    (fault,) = faults_of(tree.root)
    assert told in fault
    assert str(path) in fault


def test_unknown_participants_are_told_the_known_ones(tree: Tree) -> None:
    for number in range(10, 30):
        tree.run(f"sub-{number}_task-rest")
    (fault,) = faults_of(tree.root, participant_label=["10", "99", "98"])
    assert fault.startswith("--participant-label 99 98: not in ")
    assert "10, 11, 12" in fault
    assert "… (20 in all)" in fault


def test_filters_that_leave_nothing_tell_each_step(study: Tree) -> None:
    (fault,) = faults_of(study.root, session_id=["1"], task_id=["stroop"], run_id=["1"])
    assert "5 → desc-preproc: 5 → --session-id 1: 4 → --task-id stroop: 0" in fault
    assert "(there: nback, rest)" in fault
    assert "--run-id" not in fault


def test_participant_of_whom_nothing_is_left(study: Tree) -> None:
    found = find(study.root, participant_label=["01", "02"], task_id=["nback"])
    assert len(found.runs) == 2
    message = "no BOLD is left: files: 1 → desc-preproc: 1 → --task-id nback: 0 (there: rest)"
    assert found.faults == (RunFault("sub-02", message),)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{\n "bold": {"session": "1",}\n}', "line 2: not valid JSON"),
        ({"blod": {}}, "unknown key 'blod'"),
        ({"bold": {"acq": "x"}}, "did you mean 'acquisition'?"),
        ({"bold": {"sesion": "x"}}, "did you mean 'session'?"),
        ({"bold": {"regex_search": True}}, "unknown entity 'regex_search'"),
        ({"bold": {"run": {"a": 1}}}, "expected a label"),
        ({"bold": {"run": []}}, "expected a label"),
        ({"bold": ["x"]}, '"bold" must hold an object'),
        ({"bold": {"session": "9"}}, "filter.json: session 9: 0 (there: 1, 2)"),
        ({"bold": {"run": None, "task": "nback"}}, "run none: 3 → filter.json: task nback: 0"),
    ],
)
def test_bad_filter_file(study: Tree, content: dict[str, Any] | str, told: str) -> None:
    (fault,) = faults_of(study.root, bids_filter_file=study.write("../filter.json", content))
    assert told in fault


def test_all_faults_come_in_one_message(study: Tree) -> None:
    file = study.write("../filter.json", {"bold": {"sesion": 1}, "blod": {}})
    told = faults_of(
        study.root, bids_filter_file=file, participant_label=["77"], space="MNI:nonsense"
    )
    assert len(told) == 4
    told = faults_of(study.root, participant_label=["01", "77"], space="MNI305")
    assert [line.split(":")[0] for line in told] == ["--participant-label 77", "--space MNI305"]
    told = faults_of(study.root / "nowhere", bids_filter_file=file, derivatives={"a": "b"})
    assert len(told) == 4


def test_names_of_the_first_fmriprep_are_recognised(tree: Tree) -> None:
    tree.image(f"sub-01/func/sub-01_task-rest_bold_space-{MNI}_preproc.nii.gz")
    assert "fMRIPrep before 1.2" in faults_of(tree.root)[0]


def test_dataset_without_participants(tree: Tree) -> None:
    (fault,) = faults_of(tree.root)
    assert "no participant (folder sub-…)" in fault


# The index


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """200 participants, whose files are only names."""
    tree = Tree(tmp_path_factory.mktemp("cohort"))
    for number in range(200):
        for folder in (f"sub-{number:03}/anat", f"sub-{number:03}/func"):
            (tree.root / folder).mkdir(parents=True)
        tree.write(f"sub-{number:03}/anat/sub-{number:03}_desc-preproc_T1w.nii.gz")
        tree.write(
            f"sub-{number:03}/func/sub-{number:03}_task-rest_space-{MNI}_desc-preproc_bold.nii.gz"
        )
        tree.write(f"sub-{number:03}.html")
    tree.write("sub-0010/func/sub-0010_task-rest_desc-preproc_bold.nii.gz")
    tree.write("sourcedata/sub-001/func/sub-001_task-rest_bold.nii.gz")
    return tree


def test_only_the_participants_asked_for_are_indexed(cohort: Tree) -> None:
    indexed = open_layout(cohort.root, ["001", "199"]).get_files()
    relative = sorted(str(Path(path).relative_to(cohort.root)) for path in indexed)
    assert relative == [
        f"sub-{label}/func/sub-{label}_task-rest_space-{MNI}_desc-preproc_bold.nii.gz"
        for label in ("001", "199")
    ]


def test_database_holds_everyone_and_is_made_once(cohort: Tree, tmp_path: Path) -> None:
    dataset = Dataset(cohort.root)
    assert len(find_bold(dataset, ["001"], tmp_path / "db")) == 1
    assert len(open_layout(cohort.root, ["001"], tmp_path / "db").get_files()) == 201
    assert [path.name for path in (tmp_path / "db").iterdir()] == ["layout_index.sqlite"]


def test_database_is_used_as_it_is(tree: Tree, tmp_path: Path) -> None:
    tree.run("sub-01_task-rest")
    database = tmp_path / "db"
    assert len(find(tree.root, bids_database_dir=database).runs) == 1
    tree.run("sub-01_task-nback")
    assert len(find(tree.root, bids_database_dir=database).runs) == 1
    assert len(find(tree.root).runs) == 2


def test_database_of_another_dataset_or_none(tree: Tree, tmp_path: Path) -> None:
    tree.run("sub-01_task-rest")
    other = Tree(tmp_path / "other")
    other.run("sub-01_task-rest")
    find(other.root, bids_database_dir=tmp_path / "db")
    (fault,) = faults_of(tree.root, bids_database_dir=tmp_path / "db")
    assert f"is an index of {other.root}, not of {tree.root}" in fault
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "layout_index.sqlite").write_text("no database")
    (fault,) = faults_of(tree.root, bids_database_dir=tmp_path / "bad")
    assert "cannot be used" in fault
    assert "delete it" in fault


def test_module_loads_without_pybids() -> None:
    check = "import sys, bids_fbn.bids.discovery; sys.exit('bids' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_nearest_sidecar_is_last(tree: Tree) -> None:
    bold = parse_name(tree.run("sub-01_task-rest"))
    for path in ("bold.json", "task-rest_bold.json", "sub-01/sub-01_task-rest_bold.json"):
        tree.write(path, {})
    tree.write("task-nback_bold.json", {})
    found = Folders().applicable(tree.root, bold.path.parent, bold.entities, "bold", ".json")
    assert [path.name for path in found] == [
        "bold.json",
        "task-rest_bold.json",
        "sub-01_task-rest_bold.json",
        f"sub-01_task-rest_space-{MNI}_desc-preproc_bold.json",
    ]


# Real data


@pytest.mark.realdata
def test_real_fmriprep_names_with_empty_images(real_data: Path) -> None:
    root = real_data / "fmriprep-trees" / "ds002748-fmriprep"
    told = faults_of(root, nuisance=["none"])
    assert all("empty (0 bytes)" in line for line in told[1:])
    assert f"sub-01_task-rest_space-{MNI}_res-2_desc-preproc_bold.nii.gz" in told[1]
    (fault,) = faults_of(root, space="T1w")
    assert "a native space" in fault
    assert fault.endswith(f"the dataset also has {MNI}:res-2")
    (fault,) = faults_of(root, space="MNI152NLin6Asym")
    assert fault.endswith(f"but in {MNI}:res-2")  # there it has an ICA-AROMA file only


@pytest.mark.realdata
def test_real_raw_datasets_are_refused(real_data: Path) -> None:
    synthetic = real_data / "fmriprep-trees" / "pybids_synthetic"
    (fault,) = faults_of(synthetic)
    assert f"--derivatives fmriprep={synthetic / 'derivatives' / 'fmriprep'}" in fault
    (fault,) = faults_of(real_data / "raw-rest-5mm")
    assert "is a raw dataset" in fault


@pytest.mark.realdata
def test_real_tree_with_each_image_twice(real_data: Path) -> None:
    root = real_data / "fmriprep-trees" / "pybids_synthetic"
    options: dict[str, Any] = {
        "derivatives": {"fmriprep": root / "derivatives" / "fmriprep"},
        "participant_label": ["01"],
    }
    assert "are the same run" in faults_of(root, **options)[1]


@pytest.mark.realdata
def test_real_resting_state(real_data: Path) -> None:
    root = real_data / "rest-10mm"
    assert "--nuisance none" in faults_of(root)[1]
    assert len(find(root, nuisance=["none"]).runs) == 24
    (run,) = find(root, nuisance=["none"], participant_label=["2EXYG11"]).runs
    assert (run.subject, run.n_volumes, run.repetition_time) == ("2EXYG11", 148, 2.0)
    assert run.mask is not None
    assert len(open_layout(root, ["2EXYG11"]).get_files()) == 1


@pytest.mark.realdata
def test_real_task(real_data: Path) -> None:
    (run,) = find(real_data / "task-faces-3mm").runs
    assert (run.prefix, run.n_volumes) == ("sub-M03953_task-facerep", 351)
    assert run.events is not None
    assert run.confounds is not None
