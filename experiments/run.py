"""Run a study of the paper, on this machine or on a Slurm cluster, and go on where it stopped.

    python -m experiments.run sizes --suite mujoco --seed 100              # on all cores
    python -m experiments.run sizes --suite mujoco --cluster slurm --workers 50
    python -m experiments.run imperfect --dry-run                          # print the commands

The same command again skips what is finished and resumes what is not, however it was interrupted:
a run is finished when its folder under runs/ has a result.json, and nothing else is remembered.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import submitit
import tyro
from safetensors import SafetensorError, safe_open

from experiments.job import ROOT, Job
from experiments.studies import METHODS, SIZES, STUDIES, Run, narrow, teacher_run


class UserError(Exception):
    """Something a user can cause and mend: one line, the cause and the remedy; exit status 2."""


@dataclass
class Args:
    study: Annotated[str, tyro.conf.Positional]
    """teachers, sizes, imperfect, lambda, ppo-baseline, imperfect-mujoco, lambda-mujoco, sb3-ppo"""
    cluster: Literal["local", "slurm"] = "local"
    """this machine, or the Slurm cluster whose sbatch is found here"""
    workers: int | None = None
    """runs at once; unset: one per core on this machine, 100 on a cluster"""
    dry_run: bool = False
    """print the command lines and run nothing"""

    # Narrow the study
    suite: tuple[Literal["atari", "mujoco", "procgen"], ...] = ()
    """only these suites"""
    env_id: tuple[str, ...] = ()
    """only these environments"""
    seed: tuple[int, ...] = ()
    """only these seeds"""
    method: tuple[str, ...] = ()
    """only these of teacher, teacher-distill, student-distill, ppd and sb3-ppo"""
    size: tuple[str, ...] = ()
    """only these of smaller, same and larger"""

    # Each run
    device: str | None = None
    """torch device of each run, for example cuda; on a cluster it then gets a GPU"""
    cores: int = 1
    """CPU cores of each run"""
    hours: float = 24
    """time limit of a cluster job; one that needs longer goes back into the queue and resumes"""
    sbatch: tuple[str, ...] = ()
    """further options of sbatch, for example partition=main account=lab mem=8G"""


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# ------------------------------------------------------------------------------- From runs to jobs


def select_runs(args: Args) -> list[Run]:
    """The runs of a study that the flags leave. Raises UserError where they leave none."""
    if args.study not in STUDIES:
        raise UserError(f"study {args.study}: none of {', '.join(STUDIES)}")
    for flag, known in [("method", ("teacher", *METHODS, "sb3-ppo")), ("size", SIZES)]:
        for value in getattr(args, flag):
            if value not in known:
                raise UserError(f"--{flag} {value}: none of {', '.join(known)}")
    runs = STUDIES[args.study]()
    names = ("suite", "env_id", "seed", "method", "size")
    chosen = narrow(runs, **{name: getattr(args, name) for name in names})
    if not chosen:
        envs = ", ".join(dict.fromkeys(run.env_id for run in runs))
        seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))
        left = f"no run of {args.study} is left by these choices"
        raise UserError(f"{left}; it has the environments {envs} and the seeds {seeds}")
    return chosen


def find_teacher(env_id: str, seed: int) -> Path | None:
    """The trained teacher of a seed: a finished run's, or else a shipped one's of that seed."""
    run_dir = teacher_run(env_id, seed).run_dir
    if (run_dir / "result.json").exists():
        return run_dir / "agent.safetensors"
    shipped = Path("teachers") / f"{env_id}.safetensors"
    try:
        with safe_open(shipped, framework="np") as file:
            header = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    return shipped if json.loads(header.get("seed", "null")) == seed else None


def check_teachers(runs: list[Run]) -> None:
    """Raises UserError, with the command that trains them, where students have no teacher yet."""
    students = {(run.env_id, run.seed): None for run in runs if run.teacher}
    missing = [pair for pair in students if find_teacher(*pair) is None]
    if not missing:
        return
    env_ids = " ".join(dict.fromkeys(env_id for env_id, _ in missing))
    seeds = " ".join(dict.fromkeys(str(seed) for _, seed in missing))
    which = f"{len(missing)} teachers are" if len(missing) > 1 else "a teacher is"
    first = "{} with seed {}".format(*missing[0])
    remedy = f"python -m experiments.run teachers --env-id {env_ids} --seed {seeds}"
    raise UserError(f"{which} missing, {first} for one; train with `{remedy}`")


def corrupt_command(run: Run) -> list[str]:
    """The arguments of Python that make the imperfect teacher of a run."""
    trained = teacher_run(run.env_id, run.seed).run_dir / "agent.safetensors"
    teacher = find_teacher(run.env_id, run.seed) or trained
    flags = {"sigma": f"{run.sigma:g}", "seed": run.seed, "out": run.teacher}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return ["-m", "experiments.corrupt", str(teacher), *words]


def print_commands(runs: list[Run], extra: list[str]) -> None:
    """Print what a study runs, in an order in which it could be run by hand."""
    made = set()
    for run in runs:
        if run.sigma and run.teacher not in made:
            made.add(run.teacher)
            print("python " + shlex.join(corrupt_command(run)))
        flags = run.flags(None if run.sigma else find_teacher(run.env_id, run.seed))
        print("python " + shlex.join([*run.script, *flags, *extra]))


def make_job(run: Run, args: Args, extra: list[str]) -> Job:
    """The job that trains a run, and makes its imperfect teacher before."""
    if not run.sigma:
        flags = run.flags(find_teacher(run.env_id, run.seed))
        return Job(run.run_dir, run.script, flags + extra, args.cores)
    command = [sys.executable, *corrupt_command(run)]
    return Job(run.run_dir, run.script, run.flags() + extra, args.cores, command, run.teacher)


# ------------------------------------------------------------------------------- Where jobs run


@contextmanager
def deaf_to_ctrl_c():
    """Processes started in here never see Ctrl-C: it is the engine that tells them to stop."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class LocalMachine:
    """As many jobs at once as there are workers, each a process group that outlives the engine."""

    poll_seconds = 0.5

    def __init__(self, args: Args, folder: Path):
        self.workers = args.workers or max(1, usable_cores() // args.cores)
        self.executor = submitit.LocalExecutor(folder)
        # submitit's time limit is two minutes unless told otherwise, and it hides the GPUs.
        year, gpus = 365 * 24 * 60, os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        self.executor.update_parameters(timeout_min=year, stderr_to_stdout=True)
        if args.device and args.device != "cpu":
            visible = [int(gpu) for gpu in gpus.split(",")]
            self.executor.update_parameters(gpus_per_node=len(visible), visible_gpus=visible)
        self.processes = {}

    def follow(self, jobs: list[Job]) -> list[Job]:
        """Those of `jobs` that an engine before this one has submitted: none that is not locked."""
        return []

    def submit(self, waiting: list[Job], elsewhere: int) -> list[Job]:
        """Start jobs while there is room. `elsewhere` are trained by an engine that was killed."""
        started = waiting[: max(0, self.workers - len(self.processes) - elsewhere)]
        with deaf_to_ctrl_c():
            for job in started:
                self.processes[job.run_dir] = self.executor.submit(job)
        return started

    def states(self) -> dict[Path, str] | None:
        """The jobs that are not over yet."""
        self.processes = {run: job for run, job in self.processes.items() if not job.done()}
        return dict.fromkeys(self.processes, "running")

    def stop(self) -> str:
        """Have every run save and end."""
        for process in self.processes.values():
            os.kill(int(process.job_id), signal.SIGTERM)
        return "each run saves after its current update and ends; once more leaves at once"


class SlurmCluster:
    """One job array of all that is not finished; Slurm keeps to the number of workers."""

    poll_seconds = 5.0

    def __init__(self, args: Args, folder: Path):
        try:
            self.executor = submitit.SlurmExecutor(folder, max_num_timeout=10_000)
        except RuntimeError as error:
            advice = "run this on a login node, or use --cluster local"
            raise UserError(f"--cluster slurm: no srun found here; {advice}") from error
        options = {"requeue": True}
        for option in args.sbatch:
            name, equals, value = option.partition("=")
            if not equals:
                raise UserError(f"--sbatch {option}: give NAME=VALUE, for example partition=main")
            options[name] = value
        if args.device and args.device != "cpu":
            options.setdefault("gpus-per-node", 1)
        self.executor.update_parameters(
            job_name=args.study,
            time=max(1, round(60 * args.hours)),
            cpus_per_task=args.cores,
            array_parallelism=args.workers or 100,
            signal_delay_s=120,  # to save in, before the time is up
            stderr_to_stdout=True,
            additional_parameters=options,
        )
        self.ids = {}
        self.absent = {}

    def follow(self, jobs: list[Job]) -> list[Job]:
        """Those of `jobs` that are in the queue already, as the files beside their folders say."""
        queue = self.queue()
        while queue is None:
            time.sleep(self.poll_seconds)
            queue = self.queue()
        for job in jobs:
            record = job.beside(".slurm")
            if record.exists() and (job_id := record.read_text().strip()) in queue:
                self.ids[job.run_dir] = job_id
        return [job for job in jobs if job.run_dir in self.ids]

    def submit(self, waiting: list[Job], elsewhere: int) -> list[Job]:
        if not waiting:
            return []
        try:
            with self.executor.batch():
                submitted = [self.executor.submit(job) for job in waiting]
        except submitit.core.utils.FailedJobError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"sbatch refused the jobs: {reason}; see --sbatch") from error
        for job, slurm_job in zip(waiting, submitted, strict=True):
            self.ids[job.run_dir] = slurm_job.job_id
            job.run_dir.parent.mkdir(parents=True, exist_ok=True)
            job.beside(".slurm").write_text(slurm_job.job_id)
        return list(waiting)

    @staticmethod
    def queue() -> dict[str, str] | None:
        """Job id to state of this user's jobs; None while the controller does not answer."""
        command = ["squeue", "--noheader", "--array", "--me", "--format=%i %T"]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode != 0:
            return None
        return dict(line.split() for line in answer.stdout.splitlines())

    def states(self) -> dict[Path, str] | None:
        """The jobs that are not over yet; None where that cannot be known now."""
        queue = self.queue()
        if queue is None:
            return None
        for run, job_id in list(self.ids.items()):
            # Twice unseen is over: once could be the moment in which it is requeued.
            self.absent[run] = 0 if job_id in queue else self.absent.get(run, 0) + 1
            if self.absent[run] > 1:
                del self.ids[run]
        return {run: queue.get(job_id, "LEAVING").lower() for run, job_id in self.ids.items()}

    def stop(self) -> str:
        """Leave the jobs to the cluster."""
        return "the jobs go on; the same command follows them, scancel ends them"


