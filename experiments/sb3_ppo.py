"""Stable-Baselines3's PPO with the settings of our PPO teachers, to compare the curves.

    python -m experiments.run sb3-ppo --env-id Hopper-v4 --seed 100
    python experiments/sb3_ppo.py --env-id Hopper-v4 --run-dir runs/sb3-hopper
    python experiments/sb3_ppo.py --env-id QbertNoFrameskip-v4 --size smaller

Hyperparameters, networks, normalisation and simulators are the same (Atari's with SB3's wrappers).
Our own `evaluate` scores SB3's weights in one of our agents. An interrupted run starts from the
beginning.
"""

import importlib.metadata
import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # when run as a file, not as a module

import ppo_teacher_atari  # noqa: E402
import ppo_teacher_mujoco as ppo  # noqa: E402
from benchmarks import sb3  # noqa: E402


@dataclass
class Args:
    env_id: str = "Hopper-v4"  # one of the paper's MuJoCo environments or Atari games
    seed: int = 100  # seed of networks, sampling and environments
    size: str = "same"  # size of the networks: smaller, same or larger, as in our scripts
    total_timesteps: int = 4_000_000  # environment steps in total, rounded up to whole rollouts
    eval_every: int = 500_000  # steps between evaluations of ten episodes; 0: never
    episodes: int = 50  # episodes of the final score
    run_dir: str | None = None  # new folder; default: runs/<env>__sb3_ppo__<seed>__<time>


def suite_of(env_id: str) -> str:
    """Atari games are known by their ids; anything else is MuJoCo."""
    return "atari" if env_id.endswith("NoFrameskip-v4") else "mujoco"


def copy_agent(model, envs, header: dict) -> ppo.MujocoAgent | ppo_teacher_atari.PixelAgent:
    """SB3's policy, critic and, on MuJoCo, observation statistics as one of our agents."""
    if header["suite"] == "atari":
        shape, actions = model.observation_space.shape, int(envs.action_space.n)
        with torch.random.fork_rng():  # new weights must not use the training's random numbers
            agent = ppo_teacher_atari.PixelAgent(shape, actions, header["size"])
        for theirs, ours in sb3.paired_layers("atari", model.policy, agent):
            ours.load_state_dict(theirs.state_dict())
        return agent.eval().requires_grad_(False)
    box, obs_dim = envs.action_space, envs.observation_space.shape[0]
    bounds = torch.tensor(box.low), torch.tensor(box.high)
    with torch.random.fork_rng():  # new weights must not use the training's random numbers
        agent = ppo.MujocoAgent(*bounds, obs_dim, header["hidden_sizes"])
    for theirs, ours in sb3.paired_layers("mujoco", model.policy, agent):
        ours.load_state_dict(theirs.state_dict())
    agent.log_std.data.copy_(model.policy.log_std)
    agent.obs_mean.copy_(torch.tensor(envs.obs_rms.mean))
    agent.obs_var.copy_(torch.tensor(envs.obs_rms.var))
    agent.obs_count.fill_(envs.obs_rms.count)
    return agent.eval().requires_grad_(False)


def silence_old_gym() -> None:
    """SB3 imports the old gym if it is installed, and that prints a banner."""
    with suppress(ImportError):
        import gym_notices.notices

        gym_notices.notices.notices.clear()


