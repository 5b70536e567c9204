"""A worker that dies under torchrun's agent: all workers restart from the newest checkpoint; no clip is lost or seen twice."""

import os
import subprocess
from pathlib import Path

import pytest
from noted_command import launch, notes
from repository import ROOT
from tiny import assert_same_weights, pretrain_config
from tiny_command import command_words

from svdata2vec.runs.metrics_log import read_metrics

CLUSTER = ROOT / "tools" / "cluster"
NUM_CLIPS, EPOCHS, STEPS = 12, 2, 6  # two processes of two clips: three steps per epoch


@pytest.mark.slow
def test_a_killed_worker_costs_no_clip(tiny_shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 1 is killed in step 4, one step after the newest checkpoint's successor."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # as tools/cluster sets it
    for name, kill_step, max_restarts in (("whole", -1, 0), ("killed", 3, 2)):
        words = command_words(pretrain_config(tiny_shard_folder, tmp_path / name, batch_size=2))
        launch(tmp_path, name, words, 2, kill_step, max_restarts=max_restarts)
    rows = notes(tmp_path, "killed")
    assert {row["attempt"] for row in rows} == {0, 1}
    assert min(row["step"] for row in rows if row["attempt"] == 1) == 3  # from the checkpoint of step 2, not from the start
    assert max(row["step"] for row in rows if row["attempt"] == 0) == 3  # a step beyond it is done again
    counted = [row for row in rows if row["attempt"] == 1 or row["step"] <= 2]  # what the weights have seen
    per_step = NUM_CLIPS * EPOCHS // STEPS
    for epoch in range(EPOCHS):
        steps = range(1 + epoch * STEPS // EPOCHS, 1 + (epoch + 1) * STEPS // EPOCHS)
        seen = [key for row in counted if row["step"] in steps for _, key in row["clips"]]
        assert len(seen) == len(set(seen)) == NUM_CLIPS == per_step * len(steps)
    records = read_metrics(tmp_path / "killed")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


# ---- the launch files -------------------------------------------------------------------------------------------------

STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $* [own store: ${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-0}]" >> "$CALLS"
[ "$1 $2" = "show hostnames" ] && printf 'node7\\nnode8\\n'
if [ "$1 $2" = "show job" ]; then
    grep -q ^srun "$CALLS" && time="${PREEMPTED:-None}" || time="${PREEMPTED_BEFORE:-None}"
    echo "   PreemptEligibleTime=2026-12-01T10:00:00 PreemptTime=$time SuspendTime=None"
fi
[ "$(basename "$0")" = srun ] && [ -n "${PREEMPTED:-}" ] && exit 1
if [ "$(basename "$0")" = srun ] && [ -n "${STOPS:-}" ]; then
    trap 'saving=true' TERM
    kill -TERM "$PPID"
    until ${saving:-false}; do sleep 0.05; done
    kill -TERM "$PPID" && sleep 0.2 && echo saved >> "$CALLS"
    exit "$STOPS"
fi
exit 0
"""


def run_with_stubs(script: str, folder: Path, **variables: str) -> tuple[int, list[str]]:
    """Run a launch file with a scheduler that only notes what it was asked for."""
    for name in ("srun", "scontrol", "python"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    calls = folder / "calls"
    path = f"{folder}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CALLS": str(calls), "PYTHON": str(folder / "python")}
    command = ["bash", str(CLUSTER / script)]
    done = subprocess.run(command, cwd=folder, env={**environment, **variables}, timeout=30)
    return done.returncode, calls.read_text().splitlines()


SLURM = {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2",
         "SLURM_JOB_ID": "123"}


def test_the_slurm_file_starts_one_torchrun_per_node(tmp_path: Path) -> None:
    status, calls = run_with_stubs("pretrain.sbatch", tmp_path, **SLURM)
    assert status == 0 and calls[0].startswith("scontrol show hostnames node[7-8] ") and len(calls) == 3
    assert calls[2].startswith("srun --cpus-per-task=64 --kill-on-bad-exit=1 ")
    for words in ("--nnodes 2 --nproc-per-node 8 --max-restarts 3", "--rdzv-endpoint node7:29500", "--rdzv-id 123",
                  "-m svdata2vec pretrain ntu60-xsub ", "[own store: 1]"):
        assert words in calls[2]


def test_a_slurm_job_that_is_asked_to_stop_saves_and_queues_again(tmp_path: Path) -> None:
    """Asked twice, as at the time limit: it must not queue, or end, before it has saved."""
    status, calls = run_with_stubs("pretrain.sbatch", tmp_path, **SLURM, STOPS="75")
    assert status == 75 and calls[-2] == "saved" and calls[-1].startswith("scontrol requeue 123 ")


def test_a_slurm_job_that_finished_when_it_was_asked_to_stop_does_not_queue_again(tmp_path: Path) -> None:
    status, calls = run_with_stubs("pretrain.sbatch", tmp_path, **SLURM, STOPS="0")
    assert status == 0 and calls[-1] == "saved"


@pytest.mark.parametrize(("before", "after", "queued"), [
    ("None", "2026-12-01T11:00:00", True), ("2026-12-01T10:00:00", "2026-12-01T11:00:00", True), ("None", "None", False),
    ("2026-12-01T10:00:00", "2026-12-01T10:00:00", False),
])
def test_a_slurm_job_queues_again_if_its_processes_were_told_of_a_preemption(
    tmp_path: Path, before: str, after: str, queued: bool
) -> None:
    """They alone are told when a grace time begins, and a job that ends in it is not queued by Slurm."""
    status, calls = run_with_stubs("pretrain.sbatch", tmp_path, **SLURM, PREEMPTED_BEFORE=before, PREEMPTED=after)
    assert status == 1 and calls[2].startswith("srun ")
    assert [call.split(" [")[0] for call in calls[4:]] == ["scontrol requeue 123"] * queued


def test_the_file_for_machines_without_a_scheduler(tmp_path: Path) -> None:
    status, calls = run_with_stubs("launch_node.sh", tmp_path, NODES="3", HEAD_NODE="first", GPUS="2")
    (call,) = calls
    assert status == 0 and "--nnodes 3 --nproc-per-node 2 --max-restarts 3" in call and "--rdzv-endpoint first:29500" in call
    assert call.endswith("[own store: 1]")
    _, calls = run_with_stubs("launch_node.sh", tmp_path, NODES="3", HEAD_NODE="first", GPUS="2", PORT="29512")
    assert "--rdzv-endpoint first:29512" in calls[-1], "a second run on these machines"


@pytest.mark.parametrize("script", ["pretrain.sbatch", "launch_node.sh"])
def test_launch_files_are_edited_in_two_places_and_parse(script: str) -> None:
    path = CLUSTER / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert [line.split(":")[0] for line in path.read_text().splitlines() if line.startswith("# ---- edit")] == [
        "# ---- edit 1", "# ---- edit 2"]


def test_the_command_of_the_launch_files_parses() -> None:
    from svdata2vec.cli.commands import COMMANDS
    from svdata2vec.cli.options import read

    for script in ("pretrain.sbatch", "launch_node.sh"):
        (line,) = (line for line in (CLUSTER / script).read_text().splitlines() if line.startswith("command=("))
        words = line[len("command=(") : -1].split()
        assert words[0] == "pretrain"
        _, config = read(words, COMMANDS, "svdata2vec")
        assert config.data.threads is None, "found from the cores that each process has"
