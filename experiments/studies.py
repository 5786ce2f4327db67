"""The paper's experiments, and ours, as data: the commands behind each table and figure.

A study is a list of `Run`s. A `Run` is one command line of one training script. Nothing is trained
here: `python -m experiments.run STUDY` starts the commands.
"""

from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

SEEDS = (100, 200, 300, 400, 500)
SIZES = ("smaller", "same", "larger")
METHODS = ("teacher-distill", "student-distill", "ppd")
GAMES = ("Atlantis", "BeamRider", "CrazyClimber", "DemonAttack", "Enduro", "Freeway", "MsPacman")
GAMES += ("Pong", "Qbert", "Seaquest", "Zaxxon")
ATARI = tuple(f"{game}NoFrameskip-v4" for game in GAMES)
MUJOCO = ("Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Humanoid-v4")
LAMBDA_MUJOCO = ("HalfCheetah-v4", "Hopper-v4")
SB3_ENVS = ("HalfCheetah-v4", "Hopper-v4")  # where our PPO is compared with SB3's
SB3_STEPS = 4_000_000
PROCGEN = ("coinrun", "jumper", "miner", "ninja")
ENVS = {"atari": ATARI, "mujoco": MUJOCO, "procgen": PROCGEN}
TEACHERS = (*ATARI, *MUJOCO, "Swimmer-v4", *PROCGEN)
# The environments of Tables 2, 6, 7 and 9. Figure 2 has the four Atari games among them.
IMPERFECT_ATARI = tuple(
    f"{game}NoFrameskip-v4" for game in ("BeamRider", "CrazyClimber", "MsPacman", "Qbert")
)
IMPERFECT = (*IMPERFECT_ATARI, "miner", "jumper", "coinrun", "ninja")
SIGMA = 0.05  # σ of the noise on a corrupted teacher's parameters (Section 3)
# The same for MuJoCo, which is not in the paper. With σ = 0.05 the teachers of seed 100 keep 0.03,
# less than 0, 0.96 and 0.06 of their scores. With these σ they keep 0.39, 0.51, 0.46 and 0.54.
MUJOCO_SIGMA = {"Ant-v4": 0.0175, "HalfCheetah-v4": 0.03, "Hopper-v4": 0.1, "Humanoid-v4": 0.03}
# Students that see positions only, and the flags of ppd_mujoco_lstm.py for each.
PARTIAL = {"ppd-lstm": {}, "distill-lstm": {"pg-coef": 0}, "ppo-lstm": {"distill-lambda": 0}}
PARTIAL |= {"ppd-mlp": {"memory": "none"}}
PARTIAL_ENVS = ("Hopper-v4", "HalfCheetah-v4")
LOG_STD_SHIFT = -2.0  # of a teacher with little action noise: 0.14 times its own σ
# Two games that two cores can train: the steps of the teacher, the σ of its corrupted copy, and
# the weights λ next to PPD's own.
PIXEL_STEPS = {"coinrun": 10_000_000, "CrazyClimberNoFrameskip-v4": 5_000_000}
PIXEL_SIGMA = {"coinrun": 0.08, "CrazyClimberNoFrameskip-v4": 0.07}  # keep 0.55 and 0.64
PIXEL_LAMBDA = {"coinrun": (0, 0.5, 2, 5), "CrazyClimberNoFrameskip-v4": (0,)}
# Agents of RL Zoo (repository DLR-RM/rl-trained-agents, MIT licence): the folder there, and for how
# many steps the agent was trained. The files are not part of our repository.
ZOO = {
    "HalfCheetah-v4": ("ppo/HalfCheetah-v3_1", 1_000_448),
    "Hopper-v4": ("ppo/Hopper-v3_1", 1_000_448),
    "Walker2d-v4": ("trpo/Walker2d-v3_1", 1_001_472),
}
# The teacher's settings of PPO (Table 3), which the students of the study `fade` have, too.
PPO_SETTINGS = dict.fromkeys(MUJOCO, {"num-steps": 512, "gamma": 0.995})
PPO_SETTINGS["Hopper-v4"] = {"num-steps": 256, "gamma": 0.995, "ent-coef": 0.01}
CRITIC_WARMUP = 100_000  # first steps, in which only the critic learns
FADE_STEPS = 800_000  # λ reaches its final value here, where it does not fall over the whole run
# Other tasks of two robots, which `experiments/tasks.py` registers. Each list is one student's.
CHEETAHS = ("HalfCheetah-v4", "HalfCheetahBackward-v4")
ANTS = ("Ant-v4", "AntLeft-v4", "AntBackward-v4", "AntRight-v4")
# Students of several teachers, and the flags of ppd_mujoco_multi.py for each.
MULTI = {"ppd": {}, "distill": {"pg-coef": 0}, "ppo": {"distill-lambda": 0}}
MULTI |= {"reverse": {"kl": "reverse"}, "reverse-unweighted": {"kl": "reverse", "weights": (1, 1)}}
MULTI |= {"paper": {"ratio-gradient": None}}
# Arguments that do not belong to an experiment, but to the machine or to the run's files.
OF_THE_MACHINE = {"device", "num_workers", "env_threads", "torch_threads", "compile", "bfloat16"}
OF_THE_MACHINE |= {"save_every", "log_every", "run_dir", "resume", "teacher", "track"}
OF_THE_MACHINE |= {"teachers", "sb3_distill"}


