"""The batch scripts do what SLURM's own behaviour asks of them; a real cluster runs them in
containers/slurm-test."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from trees import Tree

from bids_fbn.bids.writing import update_dataset_description, write_bidsignore
from bids_fbn.errors import InputError
from bids_fbn.slurm import Resources, main, write_jobs

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ("--templates", "seitzman2018", "--resolution", "12", "--nuisance", "none")
SCRATCH = Resources(scratch="$NODE_DISK")


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three participants."""
    tree = Tree(tmp_path_factory.mktemp("slurm") / "data")
    for label in ("01", "02", "03"):
        tree.run(f"sub-{label}_task-rest")
    return tree.root


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Node:
    """A place in which a script of the array runs as a node runs it, with an app of our own."""

    def __init__(self, folder: Path, bids: Path, resources: Resources | None = None) -> None:
        self.folder, self.jobs, self.work = folder, folder / "jobs", folder / "work"
        self.app = executable(folder / "app", "")
        (folder / "disk").mkdir()
        # Where there is no SLURM nobody queues anything again.
        executable(folder / "bin" / "scontrol", "exit 1")
        executable(folder / "bin" / "squeue", "exit 0")
        write_jobs(
            self.jobs,
            bids,
            folder / "out",
            participant_options=["-w", str(self.work), *OPTIONS],
            resources=resources,
            command=str(self.app),
        )

    def start(self, restarts: int = 0) -> subprocess.Popen[str]:
        """Task 2."""
        return subprocess.Popen(
            ["bash", str(self.jobs / "participant.sbatch")],
            env={
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "HERE": str(self.folder),
                "NODE_DISK": str(self.folder / "disk"),
                "SLURM_JOB_ID": "14",
                "SLURM_ARRAY_JOB_ID": "12",
                "SLURM_ARRAY_TASK_ID": "2",
                "SLURM_RESTART_COUNT": str(restarts),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, app: str) -> int:
        executable(self.app, app)
        process = self.start()
        process.communicate()
        return process.returncode

    def run_out_of_time(self, restarts: int = 0) -> subprocess.Popen[str]:
        """The app is told to stop while it waits; what comes of it."""
        started = self.folder / "started"
        os.mkfifo(started)
        # A shell hears of a signal only between commands, so it waits for sleep instead.
        executable(
            self.app,
            'trap "echo stopped >$HERE/app; exit 143" TERM\n'
            "touch $7/done-so-far; echo >$HERE/started; sleep 600 & wait",
        )
        process = self.start(restarts)
        started.read_text()  # waits for it
        process.send_signal(signal.SIGUSR1)
        process.communicate()
        return process

    @property
    def status(self) -> list[str]:
        return (self.jobs / "status" / "sub-02.tsv").read_text().strip().split("\t")

    def collect(self) -> tuple[int, dict[str, dict[str, str]], str]:
        done = subprocess.run(
            ["sh", str(self.jobs / "collect.sh")],
            env={"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        with (self.jobs / "tasks.tsv").open() as stream:
            rows = {row["task"]: row for row in csv.DictReader(stream, delimiter="\t")}
        return done.returncode, rows, done.stdout


def test_a_task_is_a_participant_that_the_call_asks_for(tmp_path: Path, bids: Path) -> None:
    jobs, out = tmp_path / "jobs", tmp_path / "out"
    assert write_jobs(jobs, bids, out, participant_options=OPTIONS) == ["01", "02", "03"]
    chosen = [*OPTIONS, "--participant_label", "sub-03", "01"]
    assert write_jobs(jobs, bids, out, participant_options=chosen) == ["01", "03"]
    assert (jobs / "participants.txt").read_text() == "01\n03\n"
    script = (jobs / "participant.sbatch").read_text()
    assert script.count("--participant-label") == 1
    assert '--array="$tasks"' in (jobs / "submit.sh").read_text()


def test_all_faults_are_told_before_anything_is_written(tmp_path: Path, bids: Path) -> None:
    with pytest.raises(InputError) as caught:
        write_jobs(
            tmp_path / "jobs",
            bids,
            tmp_path / "out",
            participant_options=["--model", "nonsense"],
            resources=Resources(memory="lots", scratch="$(rm -rf /)"),
            image=tmp_path / "none.sif",
        )
    for word in ("--mem 'lots'", "--scratch", "none.sif", "nonsense"):
        assert any(word in fault for fault in caught.value.faults), word
    assert not (tmp_path / "jobs").exists()
    # The levels have options of their own, and each is told of those of the other.
    with pytest.raises(InputError, match="group level"):
        write_jobs(
            tmp_path / "jobs", bids, tmp_path / "out", participant_options=["--group-by", "sex"]
        )


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("10", 600), ("10:30", 630), ("2:00:00", 7200), ("1-12", 129600), ("1-0:30", 88200)],
)
def test_times_are_read_as_sbatch_does(limit: str, seconds: int) -> None:
    resources = Resources(time=limit, warning=seconds - 60)
    assert resources.scheduled_seconds() == seconds
    assert not resources.faults()
    assert "--warning" in Resources(time=limit, warning=seconds).faults()[0]


def test_the_command_says_where_the_scripts_are(
    tmp_path: Path, bids: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [str(bids), str(tmp_path / "out"), "--jobs", str(tmp_path / "jobs"), "--no-group"]
    assert main([*call, "--", *OPTIONS]) == 0
    assert "3 tasks" in capsys.readouterr().out
    assert not (tmp_path / "jobs" / "group.sbatch").exists()
    assert "afterok" not in (tmp_path / "jobs" / "submit.sh").read_text()
    assert main([*call, "--", "--model", "nonsense"]) == 2


def of_image(tmp_path: Path, bids: Path, resources: Resources, *options: str) -> str:
    image = tmp_path / "app.sif"
    image.touch()
    write_jobs(
        tmp_path / "jobs",
        bids,
        tmp_path / "out",
        participant_options=[*OPTIONS, *options],
        resources=resources,
        image=image,
    )
    return (tmp_path / "jobs" / "participant.sbatch").read_text()


@pytest.mark.parametrize("scratch", ["", "$SLURM_TMPDIR"])
@pytest.mark.parametrize("image", [True, False])
def test_shells_can_read_all_of_it(tmp_path: Path, bids: Path, image: bool, scratch: str) -> None:
    resources = Resources(scratch=scratch, gpus="a100:1", most_at_once=4, sbatch=("--qos=low",))
    if image:
        script = of_image(tmp_path, bids, resources)
        assert re.search(r"run --cleanenv --nv ", script)
        assert f"--bind {bids}:{bids}:ro" in script
    else:
        write_jobs(
            tmp_path / "jobs",
            bids,
            tmp_path / "out",
            participant_options=OPTIONS,
            resources=resources,
        )
    for path in sorted((tmp_path / "jobs").glob("*.s*")):
        shell = "sh" if path.suffix == ".sh" else "bash"
        subprocess.run([shell, "-n", str(path)], check=True)
    lines = (tmp_path / "jobs" / "participant.sbatch").read_text().splitlines()
    assert {"#SBATCH --gres=gpu:a100:1", "#SBATCH --qos=low"} < set(lines)
    # SLURM reads no option below the first command.
    commands = [n for n, line in enumerate(lines) if line and not line.startswith("#")]
    assert max(n for n, line in enumerate(lines) if line.startswith("#SBATCH")) < commands[0]


def test_a_gpu_that_is_paid_for_is_used_or_nothing_is(tmp_path: Path, bids: Path) -> None:
    assert "--device cuda" in of_image(tmp_path, bids, Resources(gpus="1"))
    assert "--device" not in of_image(tmp_path, bids, Resources())
    own = of_image(tmp_path, bids, Resources(gpus="1"), "--device", "cuda:0")
    assert own.count("--device") == 1


def test_a_container_sees_the_files_that_options_name(tmp_path: Path, bids: Path) -> None:
    filters = tmp_path / "my filters" / "bold.json"
    filters.parent.mkdir()
    filters.write_text("{}")
    script = of_image(tmp_path, bids, Resources(), "--bids-filter-file", str(filters))
    assert f"--bind '{filters.parent}:{filters.parent}:ro'" in script
    assert f"--bids-filter-file '{filters}'" in script


def test_variables_of_the_job_reach_the_container(tmp_path: Path, bids: Path) -> None:
    script = of_image(tmp_path, bids, Resources())
    start = script.index("for name in CUDA")
    loop = script[start : script.index("done\n", start) + 5]
    environment = {"CUDA_VISIBLE_DEVICES": "0,2", "SLURM_CPUS_PER_TASK": "3", "PATH": "/bin"}
    said = subprocess.run(
        ["bash", "-c", f"{loop}/usr/bin/env"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert {"APPTAINERENV_CUDA_VISIBLE_DEVICES=0,2", "SINGULARITYENV_SLURM_CPUS_PER_TASK=3"} < set(
        said
    )
    assert not any("SLURM_MEM" in line for line in said)


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_the_exit_code_is_that_of_the_app(tmp_path: Path, bids: Path, code: int) -> None:
    node = Node(tmp_path, bids)
    assert node.run(f'echo "$@" >$HERE/arguments; exit {code}') == code
    name, job, restarts, *_, end, exit_code = node.status
    assert (name, job, restarts, exit_code) == ("sub-02", "12_2", "0", str(code))
    assert end != "n/a"
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[2:7] == [
        "participant", "--participant-label", "02", "--work-dir", f"{node.work}/sub-02",
    ]  # fmt: skip


def test_a_task_out_of_time_is_queued_again(tmp_path: Path, bids: Path) -> None:
    node = Node(tmp_path, bids)
    # As SLURM does: the job is queued again, and what is left of it is killed.
    executable(tmp_path / "bin" / "scontrol", 'echo "$@" >$HERE/asked; kill -KILL $PPID')
    node.run_out_of_time()
    assert (tmp_path / "app").read_text() == "stopped\n"
    assert (tmp_path / "asked").read_text() == "requeue 14\n"
    assert node.status[-1] == "requeued"


@pytest.mark.parametrize("restarts", [0, 5])
def test_a_task_that_cannot_be_queued_again_fails(
    tmp_path: Path, bids: Path, restarts: int
) -> None:
    node = Node(tmp_path, bids)
    if restarts:  # so often is enough, even if SLURM would
        executable(tmp_path / "bin" / "scontrol", "touch $HERE/asked")
    assert node.run_out_of_time(restarts).returncode == 124
    assert node.status[-1] == "124"
    assert not (tmp_path / "asked").exists()


def test_unfinished_work_comes_back_from_the_disk_of_the_node(tmp_path: Path, bids: Path) -> None:
    node = Node(tmp_path, bids, SCRATCH)
    kept = node.work / "sub-02"
    assert (
        node.run("touch -d 2020-01-01 $7/half; touch $7/other; ls -d $7 >$HERE/where; exit 1") == 1
    )
    assert (tmp_path / "where").read_text().startswith(str(tmp_path / "disk"))
    assert sorted(path.name for path in kept.iterdir()) == ["half", "other"]
    # Times are kept: nipype tells by them whether a file has changed.
    assert time.gmtime((kept / "half").stat().st_mtime).tm_year in (2019, 2020)
    # The next call has it, and what it removes is gone.
    assert node.run("ls $7 >$HERE/found; rm $7/other; exit 1") == 1
    assert (tmp_path / "found").read_text().split() == ["half", "other"]
    assert [path.name for path in kept.iterdir()] == ["half"]
    assert list((tmp_path / "disk").rglob("sub-*")) == []


def test_a_node_without_that_disk_says_so(tmp_path: Path, bids: Path) -> None:
    node = Node(tmp_path, bids, SCRATCH)
    (tmp_path / "disk").rmdir()
    process = node.start()
    said, _ = process.communicate()
    assert process.returncode == 2
    assert "error: --scratch $NODE_DISK: no such folder" in said


def test_out_of_time_on_the_disk_of_the_node_loses_nothing(tmp_path: Path, bids: Path) -> None:
    node = Node(tmp_path, bids, SCRATCH)
    node.run_out_of_time()
    assert (node.work / "sub-02" / "done-so-far").is_file()


def test_collect_says_what_failed_and_how_to_repeat_it(tmp_path: Path, bids: Path) -> None:
    node = Node(tmp_path, bids)
    (node.jobs / "submitted.tsv").write_text("12\t1-3\n13\tgroup\n")
    log = "== sub-02, task 12_2\nerror: an old one\n== sub-02, again\nfailed: sub-02: no mask\n"
    (node.jobs / "logs" / "task-2.log").write_text(log)
    assert node.run("exit 1") == 1
    executable(tmp_path / "bin" / "squeue", "echo 12_3 RUNNING; echo 13_N/A PENDING")
    code, rows, said = node.collect()
    assert code == 1
    assert [row["state"] for row in rows.values()] == [
        "not started", "failed", "running", "pending",
    ]  # fmt: skip
    assert rows["sub-02"]["reason"].startswith("failed: sub-02: no mask [")
    assert "submit.sh 1,2\n" in said


def test_collect_tells_memory_from_other_ends(tmp_path: Path, bids: Path) -> None:
    node = Node(tmp_path, bids)
    killed = "slurmstepd-n1: error: StepId=12.batch exceeded memory limit (9 > 8), being killed\n"
    (node.jobs / "logs" / "task-2.log").write_text(
        f"== sub-02, task 12_2\n{killed}failed: sub-02: its process was stopped\n"
    )
    fields = ("sub-02", "12_2", "0", "n1", "2026-01-01T00:00:00", "n/a", "n/a")
    (node.jobs / "status" / "sub-02.tsv").write_text("\t".join(fields) + "\n")
    reason = node.collect()[1]["sub-02"]["reason"]
    assert reason.startswith("out of memory: give more with --mem; ")
    assert "exceeded memory limit" in reason
    # SLURM's own word, where it has one
    executable(tmp_path / "bin" / "sacct", "echo TIMEOUT")
    (node.jobs / "logs" / "task-2.log").write_text("== sub-02, task 12_2\n")
    reason = node.collect()[1]["sub-02"]["reason"]
    assert reason.startswith("out of time: give more with --time; ")
    executable(tmp_path / "bin" / "sacct", "echo CANCELLED by 7")
    assert "without a word (CANCELLED)" in node.collect()[1]["sub-02"]["reason"]


def test_collect_is_content_when_all_are_done(tmp_path: Path, bids: Path) -> None:
    node = Node(tmp_path, bids)
    for name in ("sub-01", "sub-02", "sub-03", "group"):
        fields = (name, "12_1", "0", "n1", "2026-01-01T00:00:00", "2026-01-01T01:00:00", "0")
        (node.jobs / "status" / f"{name}.tsv").write_text("\t".join(fields) + "\n")
    code, rows, said = node.collect()
    assert code == 0
    assert {row["state"] for row in rows.values()} == {"done"}
    assert "to repeat" not in said


def test_submit_repeats_only_some_tasks(tmp_path: Path, bids: Path) -> None:
    node = Node(tmp_path, bids, Resources(most_at_once=7))
    said = 'echo "$@" >>$HERE/asked; echo 20'
    executable(tmp_path / "bin" / "sbatch", said)
    subprocess.run(
        ["sh", str(node.jobs / "submit.sh"), "2,3", "--mem=9G"],
        env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HERE": str(tmp_path)},
        check=True,
    )
    array, group = (tmp_path / "asked").read_text().splitlines()
    assert array == f"--parsable --array=2,3%7 --mem=9G {node.jobs}/participant.sbatch"
    assert "--dependency=afterok:20 --kill-on-invalid-dep=yes" in group
    assert (node.jobs / "submitted.tsv").read_text() == "20\t2,3\n20\tgroup\n"


def _write_as_one_of_two(root: Path, both: Barrier, who: int) -> None:
    both.wait()
    for number in range(20):
        write_bidsignore(root)
        update_dataset_description(
            root, {f"data{who}": "file:///data"}, {f"model{who}-{number}": "hash"}
        )


def test_two_tasks_that_write_one_dataset_lose_nothing_of_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [
        context.Process(target=_write_as_one_of_two, args=(tmp_path, barrier, who))
        for who in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    description = json.loads((tmp_path / "dataset_description.json").read_text())
    hashes = description["GeneratedBy"][0]["ConfigurationHash"]
    assert set(hashes) == {f"model{who}-{number}" for who in range(2) for number in range(20)}
    assert set(description["DatasetLinks"]) == {"data0", "data1"}
    ignored = (tmp_path / ".bidsignore").read_text().splitlines()
    assert len(ignored) == len(set(ignored))
    assert not list(tmp_path.glob(".*.part"))


def test_slurm_graph_returns_once_its_jobs_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nipype.interfaces.utility import Function
    from nipype.pipeline import engine as pe

    from bids_fbn import slurm_graph

    # A queue that keeps a job for three looks; it runs the job at the last of them.
    executable(
        tmp_path / "bin" / "sbatch",
        'for word in "$@"; do case $word in --comment=*) echo ${word#*=} >>$HERE/queue; esac\n'
        "done\n"
        'echo "$@" >>$HERE/asked; echo "${@: -1}" >$HERE/script; echo Submitted batch job 7',
    )
    executable(
        tmp_path / "bin" / "squeue",
        "echo >>$HERE/looks; echo of-another\n"
        "if [ $(wc -l <$HERE/looks) -lt 3 ]; then cat $HERE/queue\n"
        'else bash "$(cat $HERE/script)" >/dev/null; fi',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.setattr(slurm_graph, "_SECONDS_BETWEEN_LOOKS", 0.0)
    workflow = pe.Workflow(name="one", base_dir=str(tmp_path))
    node = pe.Node(
        Function(function=_left_behind, input_names=["path"], output_names=["path"]), name="node"
    )
    node.inputs.path = str(tmp_path / "result")
    workflow.add_nodes([node])
    workflow.run(
        plugin=slurm_graph.WaitingSLURMGraphPlugin({"sbatch_args": "--mem=1G"}), plugin_args={}
    )
    assert (tmp_path / "result").read_text() == "done"
    asked = (tmp_path / "asked").read_text()
    assert "--mem=1G --kill-on-invalid-dep=yes --comment=bids_fbn-" in asked


def _left_behind(path: str) -> str:
    from pathlib import Path

    Path(path).write_text("done")
    return path


def marks(text: str, pattern: str) -> Sequence[str]:
    return sorted(set(re.findall(pattern, text)))


def test_the_documented_commands_are_those_that_the_cluster_runs() -> None:
    page = (ROOT / "docs" / "hpc.md").read_text()
    harness = (ROOT / "containers" / "slurm-test").read_text()
    documented = marks(page, r"<!-- run: ([\w-]+) -->\n```")
    assert documented == marks(harness, r'block\("([\w-]+)"\)')
    assert len(documented) >= 5
