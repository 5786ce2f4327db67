"""Run a study on this machine or on a Slurm cluster, and continue it where it stopped.

    python -m experiments.run sizes --suite mujoco --seed 100              # on all cores
    python -m experiments.run sizes --suite mujoco --cluster slurm --workers 50
    python -m experiments.run imperfect --dry-run                          # print the commands

The same command again skips finished runs and resumes the others, however they were interrupted.
A run is finished when its folder under runs/ has a whole result.json. Nothing else is remembered.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from threading import Thread
from typing import Annotated, Literal

import submitit
import tyro
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from experiments.job import Job, ask_nvidia, is_finished, is_training
from experiments.studies import STUDIES, Run, import_command, narrow


class UserError(Exception):
    """A mistake that a user can cause and fix: one line with cause and remedy, exit status 2."""


@dataclass
class Args:
    study: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help=", ".join(STUDIES))]
    cluster: Literal["local", "slurm"] = "local"  # this machine, or Slurm by the sbatch found here
    workers: int = 0  # runs at once; 0: one per core, at most 4 per GPU used, 100 on a cluster
    dry_run: bool = False  # print the command lines and run nothing
    suite: tuple[Literal["atari", "mujoco", "procgen"], ...] = ()  # only these suites
    env_id: tuple[str, ...] = ()  # only these environments
    seed: tuple[int, ...] = ()  # only these seeds
    method: tuple[str, ...] = ()  # only these methods, such as teacher, ppd or ppd-lstm
    size: tuple[str, ...] = ()  # only these sizes of smaller, same and larger
    variant: tuple[str, ...] = ()  # only these variants, of the studies fade and multi
    device: str | None = None  # the scripts' --device; with cuda a cluster gives each run a GPU
    bfloat16: bool = False  # the scripts' --bfloat16, for Atari and Procgen
    cores: int = 1  # CPU cores of each run
    hours: float = 24  # time limit of a cluster job; a job that reaches it is queued again
    sbatch: tuple[str, ...] = ()  # further options, for example partition=main account=lab mem=8G


def select_runs(args: Args) -> list[Run]:
    """The runs of a study that the flags select. Raises UserError if they select none."""
    if args.study not in STUDIES:
        raise UserError(f"study {args.study}: unknown; give one of {', '.join(STUDIES)}")
    runs = STUDIES[args.study]()
    names = ("suite", "env_id", "seed", "method", "size", "variant")
    choices = {name: getattr(args, name) for name in names}
    for name, values in choices.items():
        known = {getattr(run, name): None for run in runs}
        if unknown := [value for value in values if value not in known]:
            rest = ", ".join(filter(None, map(str, known)))
            raise UserError(f"{name} {unknown[0]}: not in the study {args.study}, which has {rest}")
    if not narrow(runs, **choices):
        raise UserError(f"no run of {args.study} matches all these choices; leave one out")
    return narrow(runs, **choices)


def header_of(path: Path) -> dict:
    """An agent file's header. Raises UserError."""
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["header"])
            return {"size": "same", "seed": header["seed"], **header}
    except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); restore it from git") from error


def find_agent(run: Run) -> Path | None:
    """The agent that a run trained: its own file, or a shipped teacher of that seed and size."""
    if is_finished(run.run_dir):
        return run.run_dir / "agent.safetensors"
    if run.method != "teacher":
        return None
    name = f"{run.env_id}.safetensors"  # of other seeds than the shipped one: teachers/seed-200/
    for shipped in [Path("teachers") / name, *sorted(Path("teachers").glob(f"seed-*/{name}"))]:
        if shipped.exists():
            header = header_of(shipped)
            if (header["seed"], header["size"]) == (run.seed, run.size):
                return shipped
    return None


