"""Twelve runs on a real Slurm: killed, preempted, out of time, requeued, the controller restarted.

The test starts its own Slurm in a temporary folder, with its own munge key and socket. It needs
root.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import test_experiments as local
from test_experiments import TINY, steps, wait_for

from experiments.job import is_training

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthInfo=socket={folder}/socket
ProctrackType=proctrack/linuxproc
SchedulerParameters=sched_interval=3,bf_interval=3
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
StateSaveLocation={folder}
SlurmdSpoolDir={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes=ALL PriorityTier=2
"""
folder = local.folder


@pytest.fixture
def slurm():
    """A function that starts a Slurm daemon, the controller's process, and the environment."""
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root")
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
        install = "apt-get -qq update && apt-get -qq install -y slurm-wlm munge"
        if subprocess.run(install, shell=True, capture_output=True).returncode != 0:
            pytest.skip(f"no Slurm here, and no `{install}`")
    with tempfile.TemporaryDirectory() as name, socket.socket() as one, socket.socket() as two:
        folder, host = Path(name), socket.gethostname().split(".")[0]  # sockets need short paths
        for probe in (one, two):
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in (one, two)]
        one.close(), two.close()
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**locals()))
        (folder / "key-file").write_bytes(os.urandom(1024))
        (folder / "key-file").chmod(0o400)
        environment = local.ENVIRONMENT | {"SLURM_CONF": f"{folder}/slurm.conf"}
        files = [f"--{file}={folder}/{file}" for file in ("key-file", "pid-file", "seed-file")]
        options = {"munged": ["-F", "-f", f"--socket={folder}/socket", *files]}
        daemons, quiet = [], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

        def start(daemon):
            command = [daemon, *options.get(daemon, ["-D"])]
            daemons.append(subprocess.Popen(command, env=environment, **quiet))
            return daemons[-1]

        start("munged")
        wait_for((folder / "socket").exists)
        start("slurmctld")
        start("slurmd")
        yield start, daemons[1], environment
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


@pytest.mark.slow
def test_twelve_runs_each_once(slurm, folder):
    start_daemon, controller, environment = slurm
    study = [*TINY, "twelve", "--cluster", "slurm", "--workers", "2"]
    runs, used = folder / "runs" / "twelve", []

    def call(*command):
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        print("$", *command, done.stdout, done.stderr)
        return done.stdout

    def next_job():
        """The Slurm job of a run in its first half that is not in `used`, to which it is added."""
        new = [run for run in runs.glob("*__100") if run not in used and 10 < len(steps(run)) < 400]
        used.extend(new[:1])
        return new and new[0].with_name(f"{new[0].name}.slurm").read_text()

    engine = subprocess.Popen(study, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    call("scancel", "--signal=KILL", wait_for(next_job))
    call("timeout", "3", "scancel", "--signal=USR2", wait_for(next_job))  # its time is up
    wait_for(next_job)  # the next command preempts it: it needs both cores
    call("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")
    wait_for(lambda: not is_training(used[-1]))
    call("scontrol", "requeue", wait_for(next_job))
    controller.terminate()
    time.sleep(8)  # long enough that the engine gets no answer
    start_daemon("slurmctld")
    while engine.poll() is None:  # without this a requeued job waits for two minutes
        for job in call("squeue", "--noheader", "--array", "--format=%i").split():
            call("scontrol", "update", f"jobid={job}", "StartTime=now")
        time.sleep(1)
    first = engine.communicate()[1]
    assert engine.returncode == 1 and "1 of 12 runs failed" in first and used[0].name in first
    second = subprocess.run(study, cwd=folder, env=environment, capture_output=True, text=True)
    assert second.returncode == 0 and "all 12 runs are finished" in second.stdout
    counts = {run: len({process for process, _ in steps(run)}) for run in runs.glob("*__100")}
    assert len(counts) == 12 and all(counts[run] == 2 for run in used)
    assert sum(counts.values()) <= 12 + 4 + 1  # other jobs of the node are preempted, too
    for run, count in counts.items():
        local.assert_trained(run, count, 800)
