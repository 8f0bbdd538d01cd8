"""Shared training of SCAAE over the participants of a dataset: is it exact?

    python benchmarks/shared_training.py BIDS_DIR [--resolution 10] [--nuisance none] [options of
    bids_fbn.train, such as --channels 8 --epochs 2]

Cleans every run, then trains, each time by the command that a user would call:

- once, and once killed (SIGKILL) in the middle and called again: are the weights the same bytes?
- as one process with a batch of 12, and as two (gloo) with a batch of 6 each: is the loss curve
  the same?
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent


def command(work: Path, out: Path, options: list[str], processes: int = 1) -> list[str]:
    launcher = []
    if processes > 1:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return [sys.executable, "-m", *launcher, "bids_fbn.train", str(work), str(out), *options]


def train(arguments: list[str], kill_at_step: int | None = None) -> None:
    """Call the command; with `kill_at_step`, kill it once it says that it has come so far."""
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1" if "torch.distributed.run" in arguments else "2",
        },
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        step = int(line.split(" step ")[1].split()[0]) if " step " in line else 0
        if kill_at_step is not None and step >= kill_at_step:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return
    if process.wait() or kill_at_step is not None:
        sys.exit("".join(lines) + "\nnot killed, or failed")


def losses_of(weights: Path) -> np.ndarray:
    card = json.loads(weights.with_suffix(".json").read_text())
    return np.array(card["Training"]["LossCurve"]["Loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--resolution", default="10")
    parser.add_argument("--nuisance", default="none")
    asked, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "work")
        clean = [
            *(sys.executable, ROOT / "run.py", asked.bids_dir, Path(folder, "out"), "participant"),
            *(
                "--signals-only",
                "--templates=seitzman2018",
                f"--resolution={asked.resolution}",
                "-w",
                work,
            ),
            f"--nuisance={asked.nuisance}",
        ]
        subprocess.run(list(map(str, clean)), check=True)
        options = ["--model=scaae", "--device=cpu", "--precision=fp32", *more]

        def weights(name: str) -> Path:
            return Path(folder, f"{name}.safetensors")

        train(command(work, weights("whole"), options))
        curve = losses_of(weights("whole"))
        card = json.loads(weights("whole").with_suffix(".json").read_text())
        n_steps = int(card["Training"]["LossCurve"]["Step"][-1])
        train(command(work, weights("killed"), options), kill_at_step=n_steps // 2)
        train(command(work, weights("killed"), options))
        train(command(work, weights("two"), [*options, "--batch=6"], processes=2))
        same = weights("killed").read_bytes() == weights("whole").read_bytes()
        difference = np.abs(losses_of(weights("two")) - curve)
        first, second = load_file(weights("whole")), load_file(weights("two"))
        print(
            f"\n{len(card['Training']['Runs'])} runs, {card['Training']['Volumes']} volumes, "
            f"{card['Grid']['Voxels']} voxels, {n_steps} steps\n"
        )
        print("| | |\n|---|---|")
        print(f"| loss, first and last point of the curve | {curve[0]:.4f}, {curve[-1]:.4f} |")
        print(f"| killed at half and resumed: same bytes | {'yes' if same else 'NO'} |")
        print(
            "| two processes against one with the double batch: largest difference of the loss, "
            f"first ten points, all {len(curve)} | {difference[:10].max():.1e}, "
            f"{difference.max():.1e} |"
        )
        largest = max(float(np.abs(first[key] - second[key]).max()) for key in first)
        print(f"| largest difference of any weight after training | {largest:.1e} |")
        if not same:
            sys.exit(1)


if __name__ == "__main__":
    main()