# ------------------------------------------------------------------------------- The engine


class Progress:
    """One line over all runs: rewritten in a terminal, else printed when it changes."""

    def __init__(self, study: str, finished_before: int):
        self.study, self.finished_before = study, finished_before
        self.started, self.shown = time.monotonic(), None
        self.in_terminal = sys.stderr.isatty()

    def show(self, counts: dict[str, int]) -> None:
        elapsed = time.monotonic() - self.started
        finished = counts["finished"] - self.finished_before
        left = counts["running"] + counts["waiting"]
        text = f"{self.study}: {sum(counts.values())} runs: "
        text += ", ".join(f"{count} {state}" for state, count in counts.items())
        if finished and left:
            text += f"; about {elapsed / finished * left / 3600:.1f} h to go"
        if self.in_terminal:
            hours, minutes = divmod(int(elapsed) // 60, 60)
            print(f"\r\033[K{text} ({hours}:{minutes:02d})", end="", file=sys.stderr, flush=True)
        elif counts != self.shown:
            print(text, file=sys.stderr, flush=True)
        self.shown = dict(counts)

    def say(self, text: str) -> None:
        """Print something above the line."""
        print(("\r\033[K" if self.in_terminal else "") + text, file=sys.stderr, flush=True)


def run_jobs(study: str, jobs: list[Job], machine) -> list[Job]:
    """Train all that is not finished; returns what failed. Raises KeyboardInterrupt on Ctrl-C."""
    stop_signals = []

    def handle(number, frame):
        if stop_signals:
            sys.exit(128 + number)
        stop_signals.append(number)
        progress.say(machine.stop())

    waiting, failed = [job for job in jobs if not job.finished], []
    progress = Progress(study, len(jobs) - len(waiting))
    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    submitted = machine.follow(waiting)
    waiting = [job for job in waiting if job not in submitted]
    while True:
        states = machine.states()
        if states is not None:
            for job in [job for job in submitted if job.run_dir not in states]:
                submitted.remove(job)
                if job.is_locked:  # an engine that was killed had started it before
                    waiting.append(job)
                elif not job.finished and not stop_signals:
                    failed.append(job)
                    tail = "\n    ".join(job.log_tail().splitlines())
                    progress.say(f"FAILED {job.run_dir}; {job.beside('.log')} ends:\n    {tail}")
            waiting = [job for job in waiting if not job.finished]
            if stop_signals and (not submitted or isinstance(machine, SlurmCluster)):
                print(file=sys.stderr)
                raise KeyboardInterrupt
            elsewhere = [job for job in waiting if job.is_locked]
            if not stop_signals:
                free = [job for job in waiting if job not in elsewhere]
                started = machine.submit(free, len(elsewhere))
                submitted += started
                states = (machine.states() if started else None) or states
                waiting = [job for job in waiting if job not in started]
            at_work = [job for job in submitted if not job.finished]
            queued = sum("pending" in states.get(job.run_dir, "") for job in at_work)
            running = len(at_work) - queued + len(elsewhere)
            unfinished = len(at_work) + len(waiting)
            counts = {"finished": len(jobs) - unfinished - len(failed), "running": running}
            counts |= {"waiting": unfinished - running, "failed": len(failed)}
            progress.show(counts)
            if not submitted and not waiting:
                break
        time.sleep(machine.poll_seconds)
    if progress.in_terminal:
        print(file=sys.stderr)
    return failed


def run_study(args: Args) -> int:
    """Returns the exit status. Raises UserError before anything is started."""
    for name in ("workers", "cores", "hours"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name} {value}: must be above 0")
    runs = select_runs(args)
    extra = ["--device", args.device] if args.device else []
    if args.dry_run:
        print_commands(runs, extra)
        return 0
    check_teachers([run for run in runs if not (run.run_dir / "result.json").exists()])
    # Jobs import this package and are unpickled in processes of their own.
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    jobs = [make_job(run, args, extra) for run in runs]
    places = {"local": LocalMachine, "slurm": SlurmCluster}
    machine = places[args.cluster](args, Path("runs") / args.study / ".submitit")
    failed = run_jobs(args.study, jobs, machine)
    if failed:
        print(f"{len(failed)} of {len(jobs)} runs failed:", file=sys.stderr)
        for job in failed:
            print(f"    {job.run_dir}, see {job.beside('.log')}", file=sys.stderr)
        return 1
    print(f"{args.study}: all {len(jobs)} runs are finished; python -m experiments.report")
    return 0


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        sys.exit(run_study(args))
    except UserError as error:
        print(f"experiments.run: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"stopped; go on with: python -m experiments.run {shlex.join(sys.argv[1:])}")
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
