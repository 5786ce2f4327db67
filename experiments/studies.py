"""The paper's experiments as data: which commands make up which table and figure.

A study is a list of `Run`s; a `Run` is one command line of one of the training scripts. Nothing
here trains: `python -m experiments.run STUDY` hands the commands to an engine.
"""

from dataclasses import dataclass, field
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
SB3_ENVS = ("HalfCheetah-v4", "Hopper-v4")  # where our PPO is laid beside SB3's
SB3_STEPS = 4_000_000  # of which the paper says nothing
PROCGEN = ("coinrun", "jumper", "miner", "ninja")
ENVS = {"atari": ATARI, "mujoco": MUJOCO, "procgen": PROCGEN}
TEACHERS = (*ATARI, *MUJOCO, "Swimmer-v4", *PROCGEN)
# The environments of Tables 2, 6, 7, 9; Figure 2 takes the four Atari games among them.
IMPERFECT_ATARI = tuple(
    f"{game}NoFrameskip-v4" for game in ("BeamRider", "CrazyClimber", "MsPacman", "Qbert")
)
IMPERFECT = (*IMPERFECT_ATARI, "miner", "jumper", "coinrun", "ninja")
SIGMA = 0.05  # of the noise on an imperfect teacher's parameters (Section 3)
# MuJoCo, which the paper left out of that study: chosen per environment such that its teacher of
# seed 100, with noise of that seed, keeps a third to two thirds of its score: 0.39, 0.51, 0.46 and
# 0.54 of it. (With the paper's σ: 0.03, less than nothing, 0.96 and 0.06.)
MUJOCO_SIGMA = {"Ant-v4": 0.0175, "HalfCheetah-v4": 0.03, "Hopper-v4": 0.1, "Humanoid-v4": 0.03}
# Students that see positions alone: the flags of ppd_mujoco_lstm.py that make each.
PARTIAL = {"ppd-lstm": {}, "distill-lstm": {"pg-coef": 0}, "ppo-lstm": {"distill-lambda": 0}}
PARTIAL |= {"ppd-mlp": {"memory": "none"}}
PARTIAL_ENVS = ("Hopper-v4", "HalfCheetah-v4")
LOG_STD_SHIFT = -2.0  # of teachers with as little noise as people's have: its σ times 0.14
# Games that two cores can train, the steps of their teachers, a σ that leaves such a teacher a
# third to two thirds of its score with sampled actions, and weights λ beside PPD's own.
PIXEL_STEPS = {"coinrun": 10_000_000, "CrazyClimberNoFrameskip-v4": 5_000_000}
PIXEL_SIGMA = {"coinrun": 0.08, "CrazyClimberNoFrameskip-v4": 0.07}  # they keep 0.55, 0.64
PIXEL_LAMBDA = {"coinrun": (0, 0.5, 2, 5), "CrazyClimberNoFrameskip-v4": (0,)}
# Agents of the repository DLR-RM/rl-trained-agents (RL Zoo, MIT licence): folder there, and the steps
# that the file's header names. Their files are not part of this repository; `zoo_teacher` is where
# `convert.py import` has to write them.
ZOO = {
    "HalfCheetah-v4": ("ppo/HalfCheetah-v3_1", 1_000_448),
    "Hopper-v4": ("ppo/Hopper-v3_1", 1_000_448),
    "Walker2d-v4": ("trpo/Walker2d-v3_1", 1_001_472),
}
# Arguments that are no part of an experiment: of the machine, and of the run's files.
OF_THE_MACHINE = {"device", "num_workers", "env_threads", "torch_threads", "compile", "bfloat16"}
OF_THE_MACHINE |= {"save_every", "log_every", "run_dir", "resume", "teacher", "track"}


def suite_of(env_id: str) -> str:
    """atari, mujoco or procgen."""
    return "atari" if env_id in ATARI else "procgen" if env_id in PROCGEN else "mujoco"


def partial_method(args: dict) -> str | None:
    """Which of `PARTIAL` the arguments of a run of ppd_mujoco_lstm.py make; None: another one."""
    default = {"observe": "positions", "memory": "lstm", "pg-coef": 1, "distill-lambda": 1}
    given = {name: args[name.replace("-", "_")] for name in default}
    return next((m for m, options in PARTIAL.items() if default | options == given), None)


def plain_name(env_id: str) -> str:
    return env_id.removesuffix("NoFrameskip-v4")