def suite_of(env_id: str) -> str:
    """atari, mujoco or procgen."""
    return "atari" if env_id in ATARI else "procgen" if env_id in PROCGEN else "mujoco"


def gym_id(env_id: str) -> str:
    """The id by which Gymnasium finds an environment: with the module that registers it."""
    is_ours = env_id in (*CHEETAHS[1:], *ANTS[1:])
    return f"experiments.tasks:{env_id}" if is_ours else env_id


def partial_method(args: dict) -> str | None:
    """Which of `PARTIAL` has these arguments of ppd_mujoco_lstm.py; None if none has."""
    default = {"observe": "positions", "memory": "lstm", "pg-coef": 1, "distill-lambda": 1}
    given = {name: args[name.replace("-", "_")] for name in default}
    return next((m for m, options in PARTIAL.items() if default | options == given), None)


def plain_name(env_id: str) -> str:
    return env_id.removesuffix("NoFrameskip-v4")


@dataclass(frozen=True)
class Run:
    """One training run."""

    study: str
    env_id: str  # of several tasks: their names, joined by `--`
    method: str  # teacher, sb3-ppo, sb3-distill-ppd, ppd-multi, or one of `METHODS` or `PARTIAL`
    seed: int
    size: str = "same"
    sigma: float = 0.0  # σ of the noise on the teacher's parameters
    # Further flags of the script, which are part of the folder's name. A switch has the value None.
    options: dict = field(default_factory=dict, hash=False)
    log_std_shift: float = 0.0  # added to the teacher's log σ; below 0, its actions are less noisy
    taught_by: "Run | None" = None  # None: the run of `teachers` that has the student's seed
    imported: Path | None = None  # a teacher's file that no study trains
    variant: str = ""  # a name, where the fields above do not tell the runs of a study apart
    tasks: tuple["Run", ...] = ()  # for several tasks: the runs that train a teacher for each
    begins_with: "Run | None" = None  # the run whose student it trains further

    @property
    def suite(self) -> str:
        return suite_of(self.env_id)

    @property
    def steps(self) -> int:
        """Environment steps of the whole run, at least."""
        if "total-timesteps" in self.options:
            return self.options["total-timesteps"]
        if self.method == "teacher":
            return 30_000_000 if self.suite == "procgen" else 10_000_000
        return SB3_STEPS if self.method == "sb3-ppo" else 2_000_000

    @property
    def run_dir(self) -> Path:
        """runs/<study>/<env>__<method>__<size>[__<option>]__<seed>, relative to the repository."""
        parts = [self.env_id, self.method, self.size, *self.imperfections]
        parts += ["-".join([name, *words_of(value)]) for name, value in self.options.items()]
        parts += [f"from-{self.begins_with.method}"] if self.begins_with else []
        return Path("runs") / self.study / "__".join([*parts, str(self.seed)])

    @property
    def keys(self) -> list[dict]:
        """A key for each task: the columns of runs.csv that tell this run from all others."""
        key = {"study": self.study, "env_id": self.env_id, "method": self.method, "size": self.size}
        key |= {"distill_lambda": None, "ratio_gradient": None}
        if self.method in ("ppd", "ppd-multi", "sb3-distill-ppd", *PARTIAL):
            key["distill_lambda"] = float(self.options.get("distill-lambda", 1))
            key["ratio_gradient"] = "no-ratio-gradient" not in self.options
        if self.method == "ppd-multi":  # whose default is the other way round
            key["ratio_gradient"] = "ratio-gradient" in self.options
        key |= {"sigma": self.sigma, "log_std_shift": self.log_std_shift}
        key |= {"variant": self.variant or None, "seed": self.seed}
        return [key | {"env_id": task.env_id} for task in self.tasks] or [key]

    @property
    def imperfections(self) -> list[str]:
        """What was done to the teacher, as parts of a file's name."""
        parts = [f"sigma-{self.sigma:g}"] if self.sigma else []
        return parts + ([f"log-std{self.log_std_shift:+g}"] if self.log_std_shift else [])

    @property
    def origins(self) -> list["Run"]:
        """The run that trains its teacher (before it is corrupted, if it is); one for each task."""
        if self.method in ("teacher", "sb3-ppo") or self.imported:
            return []
        return [*self.tasks] or [self.taught_by or teacher_run(self.env_id, self.seed)]

    @property
    def teachers(self) -> list[Path]:
        """The files that the student learns from: its origins', or one made of that."""
        if self.imported:
            return [self.imported]
        if self.corruption:
            return [self.made_teacher]
        return [origin.run_dir / "agent.safetensors" for origin in self.origins]

    @property
    def made_teacher(self) -> Path:
        """Where the corrupted teacher is written."""
        (origin,) = self.origins
        size = [origin.size] if origin.size != "same" else []
        name = "__".join([self.env_id, *size, *self.imperfections, str(origin.seed)])
        return Path("runs/corrupted") / f"{name}.safetensors"

    @property
    def corruption(self) -> list[str]:
        """Flags of `experiments.corrupt` that make the teacher; none where it is not corrupted."""
        if not self.imperfections:
            return []
        (origin,) = self.origins
        flags = {"sigma": self.sigma, "log-std-shift": self.log_std_shift}
        words = [w for name, value in flags.items() if value for w in (f"--{name}", f"{value:g}")]
        return [*words, "--seed", str(origin.seed), "--out", str(self.made_teacher)]

    @property
    def script(self) -> list[str]:
        """The training script, and its subcommand where it has one."""
        if self.method in ("sb3-ppo", "sb3-distill-ppd"):
            return [f"experiments/{self.method.replace('-', '_')}.py"]
        if self.method in ("teacher-distill", "student-distill"):
            return [f"{self.method.replace('-', '_')}.py", self.suite]
        if self.method in PARTIAL:
            return ["ppd_mujoco_lstm.py"]
        if self.tasks:
            return ["ppd_mujoco_multi.py"]
        return [f"{'ppo_teacher' if self.method == 'teacher' else 'ppd'}_{self.suite}.py"]

    def flags(self, teachers: list[Path] | None = None) -> list[str]:
        """The script's flags; `teachers` are files to learn from in place of `self.teachers`."""
        teachers = teachers or self.teachers
        if self.tasks:
            flags = {"env-ids": [gym_id(task.env_id) for task in self.tasks], "seed": self.seed}
            flags |= {"student-size": self.size, "teachers": teachers}
        else:
            flags = {"env-id": gym_id(self.env_id), "seed": self.seed}
            flags["student-size" if teachers else "size"] = self.size
            flags |= {"teacher": teachers} if teachers else {}
        flags |= self.options
        if self.begins_with:
            flags["init"] = self.begins_with.run_dir / "agent.safetensors"
        flags["run-dir"] = self.run_dir
        return [w for name, value in flags.items() for w in (f"--{name}", *words_of(value))]


