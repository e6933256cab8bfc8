"""The scripts for clusters: Slurm's with a stand-in for Slurm, Kubernetes' for what it says."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jdl.training import runs

CLUSTERS = Path(__file__).parents[2] / "clusters"
SPREAD = Path(__file__).parents[1] / "helpers" / "small_experiments" / "spread.py"

SRUN = """#!{python}
# Two tasks on this machine, as srun would start them; where there is a file `preempt` they are told to end.
import os, pathlib, signal, subprocess, sys, time
command = [word for word in sys.argv[1:] if word != "--kill-on-bad-exit=1"]
shared = {{"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_NODES": "1"}}
tasks = [
    subprocess.Popen(command, env=os.environ | shared | {{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}})
    for i in range(2)
]
if pathlib.Path("preempt").exists():
    while not list(pathlib.Path("runs").rglob("metrics.jsonl")):
        time.sleep(0.05)
    tasks[1].send_signal(signal.SIGTERM)
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
echo "$@" >>scontrol.txt
"""


@pytest.mark.slow
def test_a_slurm_job_is_requeued_and_goes_on(tmp_path):
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    (tmp_path / "spread.py").write_text(SPREAD.read_text())
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "VENV": sys.prefix, "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()), "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": "",
    }  # fmt: skip

    def batch():
        command = ["bash", str(CLUSTERS / "slurm.sh"), "spread.py", "--devices", "fsdp", "--pause", "0.05"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    (tmp_path / "preempt").touch()
    status, output = batch()
    assert status == 75, output
    assert (tmp_path / "scontrol.txt").read_text() == f"requeue {os.getpid()}\n"
    (tmp_path / "preempt").unlink()
    status, output = batch()
    assert status == 0, output
    run = runs.Run(tmp_path / "runs" / "spread.py" / str(os.getpid()))
    assert run.environment["devices"]["processes"] == 2
    assert len(run.environment["resumed"]) == 1
    steps = [row["step"] for row in run.rows if "train/loss" in row]
    assert steps == list(range(1, 41))


def test_the_kubernetes_job_says_what_jdl_launch_takes():
    service, job = yaml.safe_load_all((CLUSTERS / "kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    words = dict(word.split("=", 1) for word in pod["containers"][0]["args"] if "=" in word)
    name = job["metadata"]["name"]
    assert words["--coordinator"].split(":")[0] == f"{name}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert int(words["--processes"]) == spec["completions"] == spec["parallelism"]
    assert spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] == [75]
