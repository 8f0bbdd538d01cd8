"""Starting up: one participant out of a thousand, and the answer to ``--help``.

    python benchmarks/discovery.py [--participants 1000] [--runs 3]

makes a dataset with the names that fMRIPrep gives (a raw dataset with its derivatives, 21 files
for each participant, empty but for the JSON files and the images of the participant asked for)
and finds the preprocessed BOLD file of one participant, each time in a fresh process:

ours
    ``discover``, which also reads headers, sidecars, masks and confounds of what it found.
layout
    ``BIDSLayout(derivatives=True)`` of pybids without metadata, and a query.
layout-metadata
    The same with metadata, as is the default: it then knows repetition times.

All must find the same file. Then it times ``run.py --version`` and ``--help`` beside an
interpreter that does nothing, and looks which heavy modules they import. Prints tables in
Markdown.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPACE = "space-MNI152NLin2009cAsym_res-2"
RAW = (
    "anat/sub-{0}_T1w.nii.gz",
    "anat/sub-{0}_T1w.json",
    "func/sub-{0}_task-rest_bold.nii.gz",
    "func/sub-{0}_task-rest_bold.json",
)
DERIVED = (
    "anat/sub-{0}_desc-brain_mask.nii.gz",
    "anat/sub-{0}_desc-preproc_T1w.json",
    "anat/sub-{0}_desc-preproc_T1w.nii.gz",
    "anat/sub-{0}_dseg.nii.gz",
    "anat/sub-{0}_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5",
    "anat/sub-{0}_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5",
    "anat/sub-{0}_{1}_desc-brain_mask.nii.gz",
    "anat/sub-{0}_{1}_desc-preproc_T1w.nii.gz",
    "anat/sub-{0}_{1}_label-GM_probseg.nii.gz",
    "anat/sub-{0}_{1}_label-WM_probseg.nii.gz",
    "func/sub-{0}_task-rest_desc-confounds_timeseries.json",
    "func/sub-{0}_task-rest_desc-confounds_timeseries.tsv",
    "func/sub-{0}_task-rest_from-scanner_to-T1w_mode-image_xfm.txt",
    "func/sub-{0}_task-rest_{1}_boldref.nii.gz",
    "func/sub-{0}_task-rest_{1}_desc-brain_mask.nii.gz",
    "func/sub-{0}_task-rest_{1}_desc-preproc_bold.json",
    "func/sub-{0}_task-rest_{1}_desc-preproc_bold.nii.gz",
)
SIDES = ("ours", "layout", "layout-metadata")
HEAVY = (
    *("bids", "lightning_fabric", "matplotlib", "nibabel", "nilearn", "nipype", "numpy"),
    *("pandas", "plotly", "scipy", "sklearn", "templateflow", "torch"),
)


def make_dataset(root: Path, n_participants: int) -> str:
    """Write the dataset; returns the participant to ask for."""
    import nibabel as nib
    import numpy as np

    derivatives = root / "derivatives" / "fmriprep"
    for folder, kind in ((root, "raw"), (derivatives, "derivative")):
        folder.mkdir(parents=True, exist_ok=True)
        description = {
            "Name": "A thousand",
            "BIDSVersion": "1.10.0",
            "DatasetType": kind,
            "GeneratedBy": [{"Name": "fMRIPrep", "Version": "24.1.1"}],
        }
        (folder / "dataset_description.json").write_text(json.dumps(description))
    labels = [f"{number + 1:04d}" for number in range(n_participants)]
    for label in labels:
        for folder, names in ((root, RAW), (derivatives, DERIVED)):
            for name in names:
                path = folder / f"sub-{label}" / name.format(label, SPACE)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text('{"RepetitionTime": 2.0}' if path.suffix == ".json" else "")
    asked = labels[n_participants // 2]
    func = derivatives / f"sub-{asked}" / "func"
    for path in func.glob("*.nii.gz"):
        shape = (5, 6, 5, 20) if path.name.endswith("_bold.nii.gz") else (5, 6, 5)
        nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([4.0, 4, 4, 1])), path)
    (table,) = func.glob("*_desc-confounds_timeseries.tsv")
    table.write_text("trans_x\n" + "0\n" * 20)
    return asked


def find(side: str, root: Path, label: str) -> dict[str, object]:
    """Find the BOLD file of a participant; time (s) without and with the imports, and memory."""
    start = time.perf_counter()
    if side == "ours":
        # It imports pybids when it needs it.
        import bids  # noqa: F401

        from bids_fbn.bids.discovery import discover
        from bids_fbn.config import Config
    else:
        from bids import BIDSLayout, BIDSLayoutIndexer
    imported = time.perf_counter()
    if side == "ours":
        options = {
            "bids_dir": root / "derivatives" / "fmriprep",
            "output_dir": "unused",
            "participant_label": [label],
        }
        files = [str(run.bold) for run in discover(Config.from_options(options)).runs]
    else:
        indexer = BIDSLayoutIndexer(index_metadata=side == "layout-metadata")
        layout = BIDSLayout(root, derivatives=True, indexer=indexer)
        files = layout.get(
            subject=label,
            suffix="bold",
            desc="preproc",
            extension=".nii.gz",
            scope="derivatives",
            return_type="filename",
        )
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"files": files, "call": end - imported, "total": end - start, "peak": peak}


def in_a_process(side: str, root: Path, label: str) -> dict[str, object]:
    command = [sys.executable, __file__, "--side", side, "--root", str(root), "--label", label]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{side} failed")
    return json.loads(done.stdout.splitlines()[-1])


def compare(root: Path, n_participants: int, n_runs: int) -> None:
    label = make_dataset(root, n_participants)
    n_files = sum(1 for path in root.rglob("*") if path.is_file())
    print(f"One of {n_participants} participants, {n_files} files; best of:", end=" ")
    # An index of everything takes long and varies little.
    repeats = {"ours": n_runs, "layout": min(n_runs, 2), "layout-metadata": 1}
    print(", ".join(f"{side} {times}" for side, times in repeats.items()) + ".\n")
    best, files = {}, {}
    for side in SIDES:
        results = [in_a_process(side, root, label) for _ in range(repeats[side])]
        best[side] = min(results, key=lambda result: float(str(result["call"])))
        files[side] = best[side]["files"]
    if len({json.dumps(found) for found in files.values()}) != 1 or not files["ours"]:
        sys.exit(f"they do not find the same: {files}")
    print("| | call, s | with imports, s | ratio of calls | peak memory, MB |")
    print("|---|---|---|---|---|")
    ours = float(str(best["ours"]["call"]))
    for side, result in best.items():
        call, total, peak = (float(str(result[key])) for key in ("call", "total", "peak"))
        print(f"| {side} | {call:.2f} | {total:.2f} | {call / ours:.0f} | {peak:.0f} |")


def seconds(command: list[str], n_runs: int) -> float:
    times = []
    for _ in range(n_runs):
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - start)
    return min(times)


def heavy_imports(option: str) -> list[str]:
    """Which of HEAVY ``run.py`` imports to answer an option."""
    code = (
        "import json, runpy, sys\n"
        "option, heavy = json.loads(sys.argv[1])\n"
        "sys.argv = ['run.py', option]\n"
        "try: runpy.run_path('run.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    command = [sys.executable, "-c", code, json.dumps([option, HEAVY])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    imported: list[str] = json.loads(done.stdout.splitlines()[-1])
    return imported


def questions(n_runs: int) -> None:
    nothing = seconds([sys.executable, "-c", "pass"], n_runs)
    print(f"\nBest of {n_runs}. Heavy: {', '.join(HEAVY)}.\n")
    print("| | s | ratio | heavy modules imported |\n|---|---|---|---|")
    print(f"| `python -c pass` | {nothing:.2f} | 1 | |")
    for option in ("--version", "--help"):
        answer = seconds([sys.executable, "run.py", option], n_runs)
        imported = ", ".join(heavy_imports(option)) or "none"
        print(f"| `run.py {option}` | {answer:.2f} | {answer / nothing:.1f} | {imported} |")
    torch = seconds([sys.executable, "-c", "import torch"], n_runs)
    print(f"| `python -c 'import torch'` | {torch:.2f} | {torch / nothing:.0f} | torch |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--participants", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3, help="times that each is done")
    for hidden in ("--side", "--root", "--label"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(find(arguments.side, Path(arguments.root), arguments.label)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder).resolve(), arguments.participants, arguments.runs)
    questions(max(5, arguments.runs))


if __name__ == "__main__":
    main()
