"""Proximal Policy Distillation (PPD) on MuJoCo: a student learns from a teacher and from rewards.

    python ppd_mujoco.py --env-id Hopper-v4            # 2 M steps, larger student, shipped teacher
    python ppd_mujoco.py --student-size smaller --teacher runs/<run>/agent.safetensors
    python ppd_mujoco.py --resume runs/<run>           # continue a stopped run

Algorithm 1 of "Proximal Policy Distillation" (Spigler, TMLR 2025). The student is trained with PPO
on its own rollouts. One more term keeps it close to the teacher: the KL divergence between the two
policies, weighted with the importance ratio r, which is clipped from below (Equation 2):

    max  mean[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) + α·H(π_θ) − λ·KL(π_T ‖ π_θ)·max(r, 1−ε) ]

The method comes first: Args, losses, networks, training. The rest supports it: scoring, runs and
checkpoints, environments. `diff ppo_teacher_mujoco.py ppd_mujoco.py` shows what PPD adds to PPO.
T steps in N environments give B samples, M per minibatch; D numbers per observation, A per action.
"""

import importlib.metadata
import io
import json
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

# Idle torch threads sleep. By default they spin, which slows other processes on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
from filelock import FileLock, Timeout
from gymnasium.wrappers.utils import RunningMeanStd
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch.distributions import Independent, Normal, OneHotCategorical, kl_divergence
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    # Environment
    env_id: str = "Hopper-v4"  # Gymnasium id; paper: Ant, HalfCheetah, Hopper, Humanoid, Swimmer
    seed: int = 100  # seed of networks, sampling and environments; paper: 100, 200, 300, 400, 500
    num_envs: int = 18  # number of parallel environments, N (Table 3)
    num_workers: int = min(torch.get_num_threads(), 6)  # processes with environments, this included
    device: Literal["cpu", "cuda"] = "cpu"  # small networks: a GPU is no faster
    torch_threads: int = 1  # CPU threads of an update; try more for large networks on idle cores

    # PPO
    total_timesteps: int = 2_000_000  # environment steps in total, rounded up to whole rollouts
    num_steps: int = 64  # steps per environment and rollout, T (Appendix A.3)
    learning_rate: float = 3e-4  # Adam's learning rate, constant (Table 3)
    adam_eps: float = 1e-5  # Adam's ε (the authors' code)
    minibatch_size: int = 512  # samples per gradient step, M; an epoch's last minibatch has fewer
    update_epochs: int = 4  # passes over each rollout (Table 3)
    gamma: float | None = None  # discount γ; default: 0.995 for Hopper, Swimmer, else 0.999 (A.3)
    gae_lambda: float = 0.9  # λ of generalised advantage estimation (Table 3)
    clip_coef: float = 0.2  # clip range ε of the importance ratio (SB3's default)
    ent_coef: float = 0.0  # entropy coefficient α (Appendix A.3)
    vf_coef: float = 0.5  # coefficient of the value loss, c_v (SB3's default)
    max_grad_norm: float = 0.5  # gradient norm limit of policy and critic together (SB3's default)
    hidden_sizes: tuple[int, ...] | None = None  # hidden layers; default: set by --student-size

    # Distillation
    teacher: str | None = None  # path of its checkpoint; default: teachers/<env-id>.safetensors
    student_size: Literal["smaller", "same", "larger"] = "larger"  # layers 128 64, 256 256, 512 512
    distill_lambda: float = 1.0  # weight λ of the distillation loss; 0 is PPO
    distill_lambda_final: float | None = None  # λ changes linearly to this; default: constant
    distill_lambda_steps: int | None = None  # steps of that change; default: the whole run
    ratio_gradient: bool = True  # backpropagate through the KL's weight max(r, 1−ε), as Equation 2
    kl: Literal["forward", "reverse"] = "forward"  # KL(π_T ‖ π_θ), as the paper, or KL(π_θ ‖ π_T)
    pg_coef: float = 1.0  # weight of PPO's policy loss; 0 is distillation alone
    init: str | None = None  # agent.safetensors to start from, in place of new weights
    critic_warmup: int = 0  # steps at the start in which only the critic learns

    # Logging and checkpoints
    eval_every: int = 100_000  # steps between evaluations of ten episodes; 0: never
    episodes: int = 50  # episodes of the final score (Appendix A.3)
    save_every: float = 60.0  # seconds between checkpoints
    run_dir: str | None = None  # new folder; default: runs/<env>__<script>__<seed>__<time>
    resume: str | None = None  # folder of a stopped run to continue, without any other flag
    track: bool = False  # also log to Weights & Biases; needs `pip install wandb`

    def __post_init__(self):
        env_name = self.env_id.split(":")[-1]  # without the module that registers it
        if self.gamma is None:
            self.gamma = 0.995 if env_name.startswith(("Hopper-", "Swimmer-")) else 0.999
        if self.hidden_sizes is None:
            sizes = {"smaller": (128, 64), "same": (256, 256), "larger": (512, 512)}  # A.2, A.3
            self.hidden_sizes = sizes[self.student_size]


# ------------------------------------------------------------------------------- Losses
def compute_gae(rewards, values, next_values, terminations, ended, gamma, gae_lambda):
    """Generalised advantage estimation (Schulman et al., 2016); everything is (T, N).

    `next_values` are the values of the states that the steps led to. Where a time limit ended an
    episode, that is its final state, not the first of the next episode. Where an episode
    terminated, the value is not used. `ended` marks both kinds of end.
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
    """Scale a minibatch (M,) to mean 0 and deviation 1, as SB3; a single sample is not scaled."""
    if len(advantages) == 1:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def clipped_surrogate_loss(ratio, advantages, clip_coef):
    """PPO's clipped loss, −L_PPO of Equation 2: ratios r (M,) and advantages (M,) to a scalar."""
    # −mean[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) ]
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return -torch.min(ratio * advantages, clipped_ratio * advantages).mean()


def value_loss(values, targets):
    """Mean squared error of the critic, without a factor ½, as SB3: (M,) and (M,) to a scalar.

    Targets are returns R̂; in student-distill and teacher-distill, the teacher's values V_T.
    """
    # mean[ (V(s) − target)² ]
    return nn.functional.mse_loss(values, targets)  # warns if the shapes differ