def words_of(value) -> list[str]:
    """A flag's value as words of a command line: none for a switch, one, or several."""
    if value is None:
        return []
    return [*map(str, value)] if isinstance(value, list | tuple) else [str(value)]


def teacher_run(env_id: str, seed: int) -> Run:
    return Run("teachers", env_id, "teacher", seed)


def teachers() -> list[Run]:
    """Figures 3–5, the teacher column of Table 5."""
    return [teacher_run(env_id, seed) for env_id, seed in product(TEACHERS, SEEDS)]


def sizes() -> list[Run]:
    """Tables 1, 5, 8; Figures 1 and 6–11. On MuJoCo also PPD without the ratio's gradient.

    The study `gradient` has some of the latter, from the same teachers. They are those runs.
    """
    grid = product((*ATARI, *MUJOCO, *PROCGEN), METHODS, SIZES, SEEDS)
    runs = [Run("sizes", env_id, method, seed, size) for env_id, method, size, seed in grid]
    shared = narrow(gradient(), method=["ppd"], seed=[100], sigma=[0.0], log_std_shift=[0.0])
    shared = {(r.env_id, r.size): r for r in shared if "no-ratio-gradient" in r.options}
    for env_id, size, seed in product(MUJOCO, SIZES, SEEDS[:3]):
        run = Run("sizes", env_id, "ppd", seed, size, options={"no-ratio-gradient": None})
        runs.append(shared.get((env_id, size), run) if seed == 100 else run)
    return runs


