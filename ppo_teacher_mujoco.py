"""PPO on MuJoCo: trains the teachers that `ppd_mujoco.py` distils.

    python ppo_teacher_mujoco.py --env-id Hopper-v4                # the paper's 10 M steps
    python ppo_teacher_mujoco.py --env-id Walker2d-v5 --seed 200   # any Gymnasium id of flat Boxes
    python ppo_teacher_mujoco.py --resume runs/<run>               # go on where a run stopped

PPO-clip (Schulman et al., 2017) as in "Proximal Policy Distillation" (Spigler, TMLR 2025), A.2:
separate policy and value networks, running normalisation of observations and rewards.

    max  mean[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) + α·H(π_θ) ]

The method comes first: Args, losses, networks, `train`; then what it stands on: scoring, runs and
checkpoints, environments. `diff ppo_teacher_mujoco.py ppd_mujoco.py` shows what PPD adds to PPO.
T steps in N environments are B samples, M of them a minibatch; D numbers observed, A acted.
"""

import atexit
import importlib.metadata
import io
import json
import multiprocessing
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the rest is imported

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch.distributions import Independent, Normal, OneHotCategorical
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    # Environment
    env_id: str = "Hopper-v4"  # the paper's: Ant, HalfCheetah, Hopper, Humanoid, Swimmer, each -v4
    seed: int = 100  # of networks, sampling and environments; the paper's: 100, 200, 300, 400, 500
    num_envs: int = 18  # environments stepped side by side, N (Table 3)
    num_workers: int = min(torch.get_num_threads(), 6)  # processes stepping them, with this one
    device: Literal["cpu", "cuda"] = "cpu"  # of networks and rollout; a GPU gains nothing here
    torch_threads: int = 1  # CPU threads of an update; more pay for large networks on idle cores

    # PPO
    total_timesteps: int = 10_000_000  # of all environments; whole rollouts, so it rounds up
    num_steps: int | None = None  # T; unset: 256 for Hopper and Swimmer, else 512 (Table 3)
    learning_rate: float = 3e-4  # constant (Table 3)
    adam_eps: float = 1e-5  # Adam's ε (the authors' released code)
    minibatch_size: int = 512  # samples per gradient step, M; an epoch's last is smaller (Table 3)
    update_epochs: int = 4  # passes over each rollout (Table 3)
    gamma: float = 0.995  # discount γ (Table 3)
    gae_lambda: float = 0.9  # λ of generalised advantage estimation (Table 3)
    clip_coef: float = 0.2  # clip range ε of the importance ratio (SB3's default)
    ent_coef: float | None = None  # α; unset: 0.01 for Hopper and Swimmer, else 0 (Table 3)
    vf_coef: float = 0.5  # weight of the value loss, c_v (SB3's default)
    max_grad_norm: float = 0.5  # of policy and critic together (SB3's default)
    hidden_sizes: tuple[int, ...] | None = None  # of policy and critic; unset: as their size says
    size: Literal["smaller", "same", "larger"] = "same"  # of the networks (Appendix A.2)

    # Logging and checkpoints
    eval_every: int = 500_000  # steps between evaluations of ten episodes; 0: none
    episodes: int = 50  # of the final score (Appendix A.3)
    save_every: float = 60.0  # seconds between checkpoints
    run_dir: str | None = None  # new folder of the run; unset: runs/<env>__<script>__<seed>__<time>
    resume: str | None = None  # folder of a stopped run to go on with; takes no other flag
    track: bool = False  # also log to Weights & Biases; pip install wandb, WANDB_PROJECT says where

    def __post_init__(self):
        short = self.env_id.startswith(("Hopper-", "Swimmer-"))
        if self.num_steps is None:
            self.num_steps = 256 if short else 512
        if self.ent_coef is None:
            self.ent_coef = 0.01 if short else 0.0
        sizes = {"smaller": (128, 64), "same": (256, 256), "larger": (512, 512)}  # A.2, A.3
        self.hidden_sizes = self.hidden_sizes or sizes[self.size]


# ------------------------------------------------------------------------------- Losses
def compute_gae(rewards, values, next_values, terminations, ended, gamma, gae_lambda):
    """Generalised advantage estimation (Schulman et al., 2016); all (T, N), the ends bool.

    `next_values` are V of the states that the steps led to; where a time limit ended an episode,
    of its final observation. `terminations` are true ends; `ended` counts time limits as well.
    """
    advantages, running = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    # δ_t = r_t + γ·V(s_t+1)·[not terminal] − V(s_t);  Â_t = δ_t + γ·λ·Â_t+1·[same episode]
    deltas = rewards + gamma * next_values * ~terminations - values
    discounts = gamma * gae_lambda * ~ended
    for t in reversed(range(len(rewards))):
        running = deltas[t] + discounts[t] * running
        advantages[t] = running
    return advantages