def critic_backward(critic, norm_obs, returns, vf_coef):
    """Compute the gradients of c_v·(value loss) for a minibatch; returns the value loss."""
    v_loss = value_loss(critic(norm_obs).squeeze(-1), returns)
    (vf_coef * v_loss).backward()
    return v_loss.detach()


def policy_kl(teacher_dist, student_dist, direction):
    """KL divergence in each state, summed over action dimensions: M distributions to (M,)."""
    p, q = (teacher_dist, student_dist) if direction == "forward" else (student_dist, teacher_dist)
    if isinstance(p, OneHotCategorical):  # torch's own is infinite if a probability underflows to 0
        return (p.probs * (p.logits - q.logits)).sum(-1)
    return kl_divergence(p, q)


def distillation_loss(kl, ratio, clip_coef, ratio_gradient=True):
    """The distillation loss of Equation 2 without its factor λ: KL (M,) and r (M,) to a scalar.

    In Equation 2 the gradient flows through both factors: max(r, 1−ε)·∇KL + KL·∇r, where r > 1−ε.
    A state's KL is the same for every action, and the mean of ∇r over the rollout's actions is
    zero as long as no ratio is clipped, as in the first gradient step, where all are 1. So KL·∇r
    is noise there, which grows with the KL. `ratio_gradient=False` drops it: the weight is then a
    constant (docs/ratio_gradient.md).
    """
    if kl.shape != ratio.shape:  # would broadcast
        raise ValueError(f"KL {tuple(kl.shape)} and ratio {tuple(ratio.shape)} differ in shape")
    # mean[ KL·max(r, 1−ε) ]
    weight = ratio.clamp(min=1 - clip_coef)
    return (kl * (weight if ratio_gradient else weight.detach())).mean()


def lambda_at(step, last_start, args):
    """The weight λ of a rollout that starts at `step`; the last one starts at `last_start`."""
    if args.distill_lambda_final is None:
        return args.distill_lambda
    # λ changes linearly over --distill-lambda-steps, or over the whole run, and then stays.
    duration = args.distill_lambda_steps or max(last_start, 1)
    progress = min(1.0, step / duration)
    return args.distill_lambda + (args.distill_lambda_final - args.distill_lambda) * progress