@dataclass(frozen=True)
class Run:
    """One training run: `method` is teacher, sb3-ppo, one of `METHODS` or one of `PARTIAL`."""

    study: str
    env_id: str
    method: str
    seed: int
    size: str = "same"
    sigma: float = 0.0  # of the noise on the teacher's parameters
    # Further flags of the script, part of the folder's name; a flag without a value has None.
    options: dict = field(default_factory=dict, hash=False)
    log_std_shift: float = 0.0  # of the teacher's log σ; below 0: its actions have less noise
    taught_by: "Run | None" = None  # None: the teachers study's run of the student's own seed
    imported: Path | None = None  # a teacher's file that no study trains

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
        parts += [n if value is None else f"{n}-{value}" for n, value in self.options.items()]
        return Path("runs") / self.study / "__".join([*parts, str(self.seed)])

    @property
    def key(self) -> dict:
        """What tells it from all other runs: the first columns of runs.csv."""
        is_ppd = self.method == "ppd" or self.method in PARTIAL
        key = {"study": self.study, "env_id": self.env_id, "method": self.method, "size": self.size}
        key["distill_lambda"] = float(self.options.get("distill-lambda", 1)) if is_ppd else None
        key["ratio_gradient"] = "no-ratio-gradient" not in self.options if is_ppd else None
        return key | {n: getattr(self, n) for n in ("sigma", "log_std_shift", "seed")}

    @property
    def imperfections(self) -> list[str]:
        """What was done to the teacher, as part of a file's name."""
        parts = [f"sigma-{self.sigma:g}"] if self.sigma else []
        return parts + ([f"log-std{self.log_std_shift:+g}"] if self.log_std_shift else [])

    @property
    def origin(self) -> "Run | None":
        """The run that trains its teacher, or what an imperfect teacher is made of."""
        if self.method in ("teacher", "sb3-ppo") or self.imported:
            return None
        return self.taught_by or teacher_run(self.env_id, self.seed)

    @property
    def teacher(self) -> Path | None:
        """The file that the student learns from: its origin's, or one made of that."""
        if self.origin is None:
            return self.imported
        if not self.imperfections:
            return self.origin.run_dir / "agent.safetensors"
        size = [self.origin.size] if self.origin.size != "same" else []
        name = "__".join([self.env_id, *size, *self.imperfections, str(self.origin.seed)])
        return Path("runs/corrupted") / f"{name}.safetensors"

    @property
    def corruption(self) -> list[str]:
        """Flags of `experiments.corrupt` that make the teacher out of its origin; else none."""
        if not self.imperfections:
            return []
        flags = {"sigma": self.sigma, "log-std-shift": self.log_std_shift}
        words = [w for name, value in flags.items() if value for w in (f"--{name}", f"{value:g}")]
        return [*words, "--seed", str(self.origin.seed), "--out", str(self.teacher)]

    @property
    def script(self) -> list[str]:
        """The training script, and its subcommand where it has one."""
        if self.method == "sb3-ppo":
            return ["experiments/sb3_ppo.py"]
        if self.method in ("teacher-distill", "student-distill"):
            return [f"{self.method.replace('-', '_')}.py", self.suite]
        if self.method in PARTIAL:
            return ["ppd_mujoco_lstm.py"]
        return [f"{'ppo_teacher' if self.method == 'teacher' else 'ppd'}_{self.suite}.py"]

    def flags(self, teacher: Path | None = None) -> list[str]:
        """The script's flags; `teacher` is a file to learn from in place of `self.teacher`."""
        flags = {"env-id": self.env_id, "seed": self.seed}
        if self.method in ("teacher", "sb3-ppo"):
            flags["size"] = self.size
        else:
            flags |= {"student-size": self.size, "teacher": teacher or self.teacher}
        flags |= self.options | {"run-dir": self.run_dir}
        words = [word for name, value in flags.items() for word in (f"--{name}", value)]
        return [str(word) for word in words if word is not None]


def teacher_run(env_id: str, seed: int) -> Run:
    return Run("teachers", env_id, "teacher", seed)


def teachers() -> list[Run]:
    """Figures 3–5, the teacher column of Table 5."""
    return [teacher_run(env_id, seed) for env_id, seed in product(TEACHERS, SEEDS)]


def sizes() -> list[Run]:
    """Tables 1, 5, 8; Figures 1 and 6–11."""
    grid = product((*ATARI, *MUJOCO, *PROCGEN), METHODS, SIZES, SEEDS)
    return [Run("sizes", env_id, method, seed, size) for env_id, method, size, seed in grid]


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
    """Not in the paper: imperfect teachers on MuJoCo, σ chosen per environment."""
    runs = []
    for (env_id, sigma), method, seed in product(MUJOCO_SIGMA.items(), METHODS, SEEDS):
        runs.append(Run("imperfect-mujoco", env_id, method, seed, "larger", sigma))
    return runs


def lambda_mujoco() -> list[Run]:
    """Not in the paper: λ on MuJoCo, 0 (plain PPO) among its values."""
    return vary_lambda("lambda-mujoco", LAMBDA_MUJOCO, (0, 0.5, 1, 2, 5))


def sb3_ppo() -> list[Run]:
    """Not in the paper: Stable-Baselines3's PPO at the settings of our teachers, for 4 M steps."""
    return [Run("sb3-ppo", env_id, "sb3-ppo", seed) for env_id, seed in product(SB3_ENVS, SEEDS)]


def gradient() -> list[Run]:
    """Not in the paper: PPD with and without the KL term's gradient through the ratio.

    All students learn from the shipped teacher (of seed 100) or an imperfect one made of that, so
    a seed is the student's alone.
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
    """Not in the paper: games at the scale of two cores, smaller networks, fewer steps, one seed.

    A teacher, students by each method, λ of PPD (0 is PPO alone), and an imperfect teacher's.
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
    """Not in the paper: students that see positions alone, all from the teacher of seed 100.

    They cannot do all that it does, so the KL stays large, and the ratio's gradient with it loud.
    It is left out but for PPD with an LSTM, which runs in both forms.
    """
    runs, quiet = [], {"no-ratio-gradient": None}
    students = [(m, PARTIAL[m] | ({} if m == "ppo-lstm" else quiet)) for m in PARTIAL]
    students.append(("ppd-lstm", PARTIAL["ppd-lstm"]))
    for env_id, (method, options), seed in product(PARTIAL_ENVS, students, SEEDS[:3]):
        teacher = teacher_run(env_id, 100)
        runs.append(Run("partial", env_id, method, seed, options=options, taught_by=teacher))
    return runs


def zoo_teacher(env_id: str) -> Path:
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


def all_runs() -> list[Run]:
    return [run for make_runs in STUDIES.values() for run in make_runs()]


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
}


def narrow(runs: list[Run], **choices) -> list[Run]:
    """The runs whose attribute is among the choices given for it: suite=["mujoco"], seed=[100]."""
    wanted = {name: values for name, values in choices.items() if values}
    return [r for r in runs if all(getattr(r, name) in v for name, v in wanted.items())]