def check_teachers(runs: list[Run]) -> None:
    """Raises UserError, with the commands that make them, if teachers of these runs are missing.

    The same holds for the students that some runs train further.
    """
    absent = [run.env_id for run in runs if run.imported and not run.imported.exists()]
    if absent:
        remedy = " && ".join(import_command(env_id) for env_id in dict.fromkeys(absent))
        advice = "import it, next to a clone of DLR-RM/rl-trained-agents, with"
        raise UserError(f"{len(absent)} runs have no teacher yet; {advice} `{remedy}`")
    missing, commands = {}, []
    for run in runs:
        needed = [*run.origins, *([run.begins_with] if run.begins_with else [])]
        if without := [other for other in needed if find_agent(other) is None]:
            missing[run] = without
    others = list(dict.fromkeys(other for without in missing.values() for other in without))
    for kind in dict.fromkeys((other.study, other.method) for other in others):
        of_kind = [other for other in others if (other.study, other.method) == kind]
        env_ids = " ".join(dict.fromkeys(other.env_id for other in of_kind))
        seeds = " ".join(dict.fromkeys(str(other.seed) for other in of_kind))
        command = f"python -m experiments.run {kind[0]} --method {kind[1]}"
        commands.append(f"{command} --env-id {env_ids} --seed {seeds}")
    if missing:
        remedy = " && ".join(commands)
        raise UserError(f"{len(missing)} runs have no teacher yet; train it with `{remedy}`")


def make_job(run: Run, args: Args) -> Job:
    """The job that trains a run, and that first makes its corrupted teacher."""
    found = [find_agent(origin) or origin.run_dir / "agent.safetensors" for origin in run.origins]
    flags = run.flags(None if run.corruption else found)
    flags += ["--device", args.device] if args.device else []
    flags += ["--bfloat16"] if args.bfloat16 and run.suite != "mujoco" else []
    resume = [*run.script, "--resume", str(run.run_dir)]
    job = Job(run.run_dir, [*run.script, *flags], resume, args.cores)
    if run.corruption:
        job.teacher_command = ["-m", "experiments.corrupt", str(found[0]), *run.corruption]
        job.teacher_command += ["--device", args.device] if args.device else []
        job.made_teacher = run.made_teacher
    return job


def run_locally(jobs: list[Job], args: Args) -> Iterator[tuple[int, set[Job]]]:
    """Yield, again and again, how many jobs run and which are over. Closing it ends all jobs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES")  # numbers, or UUIDs of GPUs or MIG devices
    names = ask_nvidia("index") if names is None else names.split(",")
    gpus = [None] if args.device == "cpu" else [name for name in names if name] or [None]
    # The scripts for Atari and Procgen use a GPU without being told to.
    frames = any(run.suite != "mujoco" for run in select_runs(args))
    are_shared = args.device == "cuda" or frames and gpus != [None]
    most = 4 * len(gpus) if are_shared else cores  # four of the largest networks fit in 80 GB
    workers = args.workers or max(1, min(cores // args.cores, most))
    # First the runs that the children of a killed engine still train: each takes a worker, too.
    queue, over = iter(sorted(jobs, key=lambda job: not is_training(job.run_dir))), set()

    def work(gpu: str | None) -> None:
        for job in queue:
            job(gpu)
            over.add(job)

    threads = [Thread(target=work, args=[gpu]) for gpu in islice(cycle(gpus), workers)]
    try:
        for thread in threads:
            thread.start()
        while running := sum(thread.is_alive() for thread in threads):
            yield running, over
            time.sleep(0.5)
        yield 0, set(jobs)
    finally:
        for job in jobs:
            job.stopped = True


def make_executor(args: Args) -> submitit.SlurmExecutor:
    """The object that submits to Slurm. Raises UserError."""
    if shutil.which("srun") is None:
        raise UserError("--cluster slurm: no srun here; use a login node, or --cluster local")
    if not all("=" in option for option in args.sbatch):
        raise UserError("--sbatch: give NAME=VALUE, for example partition=main")
    options = dict(option.split("=", 1) for option in args.sbatch)
    gpus = {"gpus-per-node": 1} if args.device not in (None, "cpu") else {}
    folder = Path("runs") / args.study / ".submitit"
    executor = submitit.SlurmExecutor(folder, max_num_timeout=10_000)
    executor.update_parameters(
        job_name=args.study, time=max(1, round(60 * args.hours)), cpus_per_task=args.cores,
        array_parallelism=args.workers or 100, stderr_to_stdout=True,
        additional_parameters={"requeue": True} | gpus | options,
    )  # fmt: skip
    return executor


def slurm_queue() -> dict[str, str] | None:
    """Map the ids of this user's jobs to their states; None while Slurm does not answer."""
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i %T"]
    answer = subprocess.run(command, capture_output=True, text=True)
    lines = answer.stdout.splitlines()
    return dict(line.split() for line in lines) if answer.returncode == 0 else None


