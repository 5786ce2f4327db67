"""A real Slurm on one machine, in a folder of its own: `with start_slurm(folder) as environment:`.

Everything it writes is in the folder, munge's key and socket too, and it ends through its own pid
files, so that a Slurm which the machine has already is left alone. Needs root, as slurmd does.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ReturnToService=2
JobRequeue=1
KillWait=20
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class NoSlurm(Exception):
    """Why there can be no Slurm here."""


def install() -> None:
    """Debian's slurm-wlm and munge, if they are not here yet. Raises NoSlurm."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise NoSlurm("Slurm's daemons need root")
    if all(shutil.which(program) for program in ("slurmctld", "slurmd", "munged", "sbatch")):
        return
    if shutil.which("apt-get") is None:
        raise NoSlurm("no Slurm, and no apt-get to install it")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in ("update", "install -y slurm-wlm munge"):
        command = ["apt-get", "-qq", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise NoSlurm(f"apt-get {words}: {done.stderr.strip()[-200:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop_daemon(folder: Path, name: str) -> None:
    """End a daemon through its pid file, and wait until it has."""
    with suppress(OSError, ValueError):
        number = int((folder / f"{name}.pid").read_text())
        os.kill(number, signal.SIGTERM)
        for _ in range(300):
            os.kill(number, 0)  # raises once it is gone
            time.sleep(0.1)


@contextmanager
def start_slurm(folder: Path):
    """Yields the environment in which sbatch, squeue and scontrol find it. Raises NoSlurm."""
    install()
    host = socket.gethostname().split(".")[0]
    (folder / "state").mkdir(parents=True)
    (folder / "spool").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    values = {"host": host, "folder": folder, "ctld_port": free_port(), "slurmd_port": free_port()}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
    munge |= {"log-file": "munged.log", "seed-file": "munged.seed"}
    options = [f"--{option}={folder / name}" for option, name in munge.items()]
    try:
        for command in (["munged", "--force", *options], ["slurmctld"], ["slurmd"]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                raise NoSlurm(f"{command[0]} does not start: {done.stderr.strip()}")
        for _ in range(120):
            command = ["sinfo", "--noheader", "--format=%T"]
            state = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
            if state.strip() == "idle":
                break
            time.sleep(0.5)
        else:
            raise NoSlurm(f"its node does not become idle: {state.strip()}")
        yield environment
    finally:
        for name in ("slurmctld", "slurmd", "munged"):
            stop_daemon(folder, name)