# ------------------------------------------------------------------------------- Agent
class MujocoAgent(nn.Module):
    """Policy, critic and observation statistics.

    Methods take raw observations; the networks `actor` and `critic` take normalised ones. Actions
    that are floats have a Gaussian policy. Discrete actions are one-hot rows of integers, as
    `make_mujoco_env` prepares them. A teacher that convert.py imported can have another activation,
    and other layers in its critic than in its policy.
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
        self.register_buffer("obs_clip", torch.tensor(10.0))  # can differ in imported teachers

    def normalize(self, obs) -> torch.Tensor:
        """Scale raw observations (B, D) to mean 0 and variance 1, and clip (SB3's VecNormalize)."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.obs_mean.device)
        mean, var = self.obs_mean.float(), self.obs_var.float()
        return ((obs - mean) * (var + 1e-8).rsqrt()).clamp(-self.obs_clip, self.obs_clip)

    def distribution(self, means: torch.Tensor) -> Independent | OneHotCategorical:
        """The policy for given means, or logits, (B, A). Its log_prob, entropy and KL are (B,)."""
        if not self.action_low.is_floating_point():  # discrete actions
            return OneHotCategorical(logits=means, validate_args=False)
        std = self.log_std.exp().expand_as(means)
        return Independent(Normal(means, std, validate_args=False), 1, validate_args=False)

    def policy(self, obs) -> Independent | OneHotCategorical:
        """π(· | s) for raw observations (B, D)."""
        return self.distribution(self.actor(self.normalize(obs)))

    def value(self, obs) -> torch.Tensor:
        """V(s), (B,), for raw observations (B, D)."""
        return self.critic(self.normalize(obs)).squeeze(-1)

    def env_actions(self, actions: torch.Tensor) -> np.ndarray:
        """Actions (B, A), clipped to the environment's bounds."""
        return actions.clamp(self.action_low, self.action_high).cpu().numpy()

    @torch.no_grad()
    def act(self, obs, deterministic: bool = True) -> np.ndarray:
        """Actions (B, A) for raw observations (B, D): the policy's mode, or samples."""
        dist = self.policy(obs)
        return self.env_actions(dist.mode if deterministic else dist.sample())


# ------------------------------------------------------------------------------- Training
def learn(args: Args, run: "Run") -> dict:
    """Distil a teacher with PPD and score both; returns the content of result.json."""
    T, N, B = args.num_steps, args.num_envs, args.num_steps * args.num_envs
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # for acting on a few observations; an update uses torch_threads
    torch.distributions.Distribution.set_default_validate_args(False)  # Run.log checks for NaN
    # Run is an ExitStack: it closes at the end what it has entered.
    envs = run.enter_context(MujocoVectorEnv(args.env_id, N, args.num_workers))
    eval_envs = run.enter_context(MujocoVectorEnv(args.env_id, 10, args.num_workers))
    action_space, (obs_dim,) = envs.single_action_space, envs.single_observation_space.shape
    envs.reset(seed=args.seed)

    env_name = args.env_id.split(":")[-1]  # without the module that registers it
    path = args.teacher or Path(__file__).parent / "teachers" / f"{env_name}.safetensors"
    teacher, teacher_header = load_mujoco_agent(path, envs)
    teacher.to(args.device)
    agent = MujocoAgent(action_space.low, action_space.high, obs_dim, args.hidden_sizes)
    agent.to(args.device)
    # As in the paper, the student uses the teacher's observation statistics, which never change.
    for name in ("obs_mean", "obs_var", "obs_count", "obs_clip"):
        agent.get_buffer(name).copy_(teacher.get_buffer(name))
    if args.init:
        load_start(args.init, agent, envs)
    adam = {"lr": args.learning_rate, "eps": args.adam_eps, "fused": True}
    optimizer = torch.optim.Adam(agent.parameters(), **adam)
    normalize_reward = RewardNormalizer(N)
    # Each thread has its own number of torch threads.
    options = {"initializer": torch.set_num_threads, "initargs": (args.torch_threads,)}
    critic_thread = run.enter_context(ThreadPoolExecutor(1, **options))
    header = {"suite": "mujoco", "hidden_sizes": args.hidden_sizes}
    header["deterministic"] = True  # evaluate.py scores it by the policy's mode
    parts = {"agent": agent, "optimizer": optimizer, "envs": envs, "rewards": normalize_reward}
    if run.step == 0:
        print("teacher:", score_text(evaluate(teacher, eval_envs, 10, args.seed)), "(10 episodes)")
    run.start(header, parts, teacher_header)  # also restores the parts of a resumed run

    obs = torch.zeros((T, N, obs_dim), device=args.device)  # raw, as the environments give them
    means = torch.zeros((T, N, *action_space.shape), device=args.device)  # outputs of the policy
    actions = torch.zeros((T, N, *action_space.shape), device=args.device)
    rewards = np.zeros((T, N))
    terminations, truncations = np.zeros((2, T, N), dtype=bool)
    # The first observations: of the reset above or, in a resumed run, where the replay ended.
    next_obs = envs.obs
    while run.step < run.total:
        # Collect a rollout with the current policy.
        episodes, final_obs = [], []
        with torch.no_grad():
            for t in range(T):
                obs[t] = torch.as_tensor(next_obs)
                means[t] = agent.actor(agent.normalize(obs[t]))
                actions[t] = agent.distribution(means[t]).sample()
                env_step = envs.step(agent.env_actions(actions[t]))
                next_obs, rewards[t], terminations[t], truncations[t], infos = env_step
                episodes += infos["episodes"]
                final_obs += [infos["final_obs"][n] for n in np.flatnonzero(truncations[t])]

            # Advantages. A time limit is not a terminal state: bootstrap from the final state.
            torch.set_num_threads(args.torch_threads)
            b_norm_obs = agent.normalize(obs.flatten(0, 1))  # (B, D)
            b_actions = actions.flatten(0, 1)  # (B, A)
            b_logprobs = agent.distribution(means.flatten(0, 1)).log_prob(b_actions)  # (B,)
            values = agent.critic(b_norm_obs).view(T, N)
            next_values = torch.cat([values[1:], agent.value(next_obs)[None]])
            if final_obs:  # in the order of `truncations`: by step, then by environment
                next_values[truncations] = agent.value(np.array(final_obs))
            ended = terminations | truncations
            scaled_rewards = torch.from_numpy(normalize_reward(rewards, ended)).float()
            advantages = compute_gae(  # on the CPU, because a GPU is slow at many small steps
                scaled_rewards, values.cpu(), next_values.cpu(), torch.from_numpy(terminations),
                torch.from_numpy(ended), args.gamma, args.gae_lambda,
            ).to(args.device)  # fmt: skip
            b_advantages, b_returns = advantages.flatten(), (advantages + values).flatten()  # (B,)
            # The teacher is asked once per rollout, not in each epoch: its answers do not change.
            b_teacher_means = teacher.actor(teacher.normalize(obs.flatten(0, 1)))  # (B, A)

        # Update policy and critic: several epochs over shuffled minibatches.
        metrics, distill_lambda = [], lambda_at(run.step, run.total - B, args)
        for _ in range(args.update_epochs):
            for mb in torch.randperm(B, device=args.device).split(args.minibatch_size):
                # Policy and critic share no parameter: their gradients are computed side by side.
                critic_future = critic_thread.submit(
                    critic_backward, agent.critic, b_norm_obs[mb], b_returns[mb], args.vf_coef
                )
                dist = agent.distribution(agent.actor(b_norm_obs[mb]))
                teacher_dist = teacher.distribution(b_teacher_means[mb])
                logratio = dist.log_prob(b_actions[mb]) - b_logprobs[mb]
                ratio = logratio.exp()
                mb_advantages = normalize_advantages(b_advantages[mb])
                pg_loss = clipped_surrogate_loss(ratio, mb_advantages, args.clip_coef)
                entropy = dist.entropy().mean()
                kl = policy_kl(teacher_dist, dist, args.kl)
                distill_loss = distillation_loss(kl, ratio, args.clip_coef, args.ratio_gradient)
                # Equation 2, negated, with a weight for the first term, which is 1 in the paper
                loss = args.pg_coef * pg_loss - args.ent_coef * entropy
                loss = loss + distill_lambda * distill_loss
                if run.step >= args.critic_warmup:  # before, Adam skips the policy: no gradients
                    loss.backward()
                v_loss = critic_future.result()
                grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                metrics.append({
                    "losses/policy_loss": pg_loss.detach(),
                    "losses/value_loss": v_loss,
                    "losses/entropy": entropy.detach(),
                    "losses/grad_norm": grad_norm,
                    "losses/approx_kl": (ratio - 1 - logratio).detach().mean(),
                    "losses/clipfrac": ((ratio - 1).abs() > args.clip_coef).float().mean(),
                    "distill/kl": kl.detach().mean(),
                    "distill/loss": (distill_lambda * distill_loss).detach(),
                })  # fmt: skip
        torch.set_num_threads(1)
        run.step += B
        explained = 1 - ((b_returns - values.flatten()).var() / b_returns.var()).item()
        scalars = {"losses/explained_variance": explained, "distill/lambda": distill_lambda}
        run.log(metrics, scalars, episodes)
        # Once every eval_every steps, at the first rollout that reaches a multiple of it.
        if args.eval_every and run.step % args.eval_every < B:
            run.log_evaluation(evaluate(agent, eval_envs, 10, args.seed))
        run.save_if_due()

    # The final scores, by the paper's protocol (Appendix A.3).
    run.bar.close()
    score = evaluate(agent, eval_envs, args.episodes, args.seed)
    teacher_score = evaluate(teacher, eval_envs, args.episodes, args.seed)
    result = run.finish(score=score, teacher_score=teacher_score)
    print(compare_scores(score, teacher_score))
    return result


# ------------------------------------------------------------------------------- Layers
def layer_init(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights and zero biases, as SB3."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def make_mlp(inputs: int, hidden_sizes, outputs: int, gain: float, activation="relu"):
    """Linear layers with activations between them; `gain` initialises the last layer."""
    activate = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU}[activation]
    layers = []
    for hidden in hidden_sizes:
        layers += [layer_init(nn.Linear(inputs, hidden)), activate()]
        inputs = hidden
    return nn.Sequential(*layers, layer_init(nn.Linear(inputs, outputs), gain))


# ------------------------------------------------------------------------------- Scoring, rewards
def evaluate(agent, envs, episodes: int, seed: int, deterministic: bool = True) -> dict:
    """Play whole episodes; returns the mean return, its standard error, all returns and lengths."""
    # Each environment plays a fixed number of episodes, as equal as possible. Counting the first
    # episodes that end, in any environment, would favour short ones.
    quota = [len(share) for share in np.array_split(np.arange(episodes), envs.num_envs)]
    played = [[] for _ in quota]
    bar = tqdm(total=episodes, desc="scoring", unit="episode", leave=False, delay=10)
    gpus = [0] if torch.cuda.is_initialized() else []
    with bar, torch.random.fork_rng(gpus):  # training goes on with the random state it had
        torch.manual_seed(10_000 + seed)
        obs, _ = envs.reset(seed=10_000 + seed)
        while sum(map(len, played)) < episodes:
            obs, *_, infos = envs.step(agent.act(obs, deterministic))
            for n, episode_return, length in infos["episodes"]:
                if len(played[n]) < quota[n]:
                    played[n].append((episode_return, length))
                    bar.update()
    played = sum(played, [])  # one list, ordered by environment
    returns, lengths = [r for r, _ in played], [length for _, length in played]
    error = statistics.stdev(returns) / episodes**0.5 if episodes > 1 else None
    score = {"mean": statistics.fmean(returns), "standard_error": error, "episodes": episodes}
    return score | {"returns": returns, "lengths": lengths}


def score_text(score: dict) -> str:
    """Mean ± standard error."""
    error = score["standard_error"]
    return f"{score['mean']:.1f} " + ("(n=1)" if error is None else f"± {error:.1f}")


def compare_scores(score: dict, teacher_score: dict) -> str:
    """Both scores, and the student's as a fraction of the teacher's if that is positive."""
    text = f"student {score_text(score)} · teacher {score_text(teacher_score)}"
    student, teacher = score["mean"], teacher_score["mean"]
    if teacher <= 0:
        return f"{text} · difference {student - teacher:+.1f}"
    errors = [s["standard_error"] for s in (score, teacher_score)]
    if None in errors:  # of a single episode
        return f"{text} · fraction {student / teacher:.3f}"
    # The standard error of a quotient of two independent means, to first order
    error = math.hypot(errors[0], errors[1] * student / teacher) / teacher
    return f"{text} · fraction {student / teacher:.3f} ± {error:.3f}"


class RewardNormalizer:
    """Divides rewards by the running deviation of the discounted return, as SB3's VecNormalize."""

    def __init__(self, num_envs: int):
        self.returns = np.zeros(num_envs)  # discounted
        self.moments = RunningMeanStd()

    def __call__(self, rewards: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """Scale the rewards of a rollout (T, N), step by step."""
        scaled = np.zeros_like(rewards)
        for t in range(len(rewards)):
            self.returns = 0.99 * self.returns + rewards[t]  # VecNormalize's default γ
            self.moments.update(self.returns)
            scaled[t] = rewards[t] / np.sqrt(self.moments.var + 1e-8)
            self.returns[ended[t]] = 0
        return scaled.clip(-10, 10)

    def state_dict(self) -> dict:
        moments = float(self.moments.mean), float(self.moments.var), self.moments.count
        return {"returns": torch.from_numpy(self.returns), "moments": moments}

    def load_state_dict(self, state: dict) -> None:
        self.returns = state["returns"].numpy()
        self.moments.mean, self.moments.var, self.moments.count = state["moments"]


# ------------------------------------------------------------------------------- Runs, checkpoints
class UserError(Exception):
    """A mistake that the user can fix: `main` prints it in one line, without a traceback."""


class Run(ExitStack):
    """The folder of a run: its logs and checkpoints. It closes all that was opened for the run.

    agent.safetensors is the policy. training_state.pt is everything that the rest of the run
    depends on: a resumed run ends with the same weights, bit for bit (same CPU and packages).
    """

    def __init__(self, args, subcommand: str = ""):
        """Name the folder of a new run, or read the checkpoint of the run to resume.

        `subcommand` is the suite in `student_distill.py mujoco`; the other scripts have none.
        """
        super().__init__()
        args = plain_args(args)
        check_args(args)
        self.script = Path(__file__).stem
        self.command = f"python {self.script}.py {subcommand}".strip()
        self.history = {"steps": 0, "seconds": 0.0, "curve": [], "evaluations": []}
        if args.resume is not None:
            if args != plain_args(type(args)(resume=args.resume)):  # another flag is set
                raise UserError("--resume takes no other flag: a run keeps its own arguments")
            self.folder = Path(args.resume)
            self.state = read_training_state(self.folder, self.command, args)
            self.args, self.history = type(args)(**self.state["args"]), self.state["history"]
        else:
            self.state, self.args = None, args
            name = f"{args.env_id}__{self.script}__{args.seed}__{datetime.now():%Y%m%d-%H%M%S-%f}"
            name = name.replace("/", "-").replace(":", "-")
            self.folder = Path(args.run_dir or f"runs/{name}")
            check_new_folder(self.folder)
        if self.args.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU; use --device cpu")
        rollout = self.args.num_envs * self.args.num_steps
        self.total = math.ceil(self.args.total_timesteps / rollout) * rollout
        self.step = self.history["steps"]  # environment steps so far
        self.callback(torch.set_num_threads, torch.get_num_threads())  # restore it on exit

    def start(self, header: dict, parts: dict, teacher_header: dict | None = None) -> None:
        """Lock the folder, restore a resumed run, and begin to log.

        `header` describes the agent. `parts` are all objects whose state_dict is saved.
        """
        wandb = importlib.import_module("wandb") if self.args.track else None
        self.folder.mkdir(parents=True, exist_ok=True)
        # On a file system without locks this fails, instead of letting two processes write.
        lock = FileLock(self.folder / "lock", timeout=0, fallback_to_soft=False)
        try:
            self.enter_context(lock)
        except Timeout as error:
            advice = "another process is training this run; wait for it or stop it"
            raise UserError(f"{self.folder}: {advice}") from error
        except OSError as error:
            advice = "choose a --run-dir on a local disk"
            raise UserError(f"{self.folder}: cannot be locked ({error}); {advice}") from error
        env_id = self.args.env_id.split(":")[-1]  # without the module that registers it
        self.header = {"format": "ppd-agent-2", "script": self.script, "env_id": env_id}
        self.header |= {"seed": self.args.seed, **header}
        self.parts = parts
        self.can_continue = True  # False after a NaN, which a resumed run would only repeat
        self.saved_at = self.started_at = time.monotonic()
        self.first_step = self.step
        if teacher_header and teacher_header["env_id"] != env_id:
            print(f"WARNING: the teacher was trained in {teacher_header['env_id']}")

        if self.state is not None:
            if self.history["teacher"] != teacher_header:
                raise UserError(f"{self.folder}: its teacher has changed; put the first one back")
            for name, part in parts.items():
                part.load_state_dict(self.state[name])
            torch.set_rng_state(self.state["torch_rng"])
            if self.args.device == "cuda":
                torch.cuda.set_rng_state(self.state["cuda_rng"])
        else:
            self.history["teacher"] = teacher_header
            self.save()

        if wandb:
            names = {"dir": self.folder, "name": self.folder.name, "resume": "auto"}
            wandb.init(config=vars(self.args), sync_tensorboard=True, **names)
            self.callback(wandb.finish)  # so that the next run of this process is a separate one
        self.writer = SummaryWriter(str(self.folder), purge_step=self.step + 1)
        self.callback(self.writer.close)
        rows = "\n".join(f"|{name}|{value}|" for name, value in vars(self.args).items())
        self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        self.push(self.say_how_to_continue)  # to be called at the end, with the error if any
        print(f"if stopped, continue with: {self.command} --resume {self.folder}")
        bar = {"unit": " steps", "unit_scale": True, "mininterval": 5}
        self.bar = self.enter_context(tqdm(total=self.total, initial=self.step, **bar))

    def say_how_to_continue(self, error_type, error, traceback) -> None:
        """Print the command to resume, if the run ends by an error or Ctrl-C."""
        if error_type is not None and self.can_continue:
            print(f"stopped; continue with: {self.command} --resume {self.folder}")

    def log(self, metrics: list[dict], scalars: dict, episodes: list) -> None:
        """Log the mean metrics of gradient steps, other scalars, and the episodes that ended.

        Raises UserError if a loss or a weight is NaN or infinite, before that is saved.
        """
        means = {name: torch.stack([m[name] for m in metrics]).mean().item() for name in metrics[0]}
        weights = torch.cat([p.flatten() for p in self.parts["agent"].parameters()])
        self.can_continue = bool(weights.isfinite().all() and np.isfinite([*means.values()]).all())
        if not self.can_continue:  # resuming would end in the same NaN
            advice = "start a new run with a lower --learning-rate"
            raise UserError(f"{self.folder}: NaN or infinite loss at step {self.step}; {advice}")
        seconds = time.monotonic() - self.started_at
        scalars = means | scalars | {"charts/SPS": (self.step - self.first_step) / seconds}
        if episodes:
            mean_return = statistics.fmean(episode_return for _, episode_return, _ in episodes)
            mean_length = statistics.fmean(length for _, _, length in episodes)
            scalars["charts/episodic_return"] = mean_return
            scalars["charts/episodic_length"] = mean_length
            self.history["curve"].append([self.step, mean_return, len(episodes)])
            self.bar.set_postfix_str(f"return in training {mean_return:.1f}", refresh=False)
        self.bar.update(self.step - self.bar.n)
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, self.step)

    def log_evaluation(self, score: dict, kind: str = "") -> None:
        """Log the score of an evaluation during training; keep the policy that scored best.

        `kind` names a second curve: Procgen is also evaluated on its training levels.
        """
        points = self.history.setdefault(f"evaluations{kind}", [])
        points.append([self.step, score["mean"], score["standard_error"]])
        self.writer.add_scalar(f"eval/return{kind}", score["mean"], self.step)
        if not kind and score["mean"] >= max(mean for _, mean, _ in points):
            self.save_agent("best.safetensors")

    def save_if_due(self) -> None:
        """Save a checkpoint if the last is --save-every seconds old, or training is complete."""
        if time.monotonic() - self.saved_at >= self.args.save_every or self.step >= self.total:
            self.save()

    def save(self) -> None:
        """Write agent.safetensors and training_state.pt."""
        now = time.monotonic()
        self.history["steps"] = self.step
        self.history["seconds"] += now - self.saved_at
        self.saved_at = now
        self.save_agent("agent.safetensors")
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"command": self.command, "args": asdict(self.args), "history": self.history}
        state["torch_rng"] = torch.get_rng_state()
        state["cuda_rng"] = torch.cuda.get_rng_state() if self.args.device == "cuda" else None
        torch.save(state, buffer := io.BytesIO())
        write_file(self.folder / "training_state.pt", buffer.getvalue())

    def save_agent(self, name: str) -> None:
        """Write the present policy."""
        header = self.header | {"steps": self.step}
        write_file(self.folder / name, pack_agent(self.parts["agent"].state_dict(), header))

    def finish(self, **scores) -> dict:
        """Write the final checkpoint, with its scores, and result.json; returns the latter."""
        for name, score in scores.items():
            if name in ("score", "score_training"):  # Procgen has both
                self.header[name] = {k: v for k, v in score.items() if not isinstance(v, list)}
        self.saved_at = time.monotonic()  # the final scoring is not training time
        self.save()
        result = {"script": self.script, "args": asdict(self.args), **self.history, **scores}
        result["steps_per_second"] = self.step / self.history["seconds"]
        result["versions"] = {d.name: d.version for d in importlib.metadata.distributions()}
        git = f"git -C '{Path(__file__).parent}' describe --always --dirty --abbrev=12 2>/dev/null"
        result["git_commit"] = subprocess.getoutput(git)
        write_file(self.folder / "result.json", json.dumps(result).encode())
        return result


