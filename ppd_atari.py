"""Proximal Policy Distillation (PPD) on Atari: a student learns from a teacher and from rewards.

    python ppd_atari.py                              # shipped CrazyClimber teacher
    python ppd_atari.py --env-id PongNoFrameskip-v4 --teacher runs/<run>/agent.safetensors
    python ppd_atari.py --resume runs/<run>          # continue a stopped run

Algorithm 1 of "Proximal Policy Distillation" (Spigler, TMLR 2025). The student is trained with PPO
on its own rollouts. One more term keeps it close to the teacher: the KL divergence between the two
policies, weighted with the importance ratio r, which is clipped from below (Equation 2):

    max  mean[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) + α·H(π_θ) − λ·KL(π_T ‖ π_θ)·max(r, 1−ε) ]

The method comes first: Args, losses, networks, training. The rest supports it: scoring, runs and
checkpoints, environments. `diff ppo_teacher_atari.py ppd_atari.py` shows what PPD adds to PPO.
T steps in N games give B samples, M per minibatch; A actions; observations are frames (C, H, W).
"""

import importlib.metadata
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
import zipfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
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
from torch.distributions import Categorical
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    # Environment
    env_id: str = "CrazyClimberNoFrameskip-v4"  # any game of ale-py, as QbertNoFrameskip-v4
    frame_skip: int = 4  # frames per action; the paper's text says 1, the authors' code 4
    seed: int = 100  # seed of networks, sampling and environments; paper: 100, 200, 300, 400, 500
    num_envs: int = 18  # number of parallel environments, N (Table 3)
    env_threads: int = torch.get_num_threads()  # CPU threads of the simulator
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"  # of networks
    torch_threads: int = torch.get_num_threads()  # CPU threads of the networks
    compile: bool = False  # compile the networks, on a GPU into CUDA graphs; takes a minute
    bfloat16: bool = False  # train in bfloat16, on GPUs and CPUs with AVX512-BF16; scores: float32

    # PPO
    total_timesteps: int = 2_000_000  # environment steps in total, rounded up to whole rollouts
    num_steps: int = 64  # steps per environment and rollout, T (Appendix A.3)
    learning_rate: float = 3e-4  # Adam's learning rate, constant (Table 3)
    adam_eps: float = 1e-5  # Adam's ε (the authors' code)
    minibatch_size: int = 512  # samples per gradient step, M; an epoch's last minibatch has fewer
    update_epochs: int = 4  # passes over each rollout (Table 3)
    gamma: float = 0.999  # discount γ (Appendix A.3)
    gae_lambda: float = 0.9  # λ of generalised advantage estimation (Table 3)
    clip_coef: float = 0.2  # clip range ε of the importance ratio (SB3's default)
    ent_coef: float = 0.0  # entropy coefficient α (Appendix A.3)
    vf_coef: float = 0.5  # coefficient of the value loss, c_v (SB3's default)
    max_grad_norm: float = 0.5  # gradient norm limit of policy and critic together (SB3's default)

    # Distillation
    teacher: str | None = None  # path of its checkpoint; default: teachers/<env-id>.safetensors
    student_size: Literal["smaller", "smaller-text", "same", "larger"] = "smaller"  # see `make_cnn`
    distill_lambda: float = 1.0  # weight λ of the distillation loss; 0 is PPO
    distill_lambda_final: float | None = None  # λ changes linearly to this; default: constant
    distill_lambda_steps: int | None = None  # steps of that change; default: the whole run
    ratio_gradient: bool = True  # backpropagate through the KL's weight max(r, 1−ε), as Equation 2
    kl: Literal["forward", "reverse"] = "forward"  # KL(π_T ‖ π_θ), as the paper, or KL(π_θ ‖ π_T)
    pg_coef: float = 1.0  # weight of PPO's policy loss; 0 is distillation alone
    init: str | None = None  # agent.safetensors to start from, in place of new weights
    critic_warmup: int = 0  # steps at the start in which only the critic learns

    # Logging and checkpoints
    eval_every: int = 200_000  # steps between evaluations of ten games; 0: never
    episodes: int = 50  # episodes of the final score (Appendix A.3)
    save_every: float = 60.0  # seconds between checkpoints
    run_dir: str | None = None  # new folder; default: runs/<env>__<script>__<seed>__<time>
    resume: str | None = None  # folder of a stopped run to continue, without any other flag
    track: bool = False  # also log to Weights & Biases; needs `pip install wandb`


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