def normalize_advantages(advantages):
    """(M,) to mean 0 and deviation 1, per minibatch as in SB3; a single sample stays as it is."""
    if len(advantages) == 1:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def clipped_surrogate_loss(ratio, advantages, clip_coef):
    """PPO-clip, negated (L_PPO of Equation 2): ratio r and advantages (M,) to a scalar."""
    # −mean[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) ]
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return -torch.min(ratio * advantages, clipped_ratio * advantages).mean()


def value_loss(values, returns):
    """Squared error of the critic, without a further ½ (as SB3): (M,), (M,) to a scalar."""
    # mean[ (V(s) − R̂)² ]
    return nn.functional.mse_loss(values, returns)  # warns of shapes that would broadcast


def ppo_loss(pg_loss, v_loss, entropy_loss, ent_coef, vf_coef):
    """PPO's objective, negated (Equation 2 with λ = 0); scalars. The entropy H is maximised."""
    # −L_PPO − α·mean[H] + c_v·mean[(V − R̂)²]
    return pg_loss - ent_coef * entropy_loss + vf_coef * v_loss


# ------------------------------------------------------------------------------- Agent
class MujocoAgent(nn.Module):
    """Policy, critic and observation statistics; takes raw observations.

    The policy is Gaussian; with bounds that are integers it chooses one of A actions, a one-hot
    row. Imported teachers have other activations, and critics of other sizes than the policy.
    """

    def __init__(
        self, action_low, action_high, obs_dim, hidden_sizes, activation="relu", critic_sizes=None
    ):
        super().__init__()
        self.actor = make_mlp(obs_dim, hidden_sizes, len(action_low), 0.01, activation)
        self.log_std = nn.Parameter(torch.zeros(len(action_low)))
        critic_sizes = hidden_sizes if critic_sizes is None else critic_sizes
        self.critic = make_mlp(obs_dim, critic_sizes, 1, 1.0, activation)
        self.register_buffer("action_low", torch.as_tensor(action_low))
        self.register_buffer("action_high", torch.as_tensor(action_high))
        self.register_buffer("obs_mean", torch.zeros(obs_dim, dtype=torch.float64))
        self.register_buffer("obs_var", torch.ones(obs_dim, dtype=torch.float64))
        self.register_buffer("obs_count", torch.tensor(1e-4, dtype=torch.float64))
        self.register_buffer("obs_clip", torch.tensor(10.0))

    def normalize(self, obs) -> torch.Tensor:
        """Raw (B, D) to mean 0 and variance 1, clipped (SB3's VecNormalize)."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.obs_mean.device)
        mean, var = self.obs_mean.float(), self.obs_var.float()
        return ((obs - mean) * (var + 1e-8).rsqrt()).clamp(-self.obs_clip, self.obs_clip)

    def distribution(self, means: torch.Tensor) -> Independent | OneHotCategorical:
        """Means, or logits, (B, A) to a distribution whose log_prob, entropy and KL are (B,)."""
        if not self.action_low.is_floating_point():
            return OneHotCategorical(logits=means, validate_args=False)
        std = self.log_std.exp().expand_as(means)
        return Independent(Normal(means, std, validate_args=False), 1, validate_args=False)

    def policy(self, obs) -> Independent | OneHotCategorical:
        """Raw (B, D) to π(· | s)."""
        return self.distribution(self.actor(self.normalize(obs)))

    def value(self, obs) -> torch.Tensor:
        """Raw (B, D) to V(s), (B,)."""
        return self.critic(self.normalize(obs)).squeeze(-1)

    def env_actions(self, actions: torch.Tensor) -> np.ndarray:
        """Actions (B, A), clipped to the environment's Box."""
        return actions.clamp(self.action_low, self.action_high).cpu().numpy()

    @torch.no_grad()
    def act(self, obs, deterministic: bool = True) -> np.ndarray:
        """Raw observations (B, D) to actions (B, A): the likeliest, or a sample."""
        dist = self.policy(obs)
        return self.env_actions(dist.mode if deterministic else dist.sample())


@torch.no_grad()
def update_normalizer(agent: MujocoAgent, obs: np.ndarray) -> None:
    """Take one step's raw observations (N, D) into the running mean and variance."""
    obs = torch.as_tensor(obs, dtype=torch.float32, device=agent.obs_mean.device).double()
    var, mean = torch.var_mean(obs, 0, unbiased=False)
    moments = agent.obs_mean, agent.obs_var, agent.obs_count
    for buffer, new in zip(moments, merge_moments(*moments, mean, var, len(obs)), strict=True):
        buffer.copy_(new)