def check_args(args) -> None:
    """Raises UserError for values that would train nonsense, or fail only at the end.

    It knows the flags of all scripts, of which each has some.
    """
    may_be_0 = {"seed", "gamma", "gae_lambda", "ent_coef", "vf_coef", "pg_coef", "critic_warmup"}
    may_be_0 |= {"distill_lambda", "distill_lambda_final", "eval_every", "save_every"}
    may_be_0 |= {"start_level"}
    for name, value in vars(args).items():
        flag = f"--{name.replace('_', '-')}"
        if value in ("", []):  # as from an unset variable of the shell
            raise UserError(f"{flag} is empty; give a value, or leave the flag out")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            highest = 1 if name in ("gamma", "gae_lambda") else sys.float_info.max
            if not 0 <= number <= highest or (number == 0 and name not in may_be_0):
                lowest = "at least 0" if name in may_be_0 else "above 0"
                limit = " and at most 1" if highest == 1 else ""
                raise UserError(f"{flag} {number}: must be {lowest}{limit}")


def plain_args(args):
    """The arguments as numbers, strings and lists, which can be saved, with full paths.

    Code that calls `train` may give Paths and NumPy numbers. Raises UserError for other types.
    """

    def convert(value):
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, np.generic | np.ndarray | torch.Tensor):
            return value.tolist()
        raise UserError(f"argument {value!r}: give a number, a string, or a tuple of numbers")

    args = type(args)(**json.loads(json.dumps(vars(args), default=convert)))
    for name in ("teacher", "init"):  # to be found when resumed from another directory
        if getattr(args, name, None):
            setattr(args, name, os.path.abspath(getattr(args, name)))
    return args


