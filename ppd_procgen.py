"""Proximal Policy Distillation (PPD) on Procgen: a student learns from a teacher and from reward.

    python ppd_procgen.py                          # from the shipped coinrun teacher
    python ppd_procgen.py --student-size larger    # a larger network than the teacher's, for a GPU
    python ppd_procgen.py --resume runs/<run>      # go on where a run stopped

Algorithm 1 of "Proximal Policy Distillation" (Spigler, TMLR 2025): PPO on the student's own
rollouts, and a KL term, weighted with the clipped importance ratio, that keeps it near the teacher:

    max  mean[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) + α·H(π_θ) − λ·KL(π_T ‖ π_θ)·max(r, 1−ε) ]

The method comes first: Args, losses, networks, `train`; then what it stands on: scoring, runs and
checkpoints, environments. `diff ppo_teacher_procgen.py ppd_procgen.py` shows what PPD adds to PPO.
T steps of N games are B samples, M of them a minibatch; A actions; frames (C, H, W).
"""

import atexit
import importlib.metadata
import io
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
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
from torch.distributions import Categorical
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    # Environment
    env_id: str = "coinrun"  # the paper's: coinrun, jumper, miner, ninja; or another of Procgen's
    num_levels: int = 200  # training levels; the levels after them are unseen
    start_level: int = 0  # the first training level
    distribution_mode: Literal["easy", "hard"] = "easy"  # of the levels (Appendix A.2: easy)
    seed: int = 100  # of networks, sampling and environments; the paper's: 100, 200, 300, 400, 500
    num_envs: int = 18  # environments stepped side by side, N (Table 3)
    env_threads: int = torch.get_num_threads()  # CPU threads of the simulator
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"  # of networks
    torch_threads: int = torch.get_num_threads()  # CPU threads of the networks, if they run there
    compile: bool = False  # compile the networks, on a GPU into CUDA graphs: a minute at the start
    bfloat16: bool = False  # compute in bfloat16, on GPUs and AVX512-BF16 CPUs; scores: float32

    # PPO
    total_timesteps: int = 2_000_000  # of all environments; whole rollouts, so it rounds up
    num_steps: int = 64  # per environment and rollout, T (Appendix A.3)
    learning_rate: float = 3e-4  # constant (Table 3)
    adam_eps: float = 1e-5  # Adam's ε (the authors' released code)
    minibatch_size: int = 512  # samples per gradient step, M; an epoch's last is smaller (Table 3)
    update_epochs: int = 4  # passes over each rollout (Table 3)
    gamma: float = 0.999  # discount γ (Appendix A.3)
    gae_lambda: float = 0.9  # λ of generalised advantage estimation (Table 3)
    clip_coef: float = 0.2  # clip range ε of the importance ratio (SB3's default)
    ent_coef: float = 0.0  # entropy coefficient α (Appendix A.3)
    vf_coef: float = 0.5  # weight of the value loss, c_v (SB3's default)
    max_grad_norm: float = 0.5  # of policy and critic together (SB3's default)

    # Distillation
    teacher: str | None = None  # its agent.safetensors; unset: teachers/<env-id>.safetensors
    student_size: Literal["smaller", "smaller-text", "same", "larger"] = "smaller"  # see `make_cnn`
    distill_lambda: float = 1.0  # weight λ of the distillation loss; 0 is PPO
    distill_lambda_final: float | None = None  # λ at the run's end, linearly; unset: constant
    ratio_gradient: bool = True  # does the KL's weight max(r, 1−ε) carry a gradient (Equation 2)
    kl: Literal["forward", "reverse"] = "forward"  # KL(π_T ‖ π_θ), the paper's; or KL(π_θ ‖ π_T)

    # Logging and checkpoints
    eval_every: int = 200_000  # steps between evaluations of twenty episodes; 0: none
    episodes: int = 200  # of the final score (Appendix A.3)
    save_every: float = 60.0  # seconds between checkpoints
    run_dir: str | None = None  # new folder of the run; unset: runs/<env>__<script>__<seed>__<time>
    resume: str | None = None  # folder of a stopped run to go on with; takes no other flag
    track: bool = False  # also log to Weights & Biases; pip install wandb, WANDB_PROJECT says where


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


def policy_kl(teacher_dist, student_dist, direction):
    """KL divergence per state: distributions of M states to (M,)."""
    p, q = (teacher_dist, student_dist) if direction == "forward" else (student_dist, teacher_dist)
    # torch's own is infinite where a probability underflows
    return (p.probs * (p.logits - q.logits)).sum(-1)