# ------------------------------------------------------------------------------- Training
def train(args: Args) -> dict:
    """Train a teacher by PPO and score it; returns what result.json holds. Raises UserError."""
    run = Run(args)
    args = run.args  # with --resume, those of the stopped run
    T, N, B = args.num_steps, args.num_envs, args.num_steps * args.num_envs
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # but for the update: a few observations are too little to share out
    torch.distributions.Distribution.set_default_validate_args(False)  # `Run.log` finds NaN
    envs = MujocoVectorEnv(args.env_id, N, args.num_workers)
    eval_envs = MujocoVectorEnv(args.env_id, 10, args.num_workers)
    box, (obs_dim,) = envs.single_action_space, envs.single_observation_space.shape
    envs.reset(seed=args.seed)

    agent = MujocoAgent(box.low, box.high, obs_dim, args.hidden_sizes).to(args.device)
    adam = {"lr": args.learning_rate, "eps": args.adam_eps, "fused": True}
    optimizer = torch.optim.Adam(agent.parameters(), **adam)
    normalize_reward = RewardNormalizer(N)
    header = {"suite": "mujoco", "hidden_sizes": args.hidden_sizes, "deterministic": True}
    parts = {"agent": agent, "optimizer": optimizer, "envs": envs, "rewards": normalize_reward}
    run.start(header, parts)

    obs = torch.zeros((T, N, obs_dim), device=args.device)  # normalised, as the networks take them
    means = torch.zeros((T, N, *box.shape), device=args.device)  # of the policy
    actions = torch.zeros((T, N, *box.shape), device=args.device)
    rewards = np.zeros((T, N))
    terminations, truncations = np.zeros((2, T, N), dtype=bool)
    next_obs = envs.obs
    while run.step < run.total:
        # Collect a rollout with the policy as it is.
        episodes, final_obs = [], []
        with torch.no_grad():
            for t in range(T):
                update_normalizer(agent, next_obs)
                obs[t] = agent.normalize(next_obs)
                means[t] = agent.actor(obs[t])
                actions[t] = agent.distribution(means[t]).sample()
                env_step = envs.step(agent.env_actions(actions[t]))
                next_obs, rewards[t], terminations[t], truncations[t], infos = env_step
                episodes += infos["episodes"]
                final_obs += [infos["final_obs"][n] for n in np.flatnonzero(truncations[t])]

            # Advantages. A time limit is no terminal state: bootstrap from the final observation.
            torch.set_num_threads(args.torch_threads)
            b_obs, b_actions = obs.flatten(0, 1), actions.flatten(0, 1)  # (B, D), (B, A)
            b_logprobs = agent.distribution(means.flatten(0, 1)).log_prob(b_actions)  # (B,)
            values = agent.critic(b_obs).view(T, N)
            next_values = torch.cat([values[1:], agent.value(next_obs)[None]])
            if final_obs:  # in the order of `truncations`: step by step, row by row
                next_values[truncations] = agent.value(np.array(final_obs))
            ended = terminations | truncations
            scaled_rewards = torch.from_numpy(normalize_reward(rewards, ended)).float()
            ends = torch.from_numpy(terminations), torch.from_numpy(ended)
            advantages = compute_gae(  # on the CPU: a GPU takes longer to launch each step of it
                scaled_rewards, values.cpu(), next_values.cpu(), *ends, args.gamma, args.gae_lambda
            ).to(args.device)
            b_advantages, b_returns = advantages.flatten(), (advantages + values).flatten()  # (B,)

        # Update policy and critic: several epochs over shuffled minibatches.
        metrics = []
        for _ in range(args.update_epochs):
            for mb in torch.randperm(B, device=args.device).split(args.minibatch_size):
                mb_obs = b_obs[mb]
                dist = agent.distribution(agent.actor(mb_obs))
                logratio = dist.log_prob(b_actions[mb]) - b_logprobs[mb]
                ratio = logratio.exp()
                mb_advantages = normalize_advantages(b_advantages[mb])
                pg_loss = clipped_surrogate_loss(ratio, mb_advantages, args.clip_coef)
                v_loss = value_loss(agent.critic(mb_obs).squeeze(-1), b_returns[mb])
                entropy_loss = dist.entropy().mean()
                loss = ppo_loss(pg_loss, v_loss, entropy_loss, args.ent_coef, args.vf_coef)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                metrics.append({
                    "losses/policy_loss": pg_loss.detach(),
                    "losses/value_loss": v_loss.detach(),
                    "losses/entropy": entropy_loss.detach(),
                    "losses/grad_norm": norm,
                    "losses/approx_kl": (ratio - 1 - logratio).detach().mean(),
                    "losses/clipfrac": ((ratio - 1).abs() > args.clip_coef).float().mean(),
                })  # fmt: skip
        torch.set_num_threads(1)
        run.step += B
        explained = 1 - ((b_returns - values.flatten()).var() / b_returns.var()).item()
        scalars = {"losses/explained_variance": explained}
        run.log(metrics, scalars, episodes)
        if run.due(args.eval_every, B):
            run.log_evaluation(evaluate(agent, eval_envs, 10, args.seed))
        run.save(args.save_every)

    run.bar.close()  # the final score, by the paper's protocol
    score = evaluate(agent, eval_envs, args.episodes, args.seed)
    result = run.finish(score=score)
    print(f"{run.folder}: {score_text(score)} over {args.episodes} episodes")
    return result