def check_new_folder(folder: Path) -> None:
    """Raises UserError if a new run cannot begin in this folder."""
    if (folder / "training_state.pt").exists():
        raise UserError(f"{folder} has a run; continue it with --resume, or give another --run-dir")
    # A run that was stopped before its first checkpoint leaves only these.
    ours = {"lock", "agent.safetensors", "agent.safetensors.partial", "training_state.pt.partial"}
    if folder.exists() and {path.name for path in folder.iterdir()} - ours:
        raise UserError(f"{folder} is not empty; give another --run-dir")


def pack_agent(tensors: dict, header: dict) -> bytes:
    """The content of an agent.safetensors."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return to_safetensors(tensors, {"header": json.dumps(header, sort_keys=True)})


def write_file(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a killed process never leaves half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def read_training_state(folder: Path, command: str, args) -> dict:
    """The checkpoint of a stopped run. Raises UserError if it cannot be resumed."""
    path = folder / "training_state.pt"
    if (folder / "result.json").exists():
        raise UserError(f"--resume {folder}: this run is finished; score it with evaluate.py")
    if not path.exists():
        advice = f"start it again, with --run-dir {folder}"
        raise UserError(f"--resume {folder}: training_state.pt is missing; {advice}")
    try:
        if zipfile.ZipFile(path).testzip() is not None:  # torch.load does not verify checksums
            raise ValueError("wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
        found, names = state["command"], state["args"].keys()
    except Exception as error:  # torch.load raises many types
        raise UserError(f"--resume {folder}: training_state.pt is damaged") from error
    if found != command:
        raise UserError(f"--resume {folder}: resume this run with `{found}`")
    if names != vars(args).keys():
        advice = "use the version that began this run"
        raise UserError(f"--resume {folder}: another version of {command}; {advice}")
    return state


def read_agent(path: str | Path, suite: str) -> tuple[dict, dict]:
    """Tensors and header of an agent.safetensors, which cannot hold code. Raises UserError."""
    path = Path(path) / "agent.safetensors" if Path(path).is_dir() else Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("header", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        advice = f"train a teacher with ppo_teacher_{suite}.py"
        if path.exists():
            advice = "if another library wrote it, use convert.py import"
        raise UserError(f"{path}: not an agent.safetensors ({error}); {advice}") from error
    if header.get("format") != "ppd-agent-2" or header.get("suite") != suite:
        found = f"is an agent for {header.get('suite')} in format {header.get('format')}"
        raise UserError(f"{path}: {found}; give one for {suite} in format ppd-agent-2")
    for name, tensor in tensors.items():
        if (
            not name.startswith("action_") and not tensor.isfinite().all()
        ):  # MuJoCo's bounds may be infinite
            raise UserError(f"{path}: {name} holds NaN or infinite numbers")
    return tensors, header


def load_mujoco_agent(path, envs=None) -> tuple[MujocoAgent, dict]:
    """A frozen agent and its header. Raises UserError if it does not fit `envs`, where given."""
    tensors, header = read_agent(path, "mujoco")
    low, high, obs_dim = tensors["action_low"], tensors["action_high"], len(tensors["obs_mean"])
    if envs is not None:
        box = envs.single_action_space
        # Numbers of observations and of actions, and whether actions are continuous
        needed = (*envs.single_observation_space.shape, *box.shape, box.dtype.kind == "f")
        if (obs_dim, len(low), low.is_floating_point()) != needed:
            sizes = f"{obs_dim} observations, {len(low)} actions"
            advice = f"give --env-id {header['env_id']}, or another file"
            raise UserError(f"{path}: is for {header['env_id']} ({sizes}); {advice}")
    imported = {key: header[key] for key in ("activation", "critic_sizes") if key in header}
    agent = MujocoAgent(low, high, obs_dim, header["hidden_sizes"], **imported)
    tensors.setdefault("obs_clip", agent.obs_clip)  # missing in files of early versions
    if "critic.0.bias" not in tensors:
        agent.critic = None  # an imported teacher may have no critic
    try:
        agent.load_state_dict(tensors)
    except RuntimeError as error:  # the header describes other layers
        raise UserError(f"{path}: {error}") from error
    return agent.eval().requires_grad_(False), header


def load_start(path, agent: MujocoAgent, envs) -> None:
    """Give `agent` the policy and statistics of another agent, and its critic if that fits.

    Raises UserError if the policies have different layers.
    """
    start, header = load_mujoco_agent(path, envs)
    activation = header.get("activation", "relu")
    if not have_same_layers(start.actor, agent.actor) or activation != "relu":
        sizes = " ".join(map(str, header["hidden_sizes"]))
        advice = f"give --hidden-sizes {sizes}"
        if activation != "relu":
            advice = f"this script's networks have relu, not {activation}"
        raise UserError(f"--init {path}: has a policy of hidden layers {sizes}; {advice}")
    if not have_same_layers(start.critic, agent.critic):
        start.critic = None
    agent.load_state_dict(start.state_dict(), strict=False)


def have_same_layers(network: nn.Module | None, other: nn.Module) -> bool:
    """Whether the weights of one network fit the other."""
    shapes = [parameter.shape for parameter in other.parameters()]
    return network is not None and [weights.shape for weights in network.parameters()] == shapes


# ------------------------------------------------------------------------------- Environments
def make_mujoco_env(env_id: str, **options) -> gym.Env:
    """An environment with flat observations and actions. Raises UserError for other ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to use v5; the paper uses v4
        try:
            env = gym.make(env_id, disable_env_checker=True, **options)
        except (gym.error.Error, ImportError, ValueError) as error:
            reason = error.__cause__ or error  # the cause can name a missing system library
            raise UserError(f"--env-id {env_id}: {reason}; try Hopper-v4") from error
    if env.spec.id != env_id.split(":")[-1]:  # without a version Gymnasium takes the latest
        raise UserError(f"--env-id {env_id}: which version? Give {env.spec.id}, or an older one")
    actions = env.action_space
    if isinstance(actions, gym.spaces.Discrete):  # the agent gives it as a one-hot row
        one_hot = gym.spaces.Box(0, 1, (int(actions.n),), np.int8)
        env = gym.wrappers.TransformAction(env, lambda row: actions.start + row.argmax(), one_hot)
    for space in (env.observation_space, env.action_space):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise UserError(f"--env-id {env_id}: has {space}; use flat Boxes of floats or Discrete")
    if isinstance(actions, gym.spaces.Box) and actions.dtype.kind != "f":
        raise UserError(f"--env-id {env_id}: has {actions}; use flat Boxes of floats or Discrete")
    return env