def policy_kl(teacher_dist, student_dist, direction):
    """KL divergence in each state: distributions of M states to (M,)."""
    p, q = (teacher_dist, student_dist) if direction == "forward" else (student_dist, teacher_dist)
    # torch's own is infinite if a probability underflows to 0
    return (p.probs * (p.logits - q.logits)).sum(-1)


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
class PixelAgent(nn.Module):
    """Policy and critic, two networks without shared layers.

    Methods take raw frames (uint8, 0 to 255); the networks `actor` and `critic` take normalised
    ones (0 to 1).
    """

    def __init__(self, obs_shape: tuple[int, ...], num_actions: int, size: str):
        super().__init__()
        self.actor = make_cnn(size, obs_shape, num_actions, 0.01)
        self.critic = make_cnn(size, obs_shape, 1, 1.0)
        self.bfloat16 = False  # of a run; a checkpoint is always float32

    def normalize(self, obs, bfloat16: bool = False) -> torch.Tensor:
        """Scale raw frames (B, C, H, W) to 0…1.

        In memory the channels of a pixel lie side by side, which is fastest for convolutions.
        """
        obs = torch.as_tensor(obs, device=self.critic[1].bias.device)
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        return obs.to(dtype, memory_format=torch.channels_last) / 255

    def compute(self, network: nn.Module, norm_obs: torch.Tensor) -> torch.Tensor:
        """Outputs of actor or critic, float32, for normalised frames; inside perhaps bfloat16."""
        with torch.autocast(norm_obs.device.type, torch.bfloat16, enabled=self.bfloat16):
            outputs = network(norm_obs)
        return outputs.to(torch.float32, copy=True)  # a CUDA graph overwrites its own outputs

    def logits(self, obs) -> torch.Tensor:
        """The policy's logits (B, A) for raw frames (B, C, H, W)."""
        return self.compute(self.actor, self.normalize(obs, self.bfloat16))

    def distribution(self, logits: torch.Tensor) -> Categorical:
        """The policy for given logits (B, A). Its log_prob, entropy and KL are (B,)."""
        return Categorical(logits=logits, validate_args=False)

    def policy(self, obs) -> Categorical:
        """π(· | s) for raw frames (B, C, H, W)."""
        return self.distribution(self.logits(obs))

    def value(self, obs) -> torch.Tensor:
        """V(s), (B,), for raw frames (B, C, H, W)."""
        return self.compute(self.critic, self.normalize(obs, self.bfloat16)).squeeze(-1)

    def env_actions(self, actions: torch.Tensor) -> np.ndarray:
        """Actions (B,) as the environments take them."""
        return actions.cpu().numpy()

    @torch.no_grad()
    def act(self, obs, deterministic: bool = True) -> np.ndarray:
        """Actions (B,) for raw frames (B, C, H, W): the policy's mode, or samples."""
        # Scores are computed as in evaluate.py: in float32 and not compiled. Scripts that have
        # --compile set self.actor.forward to compiled code; this calls the class's own forward.
        logits = nn.Sequential.forward(self.actor, self.normalize(obs))
        actions = logits.argmax(-1) if deterministic else self.distribution(logits).sample()
        return self.env_actions(actions)