# ------------------------------------------------------------------------------- Layers
def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (SB3's initialisation)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def make_mlp(inputs: int, hidden_sizes, outputs: int, gain: float, activation="relu"):
    """Linear layers and activations between them; `gain` initialises the last layer."""
    activate, layers = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU}[activation], []
    for hidden in hidden_sizes:
        layers += [init_layer(nn.Linear(inputs, hidden)), activate()]
        inputs = hidden
    return nn.Sequential(*layers, init_layer(nn.Linear(inputs, outputs), gain))


# ------------------------------------------------------------------------------- Scoring, rewards
def evaluate(agent, envs, episodes: int, seed: int, deterministic: bool = True) -> dict:
    """Play whole episodes: mean raw return, its standard error, every return and length."""
    # Each environment plays a fixed quota: the first so many to end would favour short episodes.
    quota = [len(share) for share in np.array_split(np.arange(episodes), envs.num_envs)]
    played = [[] for _ in quota]
    bar = tqdm(total=episodes, desc="scoring", unit="episode", leave=False, delay=10)
    cuda = [0] if torch.cuda.is_initialized() else []
    with bar, torch.random.fork_rng(cuda):  # training's random state stays
        torch.manual_seed(10_000 + seed)
        obs, _ = envs.reset(seed=10_000 + seed)
        while sum(map(len, played)) < episodes:
            obs, *_, infos = envs.step(agent.act(obs, deterministic))
            for n, episode_return, length in infos["episodes"]:
                if len(played[n]) < quota[n]:
                    played[n].append((episode_return, length))
                    bar.update()
    returns, lengths = map(list, zip(*sum(played, []), strict=True))
    error = statistics.stdev(returns) / episodes**0.5 if episodes > 1 else None
    score = {"mean": statistics.fmean(returns), "standard_error": error, "episodes": episodes}
    return score | {"returns": returns, "lengths": lengths}


def score_text(score: dict) -> str:
    """Mean ± standard error."""
    error = score["standard_error"]
    return f"{score['mean']:.1f} " + ("(n=1)" if error is None else f"± {error:.1f}")


