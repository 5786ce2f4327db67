"""One training run as a job: it is started, resumed or left alone, but never trained twice at once.

A job keeps its state in files. The training process holds `R/lock` in the run's folder R as long as
it lives, whoever started it. Next to R are `R.log`, with all that the scripts printed, and
`R.hardware.json`, with the machine that trained the run.
"""

import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout
from submitit.helpers import Checkpointable


def is_finished(run_dir: Path) -> bool:
    """Whether there is a complete result.json; an empty or truncated one does not count."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        result = json.loads((run_dir / "result.json").read_bytes())
        return bool(result["scores" if "scores" in result else "score"])  # of several tasks, or one
    return False


def is_training(run_dir: Path) -> bool:
    """Whether a process is training this run now."""
    if not run_dir.exists():
        return False
    try:
        with FileLock(run_dir / "lock", timeout=0):
            return False
    except Timeout:
        return True


def ask_nvidia(column: str) -> list[str]:
    """A property of each GPU; an empty list without a driver."""
    query = ["nvidia-smi", f"--query-gpu={column}", "--format=csv,noheader"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(query, stderr=subprocess.DEVNULL, text=True).splitlines()
    return []


def describe_hardware() -> str:
    """Processor, its widest instructions, cores and GPU, for the table of runs.

    On other hardware the same seed gives other last digits, and so a different run.
    """
    name, text = platform.processor() or platform.machine(), ""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
    names = re.findall(r"model name\s*: (.*)", text) or [name]
    widest = [kind for kind in ("avx512_bf16", "avx512f", "avx2") if f" {kind} " in text]
    facts = [names[0], *widest[:1], f"{os.cpu_count()} cores"]
    return ", ".join(facts + list(dict.fromkeys(ask_nvidia("name"))))


@dataclass(eq=False)
class Job(Checkpointable):
    """Calling it trains a run to its end. Slurm queues it again when its time is up."""

    run_dir: Path
    command: list[str]  # arguments of Python that start the run: a script, then its flags
    resume: list[str]  # arguments of Python that continue it
    cores: int = 1
    teacher_command: list[str] | None = None  # makes a corrupted teacher, if the run needs one
    made_teacher: Path | None = None  # the file that this command writes
    stopped: bool = False  # set by the engine: end the training and start nothing else

    def beside(self, suffix: str) -> Path:
        return self.run_dir.with_name(self.run_dir.name + suffix)

    def note(self, text: str) -> None:
        """Write a line to the log, or to the screen if the log cannot be written."""
        try:
            with open(self.beside(".log"), "a") as log:
                print(f"\n{text}", file=log)  # a killed run's last line has no end
        except OSError:
            print(f"{self.run_dir}: {text}", file=sys.stderr)

    def log_tail(self, lines: int = 8) -> str:
        with suppress(OSError):
            text = self.beside(".log").read_text(errors="replace").replace("\r", "\n")
            return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])
        return "(no log)"

    def __call__(self, gpu: str | None = None) -> None:
        """Return when nothing more can be done for this run, finished or not."""
        try:
            self.run_dir.parent.mkdir(parents=True, exist_ok=True)
            while not is_finished(self.run_dir) and not self.stopped:
                try:
                    if not self.make_teacher(gpu):
                        return
                    command, before = self.choose_command(), self.saved_at()
                except Timeout:  # another engine trains it, or the child of a killed engine
                    time.sleep(1)
                    continue
                facts = json.dumps({"hardware": describe_hardware()})
                self.beside(".hardware.json").write_text(facts)
                status, reason = self.execute(command, gpu), self.log_tail(1)
                if status == 2 and "training_state.pt" in reason and "damaged" in reason:
                    self.put_aside(before)
                elif status != 2 or not is_training(self.run_dir):  # or another engine was faster
                    return
        except OSError as error:
            self.note(f"error: {error}")

    def saved_at(self) -> int | None:
        """When the checkpoint was written, in ns, to tell it from others; None without one."""
        with suppress(FileNotFoundError):
            return (self.run_dir / "training_state.pt").stat().st_mtime_ns
        return None

    def put_aside(self, damaged: int | None) -> None:
        """Rename the folder of a run with this damaged checkpoint, unless the run is in use.

        Raises OSError if the checkpoint cannot be read at all, because it may be sound then.
        """
        with suppress(Timeout), FileLock(self.run_dir / "lock", timeout=0):
            if damaged is None or self.saved_at() != damaged:
                return  # another engine was faster
            (self.run_dir / "training_state.pt").read_bytes()
            names = (self.beside(f".damaged{number or ''}") for number in count())
            aside = next(path for path in names if not path.exists())
            self.run_dir.rename(aside)
            self.note(f"kept as {aside}; the run starts from the beginning")

    def make_teacher(self, gpu: str | None) -> bool:
        """Make the corrupted teacher, if needed; returns whether it is there.

        Raises Timeout while another run makes the same file.
        """
        if self.made_teacher is None or self.made_teacher.exists():
            return True
        self.made_teacher.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.made_teacher}.lock", timeout=0):
            return self.execute(self.teacher_command, gpu) == 0

    def choose_command(self) -> list[str]:
        """The command that starts or resumes. Raises Timeout while another process trains."""
        if self.run_dir.exists():
            with FileLock(self.run_dir / "lock", timeout=0):
                if (self.run_dir / "result.json").exists() and not is_finished(self.run_dir):
                    self.note("result.json is not complete: removed, the run writes it again")
                    (self.run_dir / "result.json").unlink()
                if (self.run_dir / "training_state.pt").exists():
                    return self.resume
                shutil.rmtree(self.run_dir)  # it was killed before its first checkpoint
        return self.command

    def execute(self, command: list[str], gpu: str | None) -> int:
        """Run Python and append its output to the log; returns its exit status."""
        self.note(f"$ python {shlex.join(command)}")
        # Unbuffered, so that the log of a killed run is complete.
        settings = {"OMP_NUM_THREADS": str(self.cores), "PYTHONUNBUFFERED": "1"}
        # malloc (Linux) keeps the memory of large activations instead of returning it each time.
        settings |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
        settings |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
        with open(self.beside(".log"), "a") as log:
            process = subprocess.Popen(  # in its own session: Ctrl-C reaches only the engine
                [sys.executable, *command], env=os.environ | settings, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            while process.poll() is None and not self.stopped:
                time.sleep(0.1)
        finally:
            process.terminate()  # still running if the engine stops or submitit requeues the job
        if process.wait() == -signal.SIGTERM and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            time.sleep(3600)  # preempted: Slurm requeues only a job that it has to end itself
        return process.returncode
