"""The authors' own PPD, from their library sb3_distill, with one of our teachers.

    python experiments/sb3_distill_ppd.py --sb3-distill PATH --env-id Ant-v4 --student-size smaller
                                      # PATH: a clone of github.com/spiglerg/sb3_distill

Hyperparameters, networks, simulators, observation statistics and the teacher are those of
`ppd_mujoco.py`. Losses and training loop are theirs. Our own `evaluate` scores their weights in one
of our agents, during training too. An interrupted run starts from the beginning.
"""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # when run as a file, not as a module

import ppd_mujoco as ppd  # noqa: E402
from benchmarks import sb3  # noqa: E402
from experiments.sb3_ppo import learn_and_score, silence_old_gym  # noqa: E402


@dataclass
class Args:
    sb3_distill: str = "sb3_distill"  # a clone of github.com/spiglerg/sb3_distill
    env_id: str = "Hopper-v4"  # one of the paper's MuJoCo environments
    seed: int = 100  # seed of networks, sampling and environments
    student_size: Literal["smaller", "same", "larger"] = "larger"  # as in ppd_mujoco.py
    teacher: str | None = None  # its agent.safetensors; default: teachers/<env-id>.safetensors
    distill_lambda: float = 1.0  # weight λ of the distillation loss
    total_timesteps: int = 2_000_000  # environment steps in total, rounded up to whole rollouts
    eval_every: int = 100_000  # steps between evaluations of ten episodes; 0: never
    episodes: int = 50  # episodes of the final score
    run_dir: str | None = None  # new folder; default: runs/<env>__<script>__<seed>__<time>


def teacher_path(args: Args) -> Path:
    return Path(args.teacher or ROOT / "teachers" / f"{args.env_id}.safetensors")


def make_model(args: Args, settings: ppd.Args):
    """Their PPD with one of our teachers, and its environments. Raises UserError."""
    if not (Path(args.sb3_distill) / "sb3_distill" / "__init__.py").exists():
        advice = "clone github.com/spiglerg/sb3_distill and give its path"
        reason = f"no package sb3_distill in it; {advice}"
        raise ppd.UserError(f"--sb3-distill {args.sb3_distill}: {reason}")
    path = teacher_path(args)
    ppd.load_mujoco_agent(path)  # refuse a wrong file before anything is built
    silence_old_gym()
    sys.path.insert(0, args.sb3_distill)
    import sb3_distill
    from stable_baselines3.common.utils import set_random_seed

    # The paper's minibatches: 1152 = 512 + 512 + 128 (Table 3).
    warnings.filterwarnings("ignore", message="You have specified a mini-batch size of 512")
    envs = sb3.make_envs("mujoco", settings, "DummyVecEnv")
    policy, common = sb3.make_policy("mujoco", settings.hidden_sizes), sb3.settings_of(settings)
    model = sb3_distill.ProximalPolicyDistillation(env=envs, **policy, **common)
    teacher = sb3.make_teacher("mujoco", str(path), envs, common)
    envs.obs_rms.update = lambda obs: None  # the teacher's statistics, frozen (Appendix A.2)
    model.set_teacher(teacher, distill_lambda=args.distill_lambda, kl_mode="forward")
    set_random_seed(args.seed)
    return model, envs


def train(args: Args) -> dict:
    """Distil with the authors' library and score the student. Raises UserError."""
    settings = ppd.Args(env_id=args.env_id, seed=args.seed, student_size=args.student_size)
    model, envs = make_model(args, settings)
    teacher = ppd.load_mujoco_agent(teacher_path(args))
    return learn_and_score(model, envs, args, settings, "sb3_distill_ppd", teacher)


def main() -> None:
    try:
        train(tyro.cli(Args, description=__doc__))
    except ppd.UserError as error:
        print(f"sb3_distill_ppd: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