class EnvGroup:
    """The environments of one process. Each is reset in the step that ends its episode."""

    def __init__(self, make_envs: list):
        self.envs = [make_env() for make_env in make_envs]
        box = self.envs[0].observation_space
        self.obs = np.zeros((len(self.envs), *box.shape), box.dtype)

    def random_state(self, n: int) -> dict | None:
        """The state of an environment's random numbers; None if they are not NumPy's Generator."""
        generator = getattr(self.envs[n].unwrapped.np_random, "bit_generator", None)
        return None if generator is None else generator.state

    def reset(self, seeds: list) -> tuple:
        """Start episodes, each from its seed or, for None, from the present random state.

        Returns obs (n, D) and, for each, the random state from before its reset.
        """
        states = []
        for n, (env, seed) in enumerate(zip(self.envs, seeds, strict=True)):
            states.append(self.random_state(n))
            self.obs[n], _ = env.reset(seed=seed)
        return self.obs, states

    def replay(self, episodes: list) -> tuple:
        """Repeat recorded episodes. Gives obs (n, D) and each episode's return so far.

        An episode is (start, actions); start is a seed, a random state, or None if not known.
        """
        returns = []
        for n, (env, (start, actions)) in enumerate(zip(self.envs, episodes, strict=True)):
            if isinstance(start, dict):
                env.unwrapped.np_random.bit_generator.state = start
            self.obs[n], _ = env.reset(seed=start if isinstance(start, int) else None)
            returns.append(0.0)
            for action in actions:
                self.obs[n], reward, terminated, truncated, _ = env.step(action)
                returns[n] += np.asarray(reward).item()
                # The recorded episode did not end here: the simulator does not repeat itself.
                if terminated or truncated:
                    self.obs[n], _ = env.reset()
        return self.obs, returns

    def step(self, actions: np.ndarray) -> tuple:
        """Actions (n, A) to obs (n, D), rewards, terminations and truncations (n,), and `ends`.

        For each episode that ended, `ends` has its last observation and the random state from
        which the next one started. obs then is the first of the next one.
        """
        rewards, ends = np.zeros(len(self.envs)), {}
        terminations, truncations = np.zeros((2, len(self.envs)), dtype=bool)
        for n, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            self.obs[n], reward, terminations[n], truncations[n], _ = env.step(action)
            rewards[n] = np.asarray(reward).item()  # some environments give an array
            if terminations[n] or truncations[n]:
                ends[n] = self.obs[n].copy(), self.random_state(n)
                self.obs[n], _ = env.reset()
        return self.obs, rewards, terminations, truncations, ends