def imperfect() -> list[Run]:
    """Tables 2, 6, 9: teachers corrupted by `experiments/corrupt.py` with σ = 0.05."""
    grid = product(IMPERFECT, METHODS, SEEDS)
    return [Run("imperfect", env, method, seed, "larger", SIGMA) for env, method, seed in grid]


def distill_lambda() -> list[Run]:
    """Figure 2."""
    return vary_lambda("lambda", IMPERFECT_ATARI, (0.5, 1, 2, 5))


def ppo_baseline() -> list[Run]:
    """Table 7: PPO without a teacher, as PPD with λ = 0 (assumed: PPD's other settings)."""
    return vary_lambda("ppo-baseline", IMPERFECT, (0,))


def imperfect_mujoco() -> list[Run]:
    """Not in the paper: corrupted teachers on MuJoCo, with a σ for each environment."""
    runs = []
    for (env_id, sigma), method, seed in product(MUJOCO_SIGMA.items(), METHODS, SEEDS):
        runs.append(Run("imperfect-mujoco", env_id, method, seed, "larger", sigma))
    return runs


def lambda_mujoco() -> list[Run]:
    """Not in the paper: λ on MuJoCo; 0 is PPO without a teacher."""
    return vary_lambda("lambda-mujoco", LAMBDA_MUJOCO, (0, 0.5, 1, 2, 5))


def sb3_ppo() -> list[Run]:
    """Not in the paper: Stable-Baselines3's PPO with the settings of our teachers, 4 M steps."""
    return [Run("sb3-ppo", env_id, "sb3-ppo", seed) for env_id, seed in product(SB3_ENVS, SEEDS)]


def authors() -> list[Run]:
    """Not in the paper: PPD of the authors' own code next to ours, for scores and for minutes.

    Ours runs again here, because minutes compare only on one machine under one load.
    """
    runs, forms = [], [("sb3-distill-ppd", {}), ("ppd", {}), ("ppd", {"no-ratio-gradient": None})]
    for env_id, (method, options) in product(MUJOCO, forms):
        runs.append(Run("authors", env_id, method, 100, "smaller", options=options))
    return runs


def gradient() -> list[Run]:
    """Not in the paper: PPD with and without the KL term's gradient through the ratio.

    All students learn from the shipped teacher of seed 100, or from a corrupted copy of it. So the
    seed is only the student's.
    """
    forms = [("ppd", {}), ("ppd", {"no-ratio-gradient": None})]
    three, runs = SEEDS[:3], []

    def add(envs, size, seeds, methods=forms, sigmas=None, shift=0.0):
        for env_id, (method, options), seed in product(envs, methods, seeds):
            sigma = sigmas[env_id] if sigmas else 0.0
            own = pixel_teacher(env_id) if env_id in PIXEL_STEPS else teacher_run(env_id, 100)
            runs.append(Run("gradient", env_id, method, seed, size, sigma, options, shift, own))

    add(MUJOCO, "smaller", SEEDS)
    add(MUJOCO, "smaller", three, [("student-distill", {})])
    add(("Ant-v4", "Humanoid-v4"), "larger", three)
    add(("Ant-v4", "HalfCheetah-v4"), "larger", three, sigmas=MUJOCO_SIGMA)
    add(("Ant-v4", "HalfCheetah-v4"), "smaller", three, shift=LOG_STD_SHIFT)
    add(PIXEL_STEPS, "smaller", three)
    return runs