def run_on_slurm(jobs: list[Job], args: Args) -> Iterator[tuple[int, set[Job]]]:
    """As `run_locally`, but closing it leaves the jobs on the cluster. Raises UserError."""
    executor, ids = make_executor(args), {}
    while (queue := slurm_queue()) is None:
        time.sleep(5)
    for job in jobs:  # jobs that an earlier engine submitted are followed, not submitted again
        record = job.beside(".slurm")
        if record.exists() and record.read_text() in queue:
            ids[job] = record.read_text()
    if new := [job for job in jobs if job not in ids]:
        try:
            with executor.batch():  # one job array
                submitted = [executor.submit(job) for job in new]
        except submitit.core.utils.FailedJobError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"sbatch refuses the jobs: {reason}; change --sbatch") from error
        for job, slurm_job in zip(new, submitted, strict=True):
            ids[job] = slurm_job.job_id
            job.beside(".slurm").write_text(ids[job])
    running, over, unseen = 0, set(), set()
    while True:
        queue = slurm_queue()
        if queue is not None:
            running = len([i for i in ids.values() if queue.get(i, "PENDING") != "PENDING"])
            # A job that is being requeued may be missing once. One that is missing twice is over.
            before, unseen = unseen, {job for job in jobs if ids[job] not in queue}
            over = before & unseen
        yield running, over
        time.sleep(5)


def run_jobs(jobs: list[Job], args: Args) -> list[Job]:
    """Train all jobs that are not finished; returns the failed ones. Ctrl-C raises as usual."""
    unfinished, failed = [job for job in jobs if not is_finished(job.run_dir)], []
    machine = run_on_slurm if args.cluster == "slurm" else run_locally
    before = len(jobs) - len(unfinished)
    bar = tqdm(desc=args.study, total=len(jobs), initial=before, unit="run", delay=0.1)
    with bar, closing(machine(unfinished, args)) as glances:
        for running, over in glances:
            for job in [job for job in unfinished if job in over]:
                unfinished.remove(job)
                bar.update(is_finished(job.run_dir))
                if not is_finished(job.run_dir):
                    failed.append(job)
                    text = f"FAILED {job.run_dir}; {job.beside('.log')} ends:\n{job.log_tail()}"
                    bar.write(text, file=sys.stderr)
            counts = f"{running} running, {len(failed)} failed"
            if bar.postfix != counts:
                bar.set_postfix_str(counts)
            if not unfinished:
                break
    return failed


def run_study(args: Args) -> int:
    """Returns the exit status. Raises UserError before anything is started."""
    if args.workers < 0 or args.cores < 1 or args.hours <= 0:
        raise UserError("--workers, --cores or --hours: must be above 0")
    runs = select_runs(args)
    jobs = [make_job(run, args) for run in runs]
    if args.dry_run:
        commands = [c for job in jobs for c in (job.teacher_command, job.command) if c]
        print(*dict.fromkeys(f"python {shlex.join(words)}" for words in commands), sep="\n")
        return 0
    check_teachers([run for run in runs if not is_finished(run.run_dir)])
    if failed := run_jobs(jobs, args):
        print(
            f"{len(failed)} of {len(jobs)} runs failed; run the command again to continue",
            file=sys.stderr,
        )
        return 1
    print(f"{args.study}: all {len(jobs)} runs are finished; python -m experiments.report")
    return 0


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` acts like Ctrl-C
    if args.dry_run:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` closes the pipe early
    try:
        sys.exit(run_study(args))
    except (UserError, OSError) as error:
        print(f"experiments.run: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would cut the message
        left = {"local": "stopped", "slurm": "the jobs continue, scancel ends them"}[args.cluster]
        print(f"\n{left}; continue with: python -m experiments.run {shlex.join(sys.argv[1:])}")
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