# ------------------------------------------------------------------------------- Training
def learn(args: Args, run: "Run") -> dict:
    """Distil a teacher with PPD and score both; returns the content of result.json."""
    T, N, B = args.num_steps, args.num_envs, args.num_steps * args.num_envs
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.torch_threads)
    envs = AtariGames(args.env_id, N, args.env_threads, args.frame_skip, life_loss=True)
    eval_envs = AtariGames(args.env_id, 10, args.env_threads, args.frame_skip, life_loss=False)
    obs_shape, num_actions = envs.single_observation_space.shape, int(envs.single_action_space.n)
    envs.reset(seed=args.seed)

    path = args.teacher or Path(__file__).parent / "teachers" / f"{args.env_id}.safetensors"
    teacher, teacher_header = load_atari_agent(path, envs)
    teacher.to(args.device)
    if teacher_header["frame_skip"] != args.frame_skip:
        print(f"WARNING: the teacher was trained with frame_skip {teacher_header['frame_skip']}")
    agent = PixelAgent(obs_shape, num_actions, args.student_size).to(args.device)
    if args.init:
        load_atari_start(args.init, agent, args.student_size, envs)
    agent.bfloat16 = args.bfloat16
    if args.device != "cpu":  # the memory order of the frames, or each convolution reorders weights
        agent.to(memory_format=torch.channels_last)
    if args.compile:  # `network.compile()` would not compile the forward of an nn.Sequential
        for network in (agent.actor, agent.critic):
            options = {"mode": "reduce-overhead", "dynamic": False, "isolate_recompiles": True}
            network.forward = torch.compile(network.forward, **options)  # a graph for each shape
    adam = {"lr": args.learning_rate, "eps": args.adam_eps, "fused": True}
    optimizer = torch.optim.Adam(agent.parameters(), **adam)
    normalize_reward = RewardNormalizer(N)
    header = {"suite": "atari", "frame_skip": args.frame_skip, "size": args.student_size}
    header["deterministic"] = True  # evaluate.py scores it by the policy's mode
    parts = {"agent": agent, "optimizer": optimizer, "envs": envs, "rewards": normalize_reward}
    if run.step == 0:
        print("teacher:", score_text(evaluate(teacher, eval_envs, 10, args.seed)), "(10 games)")
    run.start(header, parts, teacher_header)  # also restores the parts of a resumed run

    # Raw frames (T, N, C, H, W), in the memory order that `normalize` needs
    obs = torch.zeros((T, N, *obs_shape[1:], obs_shape[0]), dtype=torch.uint8, device=args.device)
    obs = obs.permute(0, 1, 4, 2, 3)
    logits = torch.zeros((T, N, num_actions), device=args.device)  # outputs of the policy
    actions = torch.zeros((T, N), dtype=torch.int64, device=args.device)
    rewards = np.zeros((T, N))
    terminations, truncations = np.zeros((2, T, N), dtype=bool)
    # The first observations: of the reset above or, in a resumed run, where the replay ended.
    next_obs = envs.obs
    while run.step < run.total:
        # Collect a rollout with the current policy.
        episodes, final_obs = [], []
        with torch.no_grad():
            for t in range(T):
                obs[t] = torch.from_numpy(next_obs)
                logits[t] = agent.logits(obs[t])
                actions[t] = agent.distribution(logits[t]).sample()
                env_step = envs.step(agent.env_actions(actions[t]))
                next_obs, rewards[t], terminations[t], truncations[t], infos = env_step
                episodes += infos["episodes"]
                final_obs += [infos["final_obs"][n] for n in np.flatnonzero(truncations[t])]

            # Advantages. A time limit is not a terminal state: bootstrap from the final state.
            b_obs, b_actions = obs.flatten(0, 1), actions.flatten()  # (B, C, H, W), (B,)
            b_logprobs = agent.distribution(logits.flatten(0, 1)).log_prob(b_actions)  # (B,)
            chunks = b_obs.split(args.minibatch_size)  # a whole rollout would need much memory
            values = torch.cat([agent.value(chunk) for chunk in chunks]).view(T, N)
            next_values = torch.cat([values[1:], agent.value(next_obs)[None]])
            if final_obs:  # in the order of `truncations`: by step, then by environment
                with torch.compiler.set_stance("force_eager"):  # no graph for each number of them
                    next_values[truncations] = agent.value(np.array(final_obs))
            ended = terminations | truncations
            scaled_rewards = torch.from_numpy(normalize_reward(rewards, ended)).float()
            advantages = compute_gae(  # on the CPU, because a GPU is slow at many small steps
                scaled_rewards, values.cpu(), next_values.cpu(), torch.from_numpy(terminations),
                torch.from_numpy(ended), args.gamma, args.gae_lambda,
            ).to(args.device)  # fmt: skip
            b_advantages, b_returns = advantages.flatten(), (advantages + values).flatten()  # (B,)
            # The teacher is asked once per rollout, not in each epoch: its answers do not change.
            b_teacher_logits = torch.cat([teacher.logits(chunk) for chunk in chunks])  # (B, A)

        # Update policy and critic: several epochs over shuffled minibatches.
        metrics, distill_lambda = [], lambda_at(run.step, run.total - B, args)
        for _ in range(args.update_epochs):
            for mb in torch.randperm(B, device=args.device).split(args.minibatch_size):
                mb_norm_obs = agent.normalize(b_obs[mb], args.bfloat16)  # once for both networks
                dist = agent.distribution(agent.compute(agent.actor, mb_norm_obs))
                teacher_dist = teacher.distribution(b_teacher_logits[mb])
                logratio = dist.log_prob(b_actions[mb]) - b_logprobs[mb]
                ratio = logratio.exp()
                mb_advantages = normalize_advantages(b_advantages[mb])
                pg_loss = clipped_surrogate_loss(ratio, mb_advantages, args.clip_coef)
                mb_values = agent.compute(agent.critic, mb_norm_obs).squeeze(-1)
                v_loss = value_loss(mb_values, b_returns[mb])
                entropy = dist.entropy().mean()
                kl = policy_kl(teacher_dist, dist, args.kl)
                distill_loss = distillation_loss(kl, ratio, args.clip_coef, args.ratio_gradient)
                # The value loss, and Equation 2, negated (in the paper pg_coef is 1)
                loss = args.vf_coef * v_loss
                if run.step >= args.critic_warmup:
                    loss = loss + args.pg_coef * pg_loss - args.ent_coef * entropy
                    loss = loss + distill_lambda * distill_loss
                loss.backward()
                grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                metrics.append({
                    "losses/policy_loss": pg_loss.detach(),
                    "losses/value_loss": v_loss.detach(),
                    "losses/entropy": entropy.detach(),
                    "losses/grad_norm": grad_norm,
                    "losses/approx_kl": (ratio - 1 - logratio).detach().mean(),
                    "losses/clipfrac": ((ratio - 1).abs() > args.clip_coef).float().mean(),
                    "distill/kl": kl.detach().mean(),
                    "distill/loss": (distill_lambda * distill_loss).detach(),
                })  # fmt: skip
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
    score = score_games(args.env_id, evaluate(agent, eval_envs, args.episodes, args.seed))
    teacher_score = score_games(args.env_id, evaluate(teacher, eval_envs, args.episodes, args.seed))
    result = run.finish(score=score, teacher_score=teacher_score)
    print(compare_games(score, teacher_score))
    return result