def pixel_teacher(env_id: str) -> Run:
    options = {"total-timesteps": PIXEL_STEPS[env_id]}
    return Run("pixels", env_id, "teacher", 100, "smaller", options=options)


def pixels() -> list[Run]:
    """Not in the paper: two games that two cores can train, with smaller networks and fewer steps.

    Each has a teacher, a student by each method, PPD with other λ (0 is PPO without a teacher), and
    a student of the corrupted teacher by each method.
    """
    runs = []
    for env_id in PIXEL_STEPS:
        own = pixel_teacher(env_id)
        students = [(method, 0.0, {}) for method in METHODS]
        students += [("ppd", 0.0, {"distill-lambda": weight}) for weight in PIXEL_LAMBDA[env_id]]
        students += [(method, PIXEL_SIGMA[env_id], {}) for method in METHODS]
        runs.append(own)
        for method, sigma, options in students:
            runs.append(Run("pixels", env_id, method, 100, "smaller", sigma, options, 0.0, own))
    return runs


def partial() -> list[Run]:
    """Not in the paper: students that see positions only, all from the teacher of seed 100.

    They cannot copy all that the teacher does, so the KL stays large, and so does the noise of the
    ratio's gradient. It is left out, except that PPD with an LSTM runs in both forms.
    """
    runs, quiet = [], {"no-ratio-gradient": None}
    students = [(m, PARTIAL[m] | ({} if m == "ppo-lstm" else quiet)) for m in PARTIAL]
    students.append(("ppd-lstm", PARTIAL["ppd-lstm"]))
    for env_id, (method, options), seed in product(PARTIAL_ENVS, students, SEEDS[:3]):
        teacher = teacher_run(env_id, 100)
        runs.append(Run("partial", env_id, method, seed, options=options, taught_by=teacher))
    return runs


def fade() -> list[Run]:
    """Not in the paper: a weight λ that falls during the run, mostly with corrupted teachers.

    All teachers are those of seed 100, corrupted or not; all students leave out the ratio's
    gradient. Runs with a constant λ that other studies have are those runs.
    """
    runs, three, quiet = [], SEEDS[:3], {"no-ratio-gradient": None}
    early = {"distill-lambda-final": 0, "distill-lambda-steps": FADE_STEPS}
    floor = early | {"distill-lambda-final": 0.1}

    def add(env_id, variant, options, seeds=three, method="ppd", corrupted=True, **more):
        for seed in seeds:
            sigma, own = MUJOCO_SIGMA[env_id] if corrupted else 0.0, teacher_run(env_id, 100)
            run = Run("fade", env_id, method, seed, "larger", sigma, options, 0.0, own)
            runs.append(replace(run, variant=variant, **more))

    shared = [r for r in gradient() if r.sigma and "no-ratio-gradient" in r.options]
    for env_id, own in PPO_SETTINGS.items():
        of_gradient = narrow(shared, env_id=[env_id])
        runs += of_gradient
        if not of_gradient:
            add(env_id, "", quiet)
        add(env_id, "fade", quiet | {"distill-lambda-final": 0})
        add(env_id, "fade-early", quiet | early | own)
        add(env_id, "floor", quiet | floor | own)
        add(env_id, "ppo", {"distill-lambda": 0})
        add(env_id, "ppo-own-settings", {"distill-lambda": 0} | own)
    for env_id in ("Ant-v4", "HalfCheetah-v4"):
        add(env_id, "fade-early", quiet | early | PPO_SETTINGS[env_id], corrupted=False)
        for num_steps, gamma in [(64, 0.999), (64, 0.995), (512, 0.999)]:  # 512, 0.995: see above
            options = quiet | early | {"num-steps": num_steps, "gamma": gamma}
            add(env_id, f"fade-early-{num_steps}-{gamma}", options, seeds=[100])
        add(env_id, "", {"total-timesteps": 400_000}, seeds=[100], method="student-distill")
        ppo = {"distill-lambda": 0, "total-timesteps": 1_600_000} | PPO_SETTINGS[env_id]
        for name, warmup in [("init", {}), ("init-warmup", {"critic-warmup": CRITIC_WARMUP})]:
            (student,) = narrow(runs, env_id=[env_id], method=["student-distill"])
            add(env_id, name, ppo | warmup, seeds=[100], begins_with=student)
    for env_id in PIXEL_STEPS:
        own, sigma = pixel_teacher(env_id), PIXEL_SIGMA[env_id]
        of_pixels = narrow(pixels(), env_id=[env_id], method=["ppd"])
        runs += narrow(of_pixels, sigma=[sigma])
        runs += [run for run in of_pixels if run.options.get("distill-lambda") == 0]
        run = Run("fade", env_id, "ppd", 100, "smaller", sigma, quiet | early, 0.0, own)
        runs.append(replace(run, variant="fade-early"))
    return runs