def run_worker(pipe, parent_pipe, make_envs: list) -> None:
    """The main function of a worker process: call methods of its EnvGroup on request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the main process, then this one
    # This process inherited a copy of the parent's end of the pipe. While that is open, recv()
    # would wait for ever, instead of raising EOFError, when the parent has ended. Workers that
    # started later hold copies as well, so the workers end from the last to the first.
    parent_pipe.close()
    with suppress(EOFError, ConnectionError):
        try:
            group = EnvGroup(make_envs)
            while True:
                method, argument = pipe.recv()
                pipe.send((getattr(group, method)(argument), None))
        except Exception as error:
            pipe.send((None, f"{type(error).__name__}: {error}"))
            raise


class MujocoVectorEnv(gym.vector.VectorEnv):
    """N environments in this process and worker processes, with same-step autoreset.

    It equals Gymnasium's SyncVectorEnv, bit for bit. AsyncVectorEnv is slower: it has a process per
    environment, and to wake 18 of them takes longer than the physics.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}

    def __init__(self, env_id: str, num_envs: int, num_workers: int):
        self.env_id = env_id
        self.start_workers([partial(make_mujoco_env, env_id)] * num_envs, num_workers)

    def start_workers(self, make_envs: list, num_workers: int) -> None:
        """Make the environments, by a function for each, in this process and in workers."""
        if multiprocessing.current_process().daemon:
            num_workers = 1  # a worker of multiprocessing.Pool cannot start processes
        self.num_envs, self.pipes = len(make_envs), []
        count = min(num_workers, self.num_envs)
        edges = np.linspace(0, self.num_envs, count + 1).round().astype(int)
        self.shares = [slice(start, stop) for start, stop in pairwise(edges)]
        self.own_group = EnvGroup(make_envs[self.shares[0]])
        self.single_observation_space = self.own_group.envs[0].observation_space
        self.single_action_space = self.own_group.envs[0].action_space
        for share in self.shares[1:]:
            pipe, worker_pipe = multiprocessing.Pipe()
            worker_args = worker_pipe, pipe, make_envs[share]
            multiprocessing.Process(target=run_worker, args=worker_args, daemon=True).start()
            worker_pipe.close()
            self.pipes.append(pipe)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close_extras(self, **kwargs):
        """End the worker processes."""
        for pipe in self.pipes:
            pipe.close()

    def call(self, method: str, arguments) -> list:
        """Call a method of each group with its share of the arguments; returns their answers."""
        own_arguments, *others = [arguments[share] for share in self.shares]
        try:
            for pipe, part in zip(self.pipes, others, strict=True):
                pipe.send((method, part))
            answers = [getattr(self.own_group, method)(own_arguments)]
            for pipe in self.pipes:
                answer, error = pipe.recv()
                if error:
                    advice = "--num-workers 1 shows where"
                    raise UserError(f"{self.env_id} failed in a worker process: {error}; {advice}")
                answers.append(answer)
        except (EOFError, ConnectionError) as error:
            raise UserError("an environment process was killed; is memory short?") from error
        return answers

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start new episodes, environment n with seed + n. Returns obs (N, D) and no infos."""
        seeds = [None if seed is None else seed + n for n in range(self.num_envs)]
        obs, states = zip(*self.call("reset", seeds), strict=True)
        self.obs = np.concatenate(obs)
        self.check_finite("observation", self.obs)
        # The running episodes: how each started, its actions and its return so far.
        self.starts = sum(states, []) if seed is None else seeds
        self.actions = [[] for _ in seeds]
        self.returns = np.zeros(self.num_envs)
        return self.obs, {}

    def step(self, actions: np.ndarray):
        """Actions (N, A) to obs (N, D), rewards, terminations and truncations (N,), and infos.

        infos["episodes"] lists (n, return, length) of the episodes that just ended. For each such
        n, infos["final_obs"][n] is its last observation and obs[n] the next episode's first.
        Raises UserError for observations and rewards that are NaN or infinite.
        """
        for n, action in enumerate(actions.copy()):  # environments may change what they are given
            self.actions[n].append(action)
        # One tuple per process becomes one tuple per array.
        *arrays, ends = zip(*self.call("step", actions), strict=True)
        self.obs, rewards, terminations, truncations = map(np.concatenate, arrays)
        self.returns += rewards
        infos = {"episodes": [], "final_obs": {}}
        for share, group_ends in zip(self.shares, ends, strict=True):
            for place, (final_obs, start) in group_ends.items():
                n = share.start + place
                infos["episodes"].append((n, float(self.returns[n]), len(self.actions[n])))
                infos["final_obs"][n] = final_obs
                self.starts[n], self.actions[n], self.returns[n] = start, [], 0.0
        self.check_finite("reward", rewards)
        self.check_finite("observation", self.obs)
        self.check_finite("final observation", [*infos["final_obs"].values()])
        return self.obs, rewards, terminations, truncations, infos

    def check_finite(self, name: str, values) -> None:
        """Raises UserError if some are not finite numbers."""
        if not np.isfinite(values).all():
            advice = "the environment is at fault, not the training"
            raise UserError(f"--env-id {self.env_id} gave a NaN or infinite {name}: {advice}")

    def state_dict(self) -> dict:
        """The running episodes, and the observations that a replay must lead to."""
        actions = [torch.from_numpy(np.array(actions)) for actions in self.actions]
        obs = torch.from_numpy(self.obs)
        return {"starts": list(self.starts), "actions": actions, "obs": obs}

    def load_state_dict(self, state: dict) -> None:
        """Replay the running episodes."""
        self.starts = state["starts"]
        self.actions = [list(actions.numpy()) for actions in state["actions"]]
        episodes = list(zip(self.starts, self.actions, strict=True))
        obs, returns = zip(*self.call("replay", episodes), strict=True)
        self.obs, self.returns = np.concatenate(obs), np.array(sum(returns, []))
        if not np.array_equal(self.obs, state["obs"].numpy()):
            print("WARNING: this simulator does not repeat itself; the running episodes differ")


# ------------------------------------------------------------------------------- Main
def train(args: Args) -> dict:
    """Run the whole training; returns the content of result.json.

    Raises UserError for mistakes in arguments, files and environments.
    """
    with Run(args) as run:  # closes its files and processes, however training ends
        return learn(run.args, run)


def main() -> None:
    try:
        train(tyro.cli(Args, description=__doc__))
    except (UserError, OSError, ImportError) as error:
        message = " ".join(str(error).split())  # one line
        tqdm.write(f"{Path(__file__).stem}: error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()


# What `uv run` installs; `make inline` writes it from the requirement files.
# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = [
#     "torch==2.13.0",
#     "numpy==1.26.4; python_version < '3.13'",
#     "numpy==2.4.6; python_version >= '3.13'",
#     "gymnasium[mujoco]==1.4.0",
#     "mujoco==3.4.0",
#     "tyro==1.0.17",
#     "tensorboard==2.21.0",
#     "safetensors==0.8.0",
#     "tqdm==4.70.1",
#     "filelock==3.32.7",
#     "av==16.1.0",
# ]
# ///