# ------------------------------------------------------------------------------- Convolutions
def layer_init(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights and zero biases, as SB3."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def make_nature_cnn(obs_shape: tuple[int, ...], channels: tuple[int, ...], features: int):
    """Features (B, F) of normalised frames (B, C, H, W): three convolutions (Mnih et al., 2015)."""
    first, second, third = channels
    convolutions = nn.Sequential(
        layer_init(nn.Conv2d(obs_shape[0], first, 8, stride=4)), nn.ReLU(),
        layer_init(nn.Conv2d(first, second, 4, stride=2)), nn.ReLU(),
        layer_init(nn.Conv2d(second, third, 3)), nn.ReLU(),
        nn.Flatten(),
    )  # fmt: skip
    flat = convolutions(torch.zeros(1, *obs_shape)).shape[1]
    return nn.Sequential(convolutions, layer_init(nn.Linear(flat, features)), nn.ReLU())


class ResidualBlock(nn.Module):
    """The input, plus ReLU, convolution, ReLU and convolution of it."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = layer_init(nn.Conv2d(channels, channels, 3, padding=1))
        self.conv1 = layer_init(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv1(self.conv0(x.relu()).relu())


def make_impala_cnn(obs_shape: tuple[int, ...], channels: tuple[int, ...], features: int):
    """Features (B, F) of normalised frames (B, C, H, W): residual (Espeholt et al., 2018)."""
    layers, inputs = [], obs_shape[0]
    for outputs in channels:
        layers += [layer_init(nn.Conv2d(inputs, outputs, 3, padding=1))]
        layers += [nn.MaxPool2d(3, stride=2, padding=1)]  # halves height and width, rounding up
        layers += [ResidualBlock(outputs), ResidualBlock(outputs)]
        inputs = outputs
    convolutions = nn.Sequential(*layers, nn.Flatten(), nn.ReLU())
    flat = convolutions(torch.zeros(1, *obs_shape)).shape[1]
    return convolutions.extend([layer_init(nn.Linear(flat, features)), nn.ReLU()])


def make_cnn(size: str, obs_shape: tuple[int, ...], outputs: int, gain: float) -> nn.Sequential:
    """A network from normalised frames (B, C, H, W) to (B, outputs); last layer: `gain`."""
    make_features, channels, features = {
        "smaller": (make_nature_cnn, (32, 64, 64), 64),  # as in the paper's Table 4
        "smaller-text": (make_nature_cnn, (32, 32, 32), 128),  # as in the paper's Appendix A.3
        "nature": (make_nature_cnn, (32, 64, 64), 512),  # of imported teachers (SB3, CleanRL)
        "same": (make_impala_cnn, (16, 32, 32), 256),
        "larger": (make_impala_cnn, (32, 64, 64), 1024),
    }[size]
    convolutions = make_features(obs_shape, channels, features)
    return nn.Sequential(convolutions, layer_init(nn.Linear(features, outputs), gain))


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


def score_games(env_id: str, score: dict) -> dict:
    """Add to `evaluate`'s answer the number of distinct games and the human-normalised mean.

    A deterministic policy plays the same game twice if it starts with the same no-ops. On the
    human-normalised scale random play has 0 and a human 1; known for the paper's games.
    """
    random_and_human = {  # Badia et al. (2020)
        "Atlantis": (12850.0, 29028.1), "BeamRider": (363.9, 16926.5),
        "CrazyClimber": (10780.5, 35829.4), "DemonAttack": (152.1, 1971.0),
        "Enduro": (0.0, 860.5), "Freeway": (0.0, 29.6), "MsPacman": (307.3, 6951.6),
        "Pong": (-20.7, 14.6), "Qbert": (163.9, 13455.0), "Seaquest": (68.4, 42054.7),
        "Zaxxon": (32.5, 9173.3),
    }  # fmt: skip
    score = score | {"distinct": len(set(zip(score["returns"], score["lengths"], strict=True)))}
    game = env_id.removesuffix("NoFrameskip-v4")
    if game in random_and_human:
        random, human = random_and_human[game]
        score["human_normalized"] = (score["mean"] - random) / (human - random)
    return score


def game_score_text(score: dict) -> str:
    """Mean ± standard error, distinct games and, if known, the human-normalised mean."""
    text = f"{score_text(score)}, {score['distinct']} distinct games"
    if "human_normalized" in score:
        text += f", human-normalised {score['human_normalized']:.2f}"
    return text


def compare_games(score: dict, teacher_score: dict) -> str:
    """Both scores, and the student's as a fraction of the teacher's if that is positive.

    The fraction is of the human-normalised means, if they are known.
    """
    text = f"student {game_score_text(score)} · teacher {game_score_text(teacher_score)}"
    student, teacher = (s.get("human_normalized", s["mean"]) for s in (score, teacher_score))
    kind = "human-normalised " if "human_normalized" in score else ""
    if teacher <= 0:
        return f"{text} · {kind}difference {student - teacher:+.2f}"
    return f"{text} · {kind}fraction {student / teacher:.3f}"


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


def load_atari_agent(path, envs=None) -> tuple[PixelAgent, dict]:
    """A frozen agent and its header. Raises UserError if it does not fit `envs`, where given."""
    tensors, header = read_agent(path, "atari")
    num_actions = len(tensors["actor.1.bias"])
    if envs is not None and num_actions != envs.single_action_space.n:
        sizes = f"{num_actions} actions, not {envs.single_action_space.n}"
        advice = f"give --env-id {header['env_id']}, or another file"
        raise UserError(f"{path}: is for {header['env_id']} ({sizes}); {advice}")
    agent = PixelAgent((4, 84, 84), num_actions, header["size"])
    try:
        agent.load_state_dict(tensors)
    except RuntimeError as error:  # the header describes other layers
        raise UserError(f"{path}: {error}") from error
    return agent.eval().requires_grad_(False), header


def load_atari_start(path, agent: PixelAgent, size: str, envs) -> None:
    """Give `agent`, of this size, the weights of another. Raises UserError for other sizes."""
    start, header = load_atari_agent(path, envs)
    if header["size"] != size:
        advice = "--student-size, or --size of a teacher script, sets it"
        raise UserError(f"--init {path}: its size is {header['size']}, not {size}; {advice}")
    agent.load_state_dict(start.state_dict())


# ------------------------------------------------------------------------------- Environments
def find_rom(env_id: str) -> str:
    """ale-py's name of a game: ms_pacman for MsPacmanNoFrameskip-v4. Raises UserError."""
    from ale_py import roms

    by_word = {rom.replace("_", ""): rom for rom in roms.get_all_rom_ids()}  # mspacman: ms_pacman
    name = re.split("[/:]", env_id)[-1].split("-")[0].lower()  # pong for ALE/Pong-v5
    word = re.sub("(noframeskip|deterministic)$", "", re.sub("[^a-z0-9]", "", name))
    if word not in by_word:
        raise UserError(f"--env-id {env_id}: not an Atari game of ale-py; try PongNoFrameskip-v4")
    rom = by_word[word]
    if rom in ("combat", "joust", "maze_craze", "warlords"):
        raise UserError(f"--env-id {env_id}: this game needs two players; choose another")
    expected_id = f"{rom.title().replace('_', '')}NoFrameskip-v4"
    if env_id != expected_id:
        advice = f"give {expected_id} for this game; --frame-skip sets the frames per action"
        raise UserError(f"--env-id {env_id}: {advice}")
    return rom


class AtariGames(gym.vector.VectorEnv):
    """N games on ale-py's own threads, with same-step autoreset.

    Frames and games are those of Gymnasium's NoFrameskip-v4 ids with AtariPreprocessing and
    FrameStackObservation: 84×84, grey, the last four, oldest first. A game with a FIRE button
    starts with FIRE, then 0 to 28 no-ops, of which 0 is twice as likely as any other number. Other
    games start with 0 to 29 no-ops, all equally likely. With `life_loss` a lost life is a
    termination as well, and the game continues. infos["episodes"] are whole games.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    max_frames = 108_000  # half an hour of play, then a truncation

    def __init__(self, env_id, num_envs: int, num_threads: int, frame_skip: int, life_loss: bool):
        from ale_py.vector_env import AtariVectorEnv

        self.simulator = AtariVectorEnv(
            find_rom(env_id), num_envs, num_threads=num_threads, frameskip=frame_skip,
            max_num_frames_per_episode=self.max_frames, repeat_action_probability=0.0,
            full_action_space=False, reward_clipping=False, noop_max=30, use_fire_reset=True,
            life_loss_info=life_loss, episodic_life=False,
        )  # fmt: skip
        self.num_envs, self.frame_skip, self.life_loss = num_envs, frame_skip, life_loss
        self.single_observation_space = self.simulator.single_observation_space
        self.single_action_space = self.simulator.single_action_space
        # The simulator cannot be saved, but a game can be played again. That takes the seed of its
        # environment, the number of games played there since it was seeded, and the actions of
        # this game.
        self.seeds, self.games, self.lengths = np.zeros((3, num_envs), np.int64)
        self.actions = np.zeros((num_envs, self.max_frames // frame_skip + 2), np.uint8)
        self.returns = np.zeros(num_envs)

    def reset(self, *, seed: int = 0, options: dict | None = None):
        """Start new games, environment n with seed + n. Returns obs (N, C, H, W) and no infos."""
        self.seeds = seed + np.arange(self.num_envs)
        self.games[:] = self.lengths[:] = self.returns[:] = 0
        self.obs, _ = self.simulator.reset(seed=self.seeds)
        return self.obs, {}

    def start_games(self, mask: np.ndarray) -> None:
        """Start the next game in the environments that the mask (N,) marks."""
        # Without a seed: seeding loads the ROM again, which takes as long as 250 steps.
        self.obs, _ = self.simulator.reset(options={"reset_mask": mask})
        self.games[mask] += 1
        self.lengths[mask] = self.returns[mask] = 0

    def step(self, actions: np.ndarray):
        """Actions (N,) to obs (N, C, H, W), rewards, terminations and truncations (N,), and infos.

        infos["episodes"] lists (n, return, length) of the games that just ended. For each such n,
        infos["final_obs"][n] is that game's last observation and obs[n] the next game's first.
        """
        self.actions[np.arange(self.num_envs), self.lengths] = actions
        self.obs, rewards, terminations, truncations, state = self.simulator.step(actions)
        infos = {"final_obs": self.obs, "episodes": []}
        self.returns += rewards
        self.lengths += 1
        continues = self.life_loss & (state["lives"] > 0)  # games without lives report 0
        # If a life is lost in the step of the time limit, ale-py reports only a termination.
        # The game is over all the same.
        at_limit = self.lengths * self.frame_skip >= self.max_frames
        over = terminations & ~continues | truncations | at_limit
        for n in np.flatnonzero(over):
            infos["episodes"].append((n, float(self.returns[n]), int(self.lengths[n])))
        # Restart now: the simulator would do so in the next step, and ignore that step's action.
        if over.any():
            self.start_games(over)
        return self.obs, rewards, terminations, truncations, infos

    def state_dict(self) -> dict:
        """The running games, and the observations that a replay must lead to."""
        names = ("seeds", "games", "lengths", "returns", "obs")
        state = {name: torch.tensor(getattr(self, name)) for name in names}
        return state | {"actions": torch.tensor(self.actions[:, : self.lengths.max()])}

    def load_state_dict(self, state: dict) -> None:
        """Replay the running games."""
        names = ("seeds", "games", "lengths", "returns", "actions")
        seeds, games, lengths, returns, actions = (state[name].numpy() for name in names)
        longest, envs = lengths.max(), np.arange(self.num_envs)
        # All environments step together, and all replays must end in the same step: a game of L
        # steps starts when L steps are left. Until then its environment takes actions of no
        # meaning, which the reset at its start discards.
        for left in reversed(range(longest + 1)):
            for n in np.flatnonzero(lengths == left):
                mask = envs == n
                self.obs, _ = self.simulator.reset(seed=seeds[mask], options={"reset_mask": mask})
                for _ in range(games[n]):
                    self.start_games(mask)
            if left > 0:
                played = np.maximum(lengths - left, 0)
                self.obs = self.simulator.step(actions[envs, played].astype(np.int64))[0]
        self.seeds, self.games, self.lengths, self.returns = seeds, games, lengths, returns
        self.actions[:, :longest] = actions
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
    except (UserError, OSError, ImportError, torch.OutOfMemoryError) as error:
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
#     "ale-py==0.12.1",
# ]
# ///