def task_teacher(env_id: str) -> Run:
    """The run that trains the teacher of a task: 10 M steps of a cheetah, 5 M of an Ant."""
    if gym_id(env_id) == env_id:
        return teacher_run(env_id, 100)
    options = {"total-timesteps": 5_000_000} if env_id in ANTS else {}
    return Run("multi", env_id, "teacher", 100, options=options)


def multi() -> list[Run]:
    """Not in the paper: one student of several teachers, one teacher for each task of a robot."""
    runs = [task_teacher(env_id) for env_id in (*CHEETAHS[1:], *ANTS[1:])]

    def add(tasks, size, steps, variants):
        teachers, name = tuple(map(task_teacher, tasks)), "--".join(tasks)
        for seed, variant in product(SEEDS[:3], variants):
            options = {"total-timesteps": steps} | MULTI[variant]
            run = Run("multi", name, "ppd-multi", seed, size, options=options)
            runs.append(replace(run, variant=variant, tasks=teachers))

    add(CHEETAHS, "smaller", 1_000_000, MULTI)
    add(CHEETAHS, "larger", 1_000_000, ["ppd", "distill"])
    add(ANTS, "smaller", 2_000_000, ["ppd", "distill", "ppo"])
    return runs


def zoo_teacher(env_id: str) -> Path:
    """Where `convert.py import` has to write an agent of RL Zoo."""
    return Path("runs/zoo") / f"{env_id}.safetensors"


def import_command(env_id: str) -> str:
    """The command that writes `zoo_teacher`, run next to a clone of the Zoo's repository."""
    folder, _ = ZOO[env_id]
    name = Path(folder).name.removesuffix("_1")
    folder = f"rl-trained-agents/{folder}"
    words = ["python convert.py import", f"{folder}/{name}.zip", "--vecnormalize"]
    words += [f"{folder}/{name}/vecnormalize.pkl", "--env-id", env_id]
    return " ".join([*words, "--out", str(zoo_teacher(env_id))])


def zoo() -> list[Run]:
    """Not in the paper: students of agents that other people trained with other libraries."""
    runs, steps = [], {"total-timesteps": 1_000_000}
    forms = [("ppd", {}), ("ppd", {"no-ratio-gradient": None}), ("student-distill", {})]
    for seed, env_id, (method, options) in product(SEEDS[:3], ZOO, forms):
        file = zoo_teacher(env_id)
        runs.append(
            Run("zoo", env_id, method, seed, "smaller", options=steps | options, imported=file)
        )
    return runs


def vary_lambda(study: str, envs: tuple[str, ...], weights: tuple[float, ...]) -> list[Run]:
    runs = []
    for env_id, weight, seed in product(envs, weights, SEEDS):
        runs.append(Run(study, env_id, "ppd", seed, "larger", 0.0, {"distill-lambda": weight}))
    return runs


def all_runs() -> list[tuple[str, Run]]:
    """Each study's name with each of its runs. Some runs are part of two studies."""
    return [(study, run) for study, make_runs in STUDIES.items() for run in make_runs()]


STUDIES = {
    "teachers": teachers,
    "sizes": sizes,
    "imperfect": imperfect,
    "lambda": distill_lambda,
    "ppo-baseline": ppo_baseline,
    "imperfect-mujoco": imperfect_mujoco,
    "lambda-mujoco": lambda_mujoco,
    "sb3-ppo": sb3_ppo,
    "gradient": gradient,
    "pixels": pixels,
    "partial": partial,
    "zoo": zoo,
    "authors": authors,
    "fade": fade,
    "multi": multi,
}


def narrow(runs: list[Run], **choices) -> list[Run]:
    """The runs whose attribute is among the choices given for it: suite=["mujoco"], seed=[100]."""
    wanted = {name: values for name, values in choices.items() if values}
    return [r for r in runs if all(getattr(r, name) in v for name, v in wanted.items())]
