"""One training run as a job of submitit: started, resumed, or left alone, but never trained twice.

A job's whole truth is in files. Beside the run's folder `R` are `R.log`, what the scripts printed,
and `R.lock`, which the training process itself holds: it stays locked as long as something trains,
even when the job and the engine that started it have been killed.
"""

import fcntl
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import submitit

ROOT = Path(__file__).resolve().parents[1]
LOCK_PATIENCE = 60  # seconds that a job waits for the lock: a requeued job's old process may linger


@contextmanager
def locked(path: Path, patience: float = 0.0):
    """Hold the lock file `path` for a while; yields the open file, or None if others keep it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        give_up = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    yield None
                    return
                time.sleep(0.2)
        yield file


def describe_hardware() -> str:
    """Processor, cores and GPU, for the table of runs."""
    name = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo") as file:
        name = next((line.split(":")[1].strip() for line in file if "model name" in line), name)
    parts = [f"{name}, {os.cpu_count()} cores"]
    with suppress(OSError, subprocess.TimeoutExpired):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
        parts += answer.stdout.split("\n")[:1] if answer.returncode == 0 else []
    return ", ".join(parts)


@dataclass
class Job:
    """Call it and the run is trained to its end, from wherever it stands."""

    run_dir: Path
    script: list[str]
    flags: list[str]
    cores: int = 1
    teacher_command: list[str] | None = None
    """makes the teacher that `flags` name, where it has to be made first"""
    corrupted_teacher: Path | None = None
    """the file that `teacher_command` makes"""

    def __post_init__(self):
        self.child = None  # process id of what is running for this job
        self.stopping = self.told = False

    def beside(self, suffix: str) -> Path:
        return self.run_dir.with_name(self.run_dir.name + suffix)

    @property
    def finished(self) -> bool:
        return (self.run_dir / "result.json").exists()

    @property
    def is_locked(self) -> bool:
        """Whether some process trains this run at the moment."""
        if not self.beside(".lock").exists():
            return False
        with locked(self.beside(".lock")) as lock:
            return lock is None

    def log_tail(self, lines: int = 8) -> str:
        """The last lines of the log."""
        with suppress(OSError):
            text = self.beside(".log").read_text(errors="replace").replace("\r", "\n")
            return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])
        return "(no log)"

    def __call__(self) -> None:
        on_slurm = "SLURM_JOB_ID" in os.environ
        if not on_slurm:  # Slurm itself sends SIGTERM to the training, and one must be enough
            signal.signal(signal.SIGTERM, lambda number, frame: self.stop())
        with locked(self.beside(".lock"), LOCK_PATIENCE) as lock:
            if lock is None or self.finished:
                return
            if self.teacher_command:
                made = self.corrupted_teacher
                with locked(made.with_name(made.name + ".lock"), 3600):  # other methods want it too
                    if not made.exists() and self.execute(self.teacher_command, lock) != 0:
                        return
            facts = json.dumps({"hardware": describe_hardware()})
            self.beside(".hardware.json").write_text(facts)
            status = self.execute(self.training_command(), lock)
        # Preempted: Slurm's SIGTERM came to the training first, which saved and stopped. Go the way
        # of a time-out, back into the queue; not when the job was cancelled.
        preempted = status in (-signal.SIGTERM, 128 + signal.SIGTERM)
        if on_slurm and preempted and slurm_job_state() == "RUNNING":
            os.kill(os.getpid(), signal.SIGUSR2)

    def training_command(self) -> list[str]:
        """Start, or go on from the last checkpoint; a folder without one is removed first."""
        script = [sys.executable, str(ROOT / self.script[0]), *self.script[1:]]
        if (self.run_dir / "training_state.pt").exists():
            return [*script, "--resume", str(self.run_dir)]
        if self.run_dir.exists():
            shutil.rmtree(self.run_dir)
        return [*script, *self.flags]

    def execute(self, command: list[str], lock) -> int:
        """Run a command, its output appended to the log; returns its exit status."""
        if self.stopping:
            return 128 + signal.SIGTERM
        # Unbuffered, so that the log of a run that is killed ends where the run did.
        settings = {"OMP_NUM_THREADS": str(self.cores), "PYTHONUNBUFFERED": "1"}
        with open(self.beside(".log"), "a") as log:
            print(f"$ {' '.join(command)}", file=log, flush=True)
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | settings, pass_fds=[lock.fileno()], start_new_session=True,
            )  # fmt: skip
            self.child = process.pid
            if self.stopping:
                self.stop()
            # Not process.wait(): a signal that arrives in it could not wait for the process again.
            while not self.child_ended():
                time.sleep(0.1)
            self.child = None
            return process.wait()

    def child_ended(self) -> bool:
        """Whether the running command has ended; leaves it to be waited for."""
        try:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return self.child is None or os.waitid(os.P_PID, self.child, flags) is not None
        except ChildProcessError:
            return True

    def stop(self) -> None:
        """Have the training save after its current update and end."""
        if self.child and not self.told and not self.child_ended():
            self.told = True  # a second signal would end it unsaved
            os.kill(self.child, signal.SIGTERM)
        self.stopping = True

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """submitit calls this when the job is preempted or its time is up, and then requeues it."""
        self.stop()
        while not self.child_ended():
            time.sleep(0.1)
        self.child, self.stopping, self.told = None, False, False
        return submitit.helpers.DelayedSubmission(self)


def slurm_job_state(patience: float = 600.0) -> str:
    """The state of the Slurm job that this process is in: RUNNING, COMPLETING, CANCELLED, …

    Empty where the controller does not answer in time.
    """
    query = ["squeue", "--noheader", "--format=%T", "--jobs", os.environ["SLURM_JOB_ID"]]
    give_up = time.monotonic() + patience
    while True:
        answer = subprocess.run(query, capture_output=True, text=True)
        if answer.returncode == 0 or time.monotonic() > give_up:
            return answer.stdout.strip()
        time.sleep(5)