def learn_and_score(model, envs, args, settings, script: str, teacher=None) -> dict:
    """Train an SB3 model, score it and write its folder; returns what result.json holds.

    `settings` are the `Args` of our script with the same networks and rollouts. `teacher` is an
    agent of ours with its header, which is scored as well.
    """
    from stable_baselines3.common.callbacks import BaseCallback

    suite = suite_of(args.env_id)
    # evaluate.py takes it for an agent of this script
    header = {"format": "ppd-agent-2", "suite": suite, "script": f"ppo_teacher_{suite}"}
    header |= {"trained_by": "stable-baselines3" if script == "sb3_ppo" else "sb3_distill"}
    header |= {"env_id": args.env_id, "seed": args.seed, "deterministic": True}
    if suite == "atari":
        header |= {"frame_skip": settings.frame_skip, "size": settings.size}
        games = (args.env_id, 10, 1, settings.frame_skip)
        eval_envs = ppo_teacher_atari.AtariGames(*games, life_loss=False)
    else:
        header |= {"hidden_sizes": settings.hidden_sizes}
        eval_envs = ppo.MujocoVectorEnv(args.env_id, 10, 1)
    name = f"{args.env_id}__{script}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = Path(args.run_dir or f"runs/{name}")
    if run_dir.exists():
        raise ppo.UserError(f"--run-dir {run_dir} exists; name another")
    run_dir.mkdir(parents=True)
    rollout = settings.num_envs * settings.num_steps
    curve, evaluations, finished = [], [], []

    class Log(BaseCallback):
        """Log the raw returns of each rollout's episodes, and evaluate at intervals."""

        def _on_step(self) -> bool:
            finished.extend(i["episode"]["r"] for i in self.locals["infos"] if "episode" in i)
            return True

        def _on_rollout_end(self) -> None:
            step, previous = self.num_timesteps, self.num_timesteps - rollout
            if finished:
                curve.append([step, fmean(float(r) for r in finished), len(finished)])
                print(f"{args.env_id}: {step:,} steps, return {curve[-1][1]:.1f}", flush=True)
                finished.clear()
            every = args.eval_every
            if every and step // every > previous // every:
                agent = copy_agent(model, envs, header)
                score = ppo.evaluate(agent, eval_envs, 10, args.seed)
                evaluations.append([step, score["mean"], score["standard_error"]])

    started = time.perf_counter()
    model.learn(args.total_timesteps, callback=Log())  # in whole rollouts
    seconds, steps = time.perf_counter() - started, model.num_timesteps
    agent = copy_agent(model, envs, header)
    score = ppo.evaluate(agent, eval_envs, args.episodes, args.seed)
    if suite == "atari":
        score = ppo_teacher_atari.score_games(args.env_id, score)
    facts = {"score": score}
    if teacher:
        teacher_agent, facts["teacher"] = teacher
        facts["teacher_score"] = ppo.evaluate(teacher_agent, eval_envs, args.episodes, args.seed)
    short = {name: score[name] for name in score if name not in ("returns", "lengths")}
    content = ppo.pack_agent(agent.state_dict(), header | {"steps": steps, "score": short})
    ppo.write_file(run_dir / "agent.safetensors", content)
    result = {"script": script, "args": asdict(args), "steps": steps} | facts
    result |= {"curve": curve, "evaluations": evaluations, "seconds": seconds}
    packages = ("torch", "numpy", "gymnasium", "mujoco", "ale-py", "stable-baselines3")
    result["versions"] = {name: importlib.metadata.version(name) for name in packages}
    git = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12"]
    with suppress(OSError):  # no git here
        result["git_commit"] = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    result["steps_per_second"] = steps / seconds
    ppo.write_file(run_dir / "result.json", json.dumps(result).encode())
    envs.close()
    print(f"{run_dir}: {ppo.score_text(score)} over {args.episodes} episodes, {steps:,} steps")
    return result


def train(args: Args) -> dict:
    """Train SB3's PPO and score it. Raises UserError."""
    silence_old_gym()
    from stable_baselines3 import PPO

    suite, same = suite_of(args.env_id), {"env_id": args.env_id, "seed": args.seed}
    if suite == "atari":
        settings = ppo_teacher_atari.Args(size=args.size, **same)
        network = settings.size
    else:
        settings = ppo.Args(size=args.size, num_workers=1, **same)
        network = settings.hidden_sizes
    envs = sb3.make_envs(suite, settings, "DummyVecEnv")
    settings_of_sb3 = sb3.settings_of(settings)
    model = PPO(env=envs, **sb3.make_policy(suite, network), **settings_of_sb3)
    return learn_and_score(model, envs, args, settings, "sb3_ppo")


def main() -> None:
    try:
        train(tyro.cli(Args, description=__doc__))
    except ppo.UserError as error:
        print(f"sb3_ppo: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