def distillation_loss(kl, ratio, clip_coef, ratio_gradient=True):
    """The proximal distillation term of Equation 2, still without λ: KL, r (M,) to a scalar.

    Without `ratio_gradient` KL·∇r is dropped. At r = 1 its mean is zero, since a state's KL is the
    same for every action; what remains is noise that grows with the KL (docs/ppd.md).
    """
    assert kl.shape == ratio.shape, (kl.shape, ratio.shape)
    # mean[ KL·max(r, 1−ε) ]; in Equation 2 the gradient flows through both factors
    weight = ratio.clamp(min=1 - clip_coef)
    return (kl * (weight if ratio_gradient else weight.detach())).mean()


# ------------------------------------------------------------------------------- Agent
class PixelAgent(nn.Module):
    """Policy and critic, two networks; takes raw frames, uint8."""

    def __init__(self, obs_shape: tuple[int, ...], num_actions: int, size: str):
        super().__init__()
        self.actor = make_cnn(size, obs_shape, num_actions, 0.01)
        self.critic = make_cnn(size, obs_shape, 1, 1.0)
        self.bfloat16 = False  # a setting of a run, not of its checkpoint

    def normalize(self, obs, bfloat16: bool = False) -> torch.Tensor:
        """Raw frames (B, C, H, W) to 0…1, a pixel's channels side by side: fastest to convolve."""
        obs = torch.as_tensor(obs, device=self.critic[1].bias.device)
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        return obs.to(dtype, memory_format=torch.channels_last) / 255

    def compute(self, network: nn.Module, frames: torch.Tensor) -> torch.Tensor:
        """Frames of 0…1 through the actor or the critic; float32, whatever is inside."""
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self.bfloat16):
            outputs = network(frames)
        return outputs.to(torch.float32, copy=True)  # a CUDA graph overwrites its own outputs

    def logits(self, obs) -> torch.Tensor:
        """Raw frames (B, C, H, W) to logits (B, A) of the policy."""
        return self.compute(self.actor, self.normalize(obs, self.bfloat16))

    def distribution(self, logits: torch.Tensor) -> Categorical:
        """(B, A) to a categorical distribution whose log_prob, entropy and KL are (B,)."""
        return Categorical(logits=logits, validate_args=False)

    def policy(self, obs) -> Categorical:
        """Raw frames (B, C, H, W) to π(· | s)."""
        return self.distribution(self.logits(obs))

    def value(self, obs) -> torch.Tensor:
        """Raw frames (B, C, H, W) to V(s), (B,)."""
        return self.compute(self.critic, self.normalize(obs, self.bfloat16)).squeeze(-1)

    def env_actions(self, actions: torch.Tensor) -> np.ndarray:
        """Actions (B,), as the environment takes them."""
        return actions.cpu().numpy()

    @torch.no_grad()
    def act(self, obs, deterministic: bool = True) -> np.ndarray:
        """Raw frames (B, C, H, W) to actions (B,): the likeliest, or a sample; always float32."""
        # The class's forward: compiled, the network's own one would differ from evaluate.py.
        logits = nn.Sequential.forward(self.actor, self.normalize(obs))
        actions = logits.argmax(-1) if deterministic else self.distribution(logits).sample()
        return self.env_actions(actions)


