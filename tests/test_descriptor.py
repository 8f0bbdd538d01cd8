"""The Boutiques descriptor, and the configuration for BABS, say what the command line does."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from bids_fbn import __version__
from bids_fbn.cli import parse_arguments
from bids_fbn.config import Config
from bids_fbn.descriptor import descriptor

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "bids_fbn.json"
BOSH = Path(sys.executable).with_name("bosh")


def test_the_committed_descriptor_is_that_of_the_command_line() -> None:
    """Else: python -m bids_fbn.descriptor > bids_fbn.json."""
    assert json.loads(COMMITTED.read_text()) == descriptor()


def test_options_have_their_types_choices_and_bounds() -> None:
    inputs = {item["id"]: item for item in descriptor()["inputs"]}
    assert inputs["motion"]["value-choices"] == ["basic", "derivatives", "power2", "full"]
    assert inputs["model"]["list"]
    assert "dualregression" in inputs["model"]["value-choices"]
    assert inputs["resolution"]["type"] == "Number"
    assert (inputs["resolution"]["minimum"], inputs["resolution"]["exclusive-minimum"]) == (
        0.5,
        True,
    )
    assert inputs["batch"]["integer"]
    assert not inputs["smoothing"]["integer"]
    assert inputs["weights"]["type"] == "File"
    # It is made by the call: Boutiques demands of a File that it is there.
    assert inputs["output_dir"]["type"] == "String"
    assert inputs["mem"]["type"] == "String"
    assert inputs["no_resume"]["command-line-flag"] == "--no-resume"
    assert not {"help", "version", "demo", "resume"} & inputs.keys()


def test_bosh_finds_it_valid() -> None:
    done = subprocess.run([BOSH, "validate", COMMITTED], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_bosh_makes_a_command_line_that_says_what_was_asked(tmp_path: Path) -> None:
    asked = {
        "bids_dir": str(tmp_path),
        "output_dir": str(tmp_path / "with a space"),
        "analysis_level": "participant",
        "participant_label": ["01", "02"],
        "model": ["pca", "ica"],
        "resolution": 8,
        "mem": "8GB",
        "no_resume": True,
        "save_denoised": True,
    }
    invocation = tmp_path / "invocation.json"
    invocation.write_text(json.dumps(asked))
    done = subprocess.run(
        [BOSH, "exec", "simulate", COMMITTED, "-i", invocation], capture_output=True, text=True
    )
    command = next(line for line in done.stdout.splitlines() if line.startswith("bids-fbn "))
    config = parse_arguments(shlex.split(command)[1:])
    assert isinstance(config, Config)
    assert config.output_dir == tmp_path / "with a space"
    assert config.data.participant_label == ("01", "02")
    assert config.models.model == ("pca", "ica")
    assert config.signal.resolution == 8
    assert config.compute.mem_gb == 8
    assert (config.run.resume, config.networks.save_denoised) == (False, True)


def test_a_value_out_of_bounds_is_refused_before_anything_runs(tmp_path: Path) -> None:
    asked = {"bids_dir": str(tmp_path), "output_dir": "out", "analysis_level": "participant"}
    invocation = tmp_path / "invocation.json"
    for option, value in (("resolution", 0.5), ("model", ["stac"]), ("window", 2.5)):
        invocation.write_text(json.dumps(asked | {option: value}))
        done = subprocess.run(
            [BOSH, "exec", "simulate", COMMITTED, "-i", invocation], capture_output=True, text=True
        )
        assert done.returncode != 0, option
        assert option in done.stdout + done.stderr


def test_the_configuration_for_babs_is_of_this_version_and_its_options_are_known() -> None:
    page = (ROOT / "docs" / "babs.md").read_text()
    (text,) = re.findall(r"<!-- babs.yaml -->\n```yaml\n(.*?)```", page, re.DOTALL)
    settings = yaml.safe_load(text)
    assert settings["zip_foldernames"] == {"bids_fbn": __version__.replace(".", "-")}
    options = settings["bids_app_args"]
    assert options.pop("$SUBJECT_SELECTION_FLAG") == "--participant-label"
    words = [word for name, value in options.items() for word in (name, *value.split())]
    of_the_job = {"$BABS_TMPDIR": "/job/tmp", "$SLURM_CPUS_PER_TASK": "8"}
    config = parse_arguments(
        [
            *("/job/inputs", "/job/outputs", "participant", "--participant-label", "sub-01"),
            *(of_the_job.get(word, word) for word in words),
        ]
    )
    assert isinstance(config, Config)
    assert config.data.participant_label == ("01",)
    assert config.compute.nprocs == int(settings["cluster_resources"]["number_of_cpus"])