class RewardNormalizer(nn.Module):
    """Rewards over the running deviation of their discounted sum, as SB3's VecNormalize."""

    def __init__(self, num_envs: int):
        super().__init__()
        self.register_buffer("returns", torch.zeros(num_envs, dtype=torch.float64))
        # mean, variance and count of the discounted returns so far
        self.register_buffer("moments", torch.tensor([0, 1, 1e-4], dtype=torch.float64))

    def forward(self, rewards: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """A rollout's rewards and ends (T, N) to scaled rewards (T, N), step after step."""
        returns, moments, scaled = self.returns.numpy(), self.moments.tolist(), rewards.copy()
        for t in range(len(rewards)):
            returns[:] = 0.99 * returns + rewards[t]  # VecNormalize's own γ; written to the buffer
            moments = merge_moments(*moments, returns.mean(), returns.var(), len(returns))
            scaled[t] /= np.sqrt(moments[1] + 1e-8)
            returns[ended[t]] = 0
        self.moments.copy_(torch.tensor(moments))
        return scaled.clip(-10, 10)


def merge_moments(mean_a, var_a, count_a, mean_b, var_b, count_b):
    """Mean, variance and count of two samples put together (Chan et al., 1979)."""
    count, delta = count_a + count_b, mean_b - mean_a
    spread = var_a * count_a + var_b * count_b + delta**2 * count_a * count_b / count
    return mean_a + delta * count_b / count, spread / count, count


# ------------------------------------------------------------------------------- Runs, checkpoints
class UserError(Exception):
    """Something a user can cause and mend: one line on stderr, exit status 2."""


class Run:
    """A run's folder and all that is not the method: logs, checkpoints, resuming.

    agent.safetensors is a whole policy; training_state.pt, all that the rest of the run depends on,
    so that on a CPU it goes on bit for bit, given equal versions and threads. They hold no code.
    """

    def __init__(self, args, suite: str = ""):
        """Take the arguments, or those of the run to resume. Raises UserError."""
        self.script, self.args, self.state = Path(__file__).stem, args, None
        self.command = f"python {self.script}.py {suite}".strip()
        self.history = {"steps": 0, "seconds": 0.0, "curve": [], "evaluations": []}
        name = f"{args.env_id}__{self.script}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
        self.folder = Path(args.resume or args.run_dir or f"runs/{re.sub('[/:]', '-', name)}")
        if args.resume is not None:
            if args != type(args)(resume=args.resume):
                raise UserError("--resume takes no other flag: a run keeps its own arguments")
            self.state = read_training_state(self.folder, self.command, args)
            self.args, self.history = type(args)(**self.state["args"]), self.state["history"]
        elif self.folder.exists() or not str(self.folder).isprintable():
            reason = "exists or is no plain name; give another, or go on with --resume"
            raise UserError(f"--run-dir {self.folder}: {reason}")
        check_args(self.args)
        self.env_id = self.args.env_id.split(":")[-1]  # a module to import stands in no checkpoint
        self.step, rollout = self.history["steps"], self.args.num_envs * self.args.num_steps
        self.total = -(-self.args.total_timesteps // rollout) * rollout  # whole rollouts

    def start(self, header: dict, parts: dict, teacher: dict | None = None) -> None:
        """Put `parts`, which have a state_dict, where a stopped run left them; begin to log."""
        wandb = importlib.import_module("wandb") if self.args.track else None
        self.header, self.parts, self.saved = header, parts, time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=self.state is not None)
        self.lock = FileLock(self.folder / "lock")
        try:
            self.lock.acquire(timeout=1)
        except Timeout as error:
            raise UserError(f"{self.folder}: another process trains this run; let it") from error
        if (self.folder / "result.json").exists():
            raise UserError(f"{self.folder}: another process has just finished this run")
        if self.history.setdefault("teacher", teacher) != teacher:
            raise UserError(f"{self.folder}: its teacher has changed; put the first one back")
        if self.state:
            for name, part in parts.items():
                part.load_state_dict(self.state[name])
            torch.set_rng_state(self.state["torch_rng"])
            if self.state["cuda_rng"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(self.state["cuda_rng"])
        here = header | {"env_id": self.env_id}
        keys = ("env_id", "frame_skip", "distribution_mode", "num_levels", "start_level")
        other = [f"{k} {teacher.get(k)}" for k in keys if (teacher or here).get(k) != here.get(k)]
        self.history["warnings"] = [f"the teacher was trained with {setting}" for setting in other]
        self.save()
        if wandb:
            here = {"dir": self.folder, "name": self.folder.name, "resume": "auto"}
            try:
                wandb.init(config=vars(self.args), sync_tensorboard=True, **here)
            except wandb.Error as error:
                raise UserError(f"--track: {error}") from error
        self.writer = SummaryWriter(str(self.folder), purge_step=self.step + 1)
        rows = "\n".join(f"|{key}|{value}|" for key, value in vars(self.args).items())
        self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        command = f"{self.command} --resume {shlex.quote(str(self.folder))}"
        print(*self.history["warnings"], f"once stopped, go on with: {command}", sep="\n")
        atexit.register(print, f"stopped; go on with: {command}")  # after Ctrl-C or an error
        bar = {"unit": " steps", "unit_scale": True, "mininterval": 5}
        self.bar = tqdm(total=self.total, initial=self.step, **bar)

    def due(self, every: int, steps: int) -> bool:
        """Whether the last `steps` led to a multiple of `every`, or past one; never for 0."""
        return every > 0 and self.step // every > (self.step - steps) // every

    def log(self, metrics: list[dict], scalars: dict, episodes: list) -> None:
        """Log means of the minibatches' metrics, scalars, and the episodes that ended.

        Raises UserError, before anything is saved, where a loss or weight is no number any more.
        """
        means = {name: torch.stack([m[name] for m in metrics]).mean().item() for name in metrics[0]}
        weights = torch.cat([p.flatten() for p in self.parts["agent"].parameters()])
        if not (np.isfinite(list(means.values())).all() and weights.isfinite().all()):
            advice = "the last good checkpoint is kept; start anew with a lower --learning-rate"
            atexit.unregister(print)  # it would end so again
            raise UserError(f"{self.folder}: NaN or infinite loss at step {self.step}; {advice}")
        scalars = {**means, **scalars, "charts/SPS": self.bar.format_dict["rate"] or 0}
        if episodes:
            _, mean_return, length = map(statistics.fmean, zip(*episodes, strict=True))
            scalars |= {"charts/episodic_return": mean_return, "charts/episodic_length": length}
            self.history["curve"].append([self.step, mean_return, len(episodes)])
            self.bar.set_postfix_str(f"return {mean_return:.1f}", refresh=False)
        self.bar.update(self.step - self.bar.n)
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, self.step)

    def log_evaluation(self, score: dict, kind: str = "") -> None:
        """A point of a curve of evaluations."""
        point = [self.step, score["mean"], score["standard_error"]]
        self.history.setdefault(f"evaluations{kind}", []).append(point)
        self.writer.add_scalar(f"eval/return{kind}", score["mean"], self.step)

    def save(self, every: float = 0.0) -> None:
        """Write policy and training state if that was so many seconds ago, and at the end."""
        seconds = time.monotonic() - self.saved
        if seconds < every and self.step < self.total:
            return
        self.saved += seconds
        self.history |= {"steps": self.step, "seconds": self.history["seconds"] + seconds}
        header = {"format": "ppd-agent-2", "script": self.script, "env_id": self.env_id}
        header |= {"seed": self.args.seed, "steps": self.step, **self.header}
        state = {name: part.state_dict() for name, part in self.parts.items()}
        write_file(self.folder / "agent.safetensors", pack_agent(state["agent"], header))
        state |= {"command": self.command, "args": asdict(self.args), "history": self.history}
        state["torch_rng"] = torch.get_rng_state()
        state["cuda_rng"] = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        torch.save(state, buffer := io.BytesIO())
        write_file(self.folder / "training_state.pt", buffer.getvalue())

    def finish(self, **facts) -> dict:
        """Write the policy with its score, and result.json, which is returned."""
        for name in facts.keys() & {"score", "score_training"}:  # without its single episodes
            self.header[name] = {k: v for k, v in facts[name].items() if type(v) is not list}
        self.saved = time.monotonic()  # the final scores count for no second of training
        self.save()
        facts |= {"script": self.script, "args": asdict(self.args), **self.history}
        facts |= {"steps_per_second": self.step / self.history["seconds"], "versions": {}}
        for p in ("torch", "numpy", "gymnasium", "mujoco", "ale-py", "procgen", "procgen-mirror"):
            with suppress(importlib.metadata.PackageNotFoundError):
                facts["versions"][p] = importlib.metadata.version(p)
        git = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=12"]
        with suppress(OSError):
            facts["git_commit"] = subprocess.run(git, capture_output=True, text=True).stdout.strip()
        write_file(self.folder / "result.json", json.dumps(facts).encode())
        atexit.unregister(print)
        self.writer.close()
        self.lock.release()
        return facts


def check_args(args) -> None:
    """Raises UserError for a number out of its range, or a GPU that is not there."""
    may_be_0 = "seed gamma gae_lambda pg_coef ent_coef vf_coef distill_lambda distill_lambda_final "
    may_be_0 += "eval_every save_every start_level"
    highest = {"gamma": 1, "gae_lambda": 1, "seed": 2**30, "num_envs": 2**12, "num_steps": 2**16}
    highest |= {"num_workers": 2**8, "env_threads": 2**10, "torch_threads": 2**10}
    highest |= {"hidden_sizes": 2**14, "episodes": 2**20, "frame_skip": 2**10}
    for name, value in vars(args).items():
        for number in value if isinstance(value, tuple) else (value,):
            low = 0 if name in may_be_0.split() else 1 if type(number) is int else 1e-12
            high = highest.get(name, 2**40)
            if type(number) in (int, float) and not low <= number <= high:
                raise UserError(f"--{name.replace('_', '-')} {number}: give {low} to {high}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU; use --device cpu, or resume on one")


def pack_agent(tensors: dict, header: dict) -> bytes:
    """An agent.safetensors. Its header is one entry: several are written in any order."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return to_safetensors(tensors, {"header": json.dumps(header, sort_keys=True)})


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def read_training_state(folder: Path, command: str, args) -> dict:
    """What `Run.save` wrote. Raises UserError for a run that cannot go on."""
    if (folder / "result.json").exists():
        raise UserError(f"--resume {folder}: this run is finished; score it with evaluate.py")
    try:
        path = folder / "training_state.pt"
        assert not zipfile.ZipFile(path).testzip()  # torch.load checks no sums
        state = torch.load(path, map_location="cpu", weights_only=True)
        found, names = state["command"], state["args"].keys()
    except Exception as error:  # torch raises many kinds
        raise UserError(f"--resume {folder}: training_state.pt is missing or damaged") from error
    if found != command or names != vars(args).keys():
        raise UserError(f"--resume {folder}: a run of `{found}`, maybe older; resume it with that")
    return state


def load_agent(path: str | Path, suite: str, make) -> tuple[nn.Module, dict]:
    """A frozen agent and its header, from a stranger's file, which can run nothing.

    `make(tensors, header)` builds its networks. Raises UserError for all that is not sound.
    """
    try:
        if Path(path).is_dir():
            raise ValueError("a folder: give the agent.safetensors in it")
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("header", "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(text, parse_constant=int)
        if header.get("format") != "ppd-agent-2" or header.get("suite") != suite:
            raise ValueError(f"not an agent of this version, or for {header.get('suite')}")
        kinds = {"env_id": str, "script": str, "seed": int, "steps": int, "deterministic": bool}
        wrong = [name for name, kind in kinds.items() if type(header[name]) is not kind]
        if wrong or not re.fullmatch(r"[\w./-]+", header["env_id"]):  # a module:Id runs code
            raise ValueError(f"its header has an odd {', '.join(wrong) or 'env_id'}")
        for name, tensor in tensors.items():
            bad = tensor.isnan() if name.startswith("action_") else ~tensor.isfinite()
            if bad.any() or name == "obs_var" and (tensor < 0).any():
                raise ValueError(f"{name} holds NaN, infinite or impossible numbers")
        agent = make(tensors, header)
        agent.load_state_dict(tensors)
    except Exception as error:  # a stranger's file may raise any
        damaged = isinstance(error, SafetensorError)
        pickle = damaged and Path(path).read_bytes().startswith((b"PK", b"\x80"))
        reason = "a pickle, which could run code" if pickle else " ".join(str(error).split())
        remedy = f"train one with ppo_teacher_{suite}.py"
        raise UserError(f"{path}: no sound {suite} agent ({reason}); {remedy}") from error
    return agent.eval().requires_grad_(False), header


def load_mujoco_agent(path, sizes: tuple | None = None) -> tuple[MujocoAgent, dict]:
    """A frozen agent, if it is for sizes (D, A, dtype of actions), and its header."""

    def make(tensors, header):
        low, high, obs_dim = tensors["action_low"], tensors["action_high"], len(tensors["obs_mean"])
        found = obs_dim, *low.shape, low.numpy().dtype
        if sizes not in (None, found):
            raise ValueError(f"its sizes are {found}, not {sizes}")
        imported = {name: header[name] for name in ("activation", "critic_sizes") if name in header}
        agent = MujocoAgent(low, high, obs_dim, header["hidden_sizes"], **imported)
        tensors.setdefault("obs_clip", agent.obs_clip)  # the first files have none
        if "critic.0.bias" not in tensors:
            agent.critic = None  # an imported teacher may have none
        return agent

    return load_agent(path, "mujoco", make)


# ------------------------------------------------------------------------------- Environments
def make_mujoco_env(env_id: str, **options) -> gym.Env:
    """One environment with observations (D,) and actions (A,). Raises UserError for other ids."""
    with warnings.catch_warnings():  # the paper's are the v4: the advice to take v5 is not for us
        warnings.simplefilter("ignore")
        try:
            env = gym.make(env_id, disable_env_checker=True, **options)
        except (gym.error.Error, ImportError, ValueError) as error:
            reason = " ".join(str(error.__cause__ or error).split())  # a library that is missing
            raise UserError(f"--env-id {env_id}: {reason} Try Hopper-v4 or Ant-v4.") from error
    if env.spec.id != env_id.split(":")[-1]:  # Hopper alone would be the latest version
        raise UserError(f"--env-id {env_id}: which version? Give {env.spec.id}, or an older one")
    actions = env.action_space
    if isinstance(actions, gym.spaces.Discrete):
        one_hot = gym.spaces.Box(0, 1, (int(actions.n),), np.int8)
        env = gym.wrappers.TransformAction(env, lambda row: actions.start + row.argmax(), one_hot)
    for space in (env.observation_space, env.action_space):
        flat = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
        if not flat or space is actions and space.dtype.kind != "f":  # integers would be one-hot
            raise UserError(f"--env-id {env_id}: has {space}; use flat Boxes of floats or Discrete")
    return env


class ReplayableEnv:
    """One environment with same-step autoreset, whose running episode can be played again."""

    def __init__(self, env_id: str):
        self.env = make_mujoco_env(env_id)

    def reset(self, start: int | dict | None):
        """Start an episode from a seed, from random numbers as they were, or as they are; obs."""
        generator = self.env.unwrapped.np_random.bit_generator
        if isinstance(start, dict):
            generator.state = start
        self.start = generator.state if start is None else start
        self.actions, self.episode_return = [], 0.0
        return self.env.reset(seed=start if isinstance(start, int) else None)[0]

    def step(self, action: np.ndarray):
        """obs, reward, terminated, truncated, and (final obs, return, length) where it ended."""
        obs, reward, terminated, truncated, _ = self.env.step(action)
        self.actions.append(action)
        self.episode_return += float(reward)
        if not (terminated or truncated):
            return obs, reward, terminated, truncated, None
        final = obs, self.episode_return, len(self.actions)
        return self.reset(None), reward, terminated, truncated, final  # obs of the next episode

    def get_episode(self, _):
        """How the running episode started, and its actions since."""
        return self.start, np.array(self.actions)

    def replay(self, episode):
        """Play an episode again; the obs it comes to."""
        obs = self.reset(episode[0])
        for action in episode[1]:
            obs, *_ = self.step(action)
        return obs


def run_worker(pipe, parents_end, env_id: str, num_envs: int) -> None:
    """In a process of its own: have its environments do what comes through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends,
    parents_end.close()  # and with it the pipe: a forked process would keep it open
    with suppress(EOFError, ConnectionError):
        envs = [ReplayableEnv(env_id) for _ in range(num_envs)]
        while True:
            method, arguments = pipe.recv()
            pipe.send([getattr(env, method)(arg) for env, arg in zip(envs, arguments, strict=True)])


class MujocoVectorEnv(gym.vector.VectorEnv):
    """N environments, shared out between this process and its workers, with same-step autoreset.

    Bitwise equal to Gymnasium's SyncVectorEnv. (Its AsyncVectorEnv runs a process per environment,
    and waking 18 of them costs more than physics.)
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}

    def __init__(self, env_id: str, num_envs: int, num_workers: int):
        edges = np.linspace(0, num_envs, min(num_workers, num_envs) + 1).round().astype(int)
        self.num_envs, self.shares = num_envs, list(zip(edges, edges[1:], strict=False))
        self.own_envs = [ReplayableEnv(env_id) for _ in range(edges[1])]
        self.single_observation_space = self.own_envs[0].env.observation_space
        self.single_action_space = self.own_envs[0].env.action_space
        # A fork starts at once; these processes run no torch, whose threads a fork would miss.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.pipes = []  # a worker ends with its pipe: with this object, or this process
        for start, stop in self.shares[1:]:
            pipe, workers_end = context.Pipe()
            arguments = workers_end, pipe, env_id, stop - start
            context.Process(target=run_worker, args=arguments, daemon=True).start()
            workers_end.close()
            self.pipes.append(pipe)

    def call(self, method: str, arguments) -> list:
        """Call `method` of each environment with its row of `arguments`. Raises UserError."""
        own, *theirs = [arguments[start:stop] for start, stop in self.shares]
        try:
            for pipe, share in zip(self.pipes, theirs, strict=True):
                pipe.send((method, share))
            answers = [getattr(e, method)(a) for e, a in zip(self.own_envs, own, strict=True)]
            return answers + [answer for pipe in self.pipes for answer in pipe.recv()]
        except (EOFError, ConnectionError) as error:
            raise UserError("a process with environments has died; out of memory?") from error

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start new episodes, environment n from seed + n. Returns obs (N, D) and no infos."""
        seeds = [None if seed is None else seed + n for n in range(self.num_envs)]
        self.obs = np.array(self.call("reset", seeds))
        return self.obs, {}

    def step(self, actions: np.ndarray):
        """Actions (N, A) to obs (N, D), rewards, terminations, truncations (N,) and infos.

        infos["episodes"]: (n, return, length) of each that ended; infos["final_obs"][n]: its last
        observation. obs[n] is the first of the next one.
        """
        *arrays, finals = zip(*self.call("step", actions), strict=True)
        self.obs, rewards, terminations, truncations = map(np.array, arrays)
        ended = {n: final for n, final in enumerate(finals) if final}
        infos = {"episodes": [(n, *final[1:]) for n, final in ended.items()]}
        infos["final_obs"] = {n: final[0] for n, final in ended.items()}
        return self.obs, rewards, terminations, truncations, infos

    def state_dict(self) -> dict:
        """What it takes to play the running episodes again, and what they show."""
        episodes = self.call("get_episode", range(self.num_envs))
        episodes = [(start, torch.from_numpy(actions)) for start, actions in episodes]
        return {"episodes": episodes, "obs": torch.from_numpy(self.obs)}

    def load_state_dict(self, state: dict) -> None:
        """Play the running episodes again, up to where they were."""
        episodes = [(start, actions.numpy()) for start, actions in state["episodes"]]
        self.obs = np.array(self.call("replay", episodes))
        if not np.array_equal(self.obs, state["obs"].numpy()):
            print("WARNING: the running episodes do not replay to where they stopped")


# ------------------------------------------------------------------------------- Process
class PatientFile(io.FileIO):
    """A standard stream whose reader may go away: what it cannot take is dropped."""

    def write(self, data) -> int:
        with suppress(OSError):
            return super().write(data)
        return len(data)


def guard_process() -> None:
    """Have a run not depend on who reads its output, or whether anything does."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed stream is replaced, not left
        os.set_inheritable(number, True)  # to the next file that is opened
    for name, number in [("stdout", 1), ("stderr", 2)]:
        file = PatientFile(number, "w", closefd=False)
        setattr(sys, name, io.TextIOWrapper(file, errors="replace", write_through=True))
    threading.excepthook = lambda _: None  # TensorBoard's writer raises its error in `Run.log` too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    try:
        train(tyro.cli(Args, description=__doc__))
    except (UserError, OSError, ImportError, torch.OutOfMemoryError) as error:
        tqdm.write(f"{Path(__file__).stem}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    guard_process()
    main()