# ------------------------------------------------------------------------------- Training
def train(args: Args) -> dict:
    """Distil a teacher by PPD and score both; returns what result.json holds. Raises UserError."""
    run = Run(args)
    args = run.args  # with --resume, those of the stopped run
    T, N, B = args.num_steps, args.num_envs, args.num_steps * args.num_envs
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.torch_threads)
    envs = ProcgenVectorEnv(args, N, args.env_threads)
    unseen = ProcgenVectorEnv(args, 20, args.env_threads, "unseen")
    training = ProcgenVectorEnv(args, 20, args.env_threads)
    obs_shape, num_actions = envs.single_observation_space.shape, int(envs.single_action_space.n)
    envs.reset(seed=args.seed)

    path = args.teacher or Path(__file__).parent / "teachers" / f"{args.env_id}.safetensors"
    teacher, teacher_header = load_procgen_agent(path)
    teacher.to(args.device)
    agent = PixelAgent(obs_shape, num_actions, args.student_size).to(args.device)
    agent.bfloat16 = args.bfloat16
    if args.device != "cpu":  # weights in the frames' order, or each convolution reorders them
        agent.to(memory_format=torch.channels_last)
    if args.compile:  # not `network.compile()`, which leaves an nn.Sequential as it is
        for network in (agent.actor, agent.critic):
            options = {"mode": "reduce-overhead", "dynamic": False, "isolate_recompiles": True}
            network.forward = torch.compile(network.forward, **options)  # a graph for each shape
    adam = {"lr": args.learning_rate, "eps": args.adam_eps, "fused": True}
    optimizer = torch.optim.Adam(agent.parameters(), **adam)
    normalize_reward = RewardNormalizer(N)
    header = {"suite": "procgen", "size": args.student_size, "deterministic": False}
    header |= {k: getattr(args, k) for k in ("num_levels", "start_level", "distribution_mode")}
    parts = {"agent": agent, "optimizer": optimizer, "envs": envs, "rewards": normalize_reward}
    if run.step == 0:
        score = evaluate(teacher, unseen, 20, args.seed, False)
        print("teacher on unseen levels:", score_text(score), "(20 episodes)")
    run.start(header, parts, teacher_header)

    # (T, N, C, H, W), on memory with a pixel's channels side by side, as `normalize` wants them
    obs = torch.zeros((T, N, *obs_shape[1:], obs_shape[0]), dtype=torch.uint8, device=args.device)
    obs = obs.permute(0, 1, 4, 2, 3)
    logits = torch.zeros((T, N, num_actions), device=args.device)  # of the policy
    actions = torch.zeros((T, N), dtype=torch.int64, device=args.device)
    rewards = np.zeros((T, N))
    ended = np.zeros((T, N), dtype=bool)
    next_obs = envs.obs
    while run.step < run.total:
        # Collect a rollout with the policy as it is.
        episodes = []
        with torch.no_grad():
            for t in range(T):
                obs[t] = torch.from_numpy(next_obs)
                logits[t] = agent.logits(obs[t])
                actions[t] = agent.distribution(logits[t]).sample()
                env_step = envs.step(agent.env_actions(actions[t]))
                next_obs, rewards[t], ended[t], _, infos = env_step
                episodes += infos["episodes"]

            # Advantages. Procgen shows no time limit and no final observation: an end is an end.
            b_obs, b_actions = obs.flatten(0, 1), actions.flatten()  # (B, C, H, W), (B,)
            b_logprobs = agent.distribution(logits.flatten(0, 1)).log_prob(b_actions)  # (B,)
            chunks = b_obs.split(args.minibatch_size)
            values = torch.cat([agent.value(chunk) for chunk in chunks]).view(T, N)
            next_values = torch.cat([values[1:], agent.value(next_obs)[None]])
            scaled_rewards = torch.from_numpy(normalize_reward(rewards, ended)).float()
            ends = torch.from_numpy(ended), torch.from_numpy(ended)
            advantages = compute_gae(  # on the CPU: a GPU takes longer to launch each step of it
                scaled_rewards, values.cpu(), next_values.cpu(), *ends, args.gamma, args.gae_lambda
            ).to(args.device)
            b_advantages, b_returns = advantages.flatten(), (advantages + values).flatten()  # (B,)
            b_teacher_logits = torch.cat([teacher.logits(chunk) for chunk in chunks])  # asked once

        # Update policy and critic: several epochs over shuffled minibatches.
        metrics, distill_lambda = [], args.distill_lambda
        if args.distill_lambda_final is not None:
            distill_lambda += (args.distill_lambda_final - distill_lambda) * run.step / run.total
        for _ in range(args.update_epochs):
            for mb in torch.randperm(B, device=args.device).split(args.minibatch_size):
                frames = agent.normalize(b_obs[mb], args.bfloat16)  # once for both networks
                dist = agent.distribution(agent.compute(agent.actor, frames))
                teacher_dist = teacher.distribution(b_teacher_logits[mb])
                logratio = dist.log_prob(b_actions[mb]) - b_logprobs[mb]
                ratio = logratio.exp()
                mb_advantages = normalize_advantages(b_advantages[mb])
                pg_loss = clipped_surrogate_loss(ratio, mb_advantages, args.clip_coef)
                v_loss = value_loss(agent.compute(agent.critic, frames).squeeze(-1), b_returns[mb])
                entropy_loss = dist.entropy().mean()
                kl = policy_kl(teacher_dist, dist, args.kl)
                distill_loss = distillation_loss(kl, ratio, args.clip_coef, args.ratio_gradient)
                loss = ppo_loss(pg_loss, v_loss, entropy_loss, args.ent_coef, args.vf_coef)
                loss = loss + distill_lambda * distill_loss  # Equation 2, negated
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
                    "distill/kl": kl.detach().mean(),
                    "distill/loss": (distill_lambda * distill_loss).detach(),
                })  # fmt: skip
        run.step += B
        explained = 1 - ((b_returns - values.flatten()).var() / b_returns.var()).item()
        scalars = {"losses/explained_variance": explained}
        scalars["distill/lambda"] = distill_lambda
        run.log(metrics, scalars, episodes)
        if run.due(args.eval_every, B):
            for kind, levels in [("", unseen), ("_training", training)]:
                run.log_evaluation(evaluate(agent, levels, 20, args.seed, False), kind)
        run.save(args.save_every)

    run.bar.close()  # the final score, of unseen levels and of training levels
    protocol = args.episodes, args.seed, False
    score, score_training = (evaluate(agent, e, *protocol) for e in (unseen, training))
    teacher_score, teacher_training = (evaluate(teacher, e, *protocol) for e in (unseen, training))
    scores = {"score_training": score_training, "teacher_score_training": teacher_training}
    result = run.finish(score=score, teacher_score=teacher_score, **scores)
    print("unseen levels:", compare_scores(score, teacher_score))
    print("training levels:", compare_scores(score_training, teacher_training))
    return result


# ------------------------------------------------------------------------------- Convolutions
def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (SB3's initialisation)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def make_nature_cnn(obs_shape: tuple[int, ...], channels: tuple[int, ...], features: int):
    """Frames (B, C, H, W) in 0…1 to features (B, F): three convolutions (Mnih et al., 2015)."""
    first, second, third = channels
    convolutions = nn.Sequential(
        init_layer(nn.Conv2d(obs_shape[0], first, 8, stride=4)), nn.ReLU(),
        init_layer(nn.Conv2d(first, second, 4, stride=2)), nn.ReLU(),
        init_layer(nn.Conv2d(second, third, 3)), nn.ReLU(),
        nn.Flatten(),
    )  # fmt: skip
    flat = convolutions(torch.zeros(1, *obs_shape)).shape[1]
    return nn.Sequential(convolutions, init_layer(nn.Linear(flat, features)), nn.ReLU())


class ResidualBlock(nn.Module):
    """ReLU, convolution, ReLU, convolution, and past them the input itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = init_layer(nn.Conv2d(channels, channels, 3, padding=1))
        self.conv1 = init_layer(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv1(self.conv0(x.relu()).relu())


def make_impala_cnn(obs_shape: tuple[int, ...], channels: tuple[int, ...], features: int):
    """Frames (B, C, H, W) in 0…1 to features (B, F): residual (Espeholt et al., 2018, no LSTM)."""
    layers, inputs = [], obs_shape[0]
    for outputs in channels:
        layers += [init_layer(nn.Conv2d(inputs, outputs, 3, padding=1))]
        layers += [nn.MaxPool2d(3, stride=2, padding=1)]  # halves height and width, rounding up
        layers += [ResidualBlock(outputs), ResidualBlock(outputs)]
        inputs = outputs
    convolutions = nn.Sequential(*layers, nn.Flatten(), nn.ReLU())
    flat = convolutions(torch.zeros(1, *obs_shape)).shape[1]
    return convolutions.extend([init_layer(nn.Linear(flat, features)), nn.ReLU()])


def make_cnn(size: str, obs_shape: tuple[int, ...], outputs: int, gain: float) -> nn.Sequential:
    """Frames (B, C, H, W) in 0…1 to (B, outputs); `gain` initialises the last layer."""
    make_features, channels, features = {
        "smaller": (make_nature_cnn, (32, 64, 64), 64),  # as the paper's Table 4 counts it
        "smaller-text": (make_nature_cnn, (32, 32, 32), 128),  # as its Appendix A.3 describes it
        "nature": (make_nature_cnn, (32, 64, 64), 512),  # an imported teacher's; SB3's, CleanRL's
        "same": (make_impala_cnn, (16, 32, 32), 256),
        "larger": (make_impala_cnn, (32, 64, 64), 1024),
    }[size]
    convolutions = make_features(obs_shape, channels, features)
    return nn.Sequential(convolutions, init_layer(nn.Linear(features, outputs), gain))


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


def compare_scores(score: dict, teacher_score: dict) -> str:
    """A student's score, its teacher's and, if that is above 0, the fraction."""
    fraction = score["mean"] / teacher_score["mean"] if teacher_score["mean"] > 0 else np.nan
    return f"student {score_text(score)} · teacher {score_text(teacher_score)} · {fraction:.3f}"


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


def load_procgen_agent(path) -> tuple[PixelAgent, dict]:
    """A frozen agent and its header. Raises UserError."""
    make = lambda tensors, header: PixelAgent((3, 64, 64), 15, header["size"])
    return load_agent(path, "procgen", make)


# ------------------------------------------------------------------------------- Environments
def import_procgen(env_id: str):
    """Procgen's simulator class, without its banner. Raises UserError where it cannot play."""
    with suppress(ImportError):  # Procgen imports the old gym, which would print its end of life
        import gym_notices.notices

        gym_notices.notices.notices.clear()
    try:
        from procgen import ProcgenGym3Env
        from procgen.env import ENV_NAMES
    except ImportError as error:
        remedy = "pip install procgen (Python 3.10) or procgen-mirror (3.11, 3.12), x86-64 only"
        raise UserError(f"Procgen is not installed here ({error}): {remedy}") from error
    if env_id not in ENV_NAMES:
        raise UserError(f"--env-id {env_id}: no Procgen game; give one of {', '.join(ENV_NAMES)}")
    return ProcgenGym3Env


class ProcgenVectorEnv(gym.vector.VectorEnv):
    """N games on Procgen's own threads, with same-step autoreset; levels are drawn at random.

    The simulator shows no final observation and no time limit: each end is a termination. The
    observations that `reset` and `step` return are overwritten by the next step.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP, "render_fps": 15}

    def __init__(self, args, num_envs, num_threads, levels="training", render_mode=None):
        """Games on the training levels that `args` names, or the unseen ones: all after those.

        Raises UserError where none are left, or where the game cannot be played.
        """
        start_level, num_levels = args.start_level, args.num_levels
        if start_level + num_levels > 2**31 - 2:
            reason = "leave no unseen level; there are 2147483647, so give less"
            raise UserError(f"--start-level {start_level} --num-levels {num_levels}: {reason}")
        if levels == "unseen":  # num_levels 0, Procgen's "all", would draw training levels too
            start_level, num_levels = start_level + num_levels, 2**31 - 1 - start_level - num_levels
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = gym.spaces.Box(0, 255, (3, 64, 64), np.uint8)
        self.single_action_space = gym.spaces.Discrete(15)
        self.simulator_class, self.simulator = import_procgen(args.env_id), None
        self.options = {"num": num_envs, "env_name": args.env_id, "num_threads": num_threads}
        self.options |= {"num_levels": num_levels, "start_level": start_level}
        self.options |= {"distribution_mode": args.distribution_mode, "render_mode": render_mode}
        # (N, C, H, W) on memory in the simulator's order (N, H, W, C): no pixel is moved
        self.obs = np.zeros((num_envs, 64, 64, 3), np.uint8).transpose(0, 3, 1, 2)

    def observe(self):
        """Take what is shown into `self.obs`; the rewards and ends, (N,), that led to it."""
        rewards, obs, ended = self.simulator.observe()
        self.obs[:] = obs["rgb"].transpose(0, 3, 1, 2)
        return rewards, ended

    def reset(self, *, seed: int = 0, options: dict | None = None):
        """Start new games, the same for the same seed. Returns obs (N, C, H, W) and no infos."""
        # Procgen cannot be seeded again. A new simulator takes milliseconds, as long as the old one
        # keeps the pictures in memory until then.
        old = self.simulator
        self.simulator = self.simulator_class(**self.options, rand_seed=seed)
        if old:
            old.close()
        self.returns, self.lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        self.observe()
        return self.obs, {}

    def step(self, actions: np.ndarray):
        """Actions (N,) to obs (N, C, H, W), rewards, terminations, truncations (N,) and infos.

        infos["episodes"]: (n, return, length) of each that ended; obs[n] is the first of the next.
        """
        self.simulator.act(actions)
        rewards, ended = self.observe()
        self.returns += rewards
        self.lengths += 1
        finished = zip(np.flatnonzero(ended), self.returns[ended], self.lengths[ended], strict=True)
        infos = {"episodes": [(n, float(r), int(k)) for n, r, k in finished]}
        self.returns[ended] = self.lengths[ended] = 0
        return self.obs, rewards, ended, np.zeros_like(ended), infos

    def render(self) -> tuple[np.ndarray, ...]:
        """What a person would see: N frames (512, 512, 3); needs render_mode rgb_array."""
        return tuple(info["rgb"] for info in self.simulator.get_info())

    def state_dict(self) -> dict:
        """Where the games are, with their random numbers."""
        states = self.simulator.get_state()
        games = [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states]
        counts = {name: torch.tensor(getattr(self, name)) for name in ("returns", "lengths")}
        return {"games": games, **counts}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`, after a reset."""
        self.simulator.set_state([game.numpy().tobytes() for game in state["games"]])
        self.returns, self.lengths = state["returns"].numpy(), state["lengths"].numpy()
        self.observe()

    def close_extras(self, **options) -> None:
        """End the simulator and its threads."""
        self.simulator.close()


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
