"""Student-distill: the student acts, and learns to do and to value what its teacher would.

    python student_distill.py mujoco --env-id Hopper-v4
    python student_distill.py procgen                  # or atari; --bfloat16 where the CPU has it
    python student_distill.py mujoco --resume runs/<run>

The baseline of "Proximal Policy Distillation" (Spigler, TMLR 2025), Algorithm 2, after "on-policy
distill" of Czarnecki et al. (2019): the student collects a short rollout, and one gradient step
over all of it minimises

    mean[ KL(π_T ‖ π_θ) ] − α·mean[ H(π_θ) ] + c_v·mean[ (V_φ − V_T)² ]

No reward enters. Differs from `teacher_distill.py`, Algorithm 3, only in who acts. T steps in N
environments are B samples (a loss's M); observations (B, D) on MuJoCo, frames (B, C, H, W) else.
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
from typing import Annotated, Literal

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
from torch.distributions import Categorical, Independent, Normal, OneHotCategorical, kl_divergence
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    # Environment
    env_id: str = ""  # the environment
    seed: int = 100  # of networks, sampling and environments; the paper's: 100, 200, 300, 400, 500
    num_envs: int = 18  # environments stepped side by side, N (Table 3)

    # Optimisation
    total_timesteps: int = 2_000_000  # of all environments; whole rollouts, so it rounds up
    num_steps: int = 5  # per environment and rollout, T (Appendix A.3)
    learning_rate: float = 3e-4  # constant (Table 3)
    adam_eps: float = 1e-5  # Adam's ε (the authors' released code)
    ent_coef: float = 0.0  # entropy coefficient α (Appendix A.3)
    vf_coef: float = 0.5  # weight of the value loss, c_v (SB3's default)
    max_grad_norm: float = 0.5  # of policy and critic together (SB3's default)

    # Distillation
    teacher: str | None = None  # its agent.safetensors; unset: teachers/<env-id>.safetensors
    kl: Literal["forward", "reverse"] = "forward"  # KL(π_T ‖ π_θ), the paper's; or KL(π_θ ‖ π_T)

    # Logging and checkpoints
    log_every: int = 10_000  # steps between two points of the curves, means over all between
    save_every: float = 60.0  # seconds between checkpoints
    run_dir: str | None = None  # new folder of the run; unset: runs/<env>__<script>__<seed>__<time>
    resume: str | None = None  # folder of a stopped run to go on with; takes no other flag
    track: bool = False  # also log to Weights & Biases; pip install wandb, WANDB_PROJECT says where


@dataclass
class MujocoArgs(Args):
    suite = "mujoco"
    env_id: str = "Hopper-v4"  # the paper's: Ant, HalfCheetah, Hopper, Humanoid, Swimmer, each -v4
    num_workers: int = min(torch.get_num_threads(), 6)  # processes stepping them, with this one
    device: Literal["cpu", "cuda"] = "cpu"  # of networks and rollout; a GPU gains nothing here
    torch_threads: int = 1  # CPU threads of an update; more pay for large networks on idle cores
    student_size: Literal["smaller", "same", "larger"] = "larger"  # 128 64, 256 256, 512 512
    hidden_sizes: tuple[int, ...] | None = None  # of policy and critic; unset: as their size says
    eval_every: int = 100_000  # steps between evaluations of ten episodes; 0: none
    episodes: int = 50  # of the final score (Appendix A.3)

    def __post_init__(self):
        sizes = {"smaller": (128, 64), "same": (256, 256), "larger": (512, 512)}  # A.2, A.3
        self.hidden_sizes = self.hidden_sizes or sizes[self.student_size]


@dataclass
class PixelArgs(Args):
    env_threads: int = torch.get_num_threads()  # CPU threads of the simulator
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"  # of networks
    torch_threads: int = torch.get_num_threads()  # CPU threads of the networks, if they run there
    bfloat16: bool = False  # compute in bfloat16, on GPUs and AVX512-BF16 CPUs; scores: float32
    student_size: Literal["smaller", "smaller-text", "same", "larger"] = "smaller"  # see `make_cnn`


@dataclass
class AtariArgs(PixelArgs):
    suite = "atari"
    env_id: str = "CrazyClimberNoFrameskip-v4"  # or another of ale-py's, as QbertNoFrameskip-v4
    frame_skip: int = 4  # frames for which an action is held; the paper's text says 1, its code 4
    eval_every: int = 200_000  # steps between evaluations of ten games; 0: none
    episodes: int = 50  # of the final score (Appendix A.3)


@dataclass
class ProcgenArgs(PixelArgs):
    suite = "procgen"
    env_id: str = "coinrun"  # the paper's: coinrun, jumper, miner, ninja; or another of Procgen's
    num_levels: int = 200  # training levels; the levels after them are unseen
    start_level: int = 0  # the first training level
    distribution_mode: Literal["easy", "hard"] = "easy"  # of the levels (Appendix A.2: easy)
    eval_every: int = 200_000  # steps between evaluations of twenty episodes; 0: none
    episodes: int = 200  # of the final score (Appendix A.3)


# ------------------------------------------------------------------------------- Losses
def value_loss(values, returns):
    """Squared error of the critic, without a further ½ (as SB3): (M,), (M,) to a scalar."""
    # mean[ (V(s) − R̂)² ]
    return nn.functional.mse_loss(values, returns)  # warns of shapes that would broadcast


def policy_kl(teacher_dist, student_dist, direction):
    """KL divergence per state, summed over action dimensions: distributions of M states to (M,)."""
    p, q = (teacher_dist, student_dist) if direction == "forward" else (student_dist, teacher_dist)
    if hasattr(p, "logits"):  # torch's own is infinite where a probability underflows
        return (p.probs * (p.logits - q.logits)).sum(-1)
    return kl_divergence(p, q)


def supervised_loss(kl, entropy_loss, v_loss, ent_coef, vf_coef):
    """The loss of Algorithms 2 and 3: KL (M,) and scalars to a scalar."""
    # mean[KL] − α·mean[H] + c_v·mean[(V − V_T)²]
    return kl.mean() - ent_coef * entropy_loss + vf_coef * v_loss


# ------------------------------------------------------------------------------- Training
def train(args: MujocoArgs | AtariArgs | ProcgenArgs) -> dict:
    """Student-distill and its score; returns what result.json holds. Raises UserError."""
    run = Run(args, args.suite)
    args = run.args  # with --resume, those of the stopped run
    T, B = args.num_steps, args.num_steps * args.num_envs
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.torch_threads)
    torch.distributions.Distribution.set_default_validate_args(False)  # `Run.log` finds NaN
    path = args.teacher or Path(__file__).parent / "teachers" / f"{args.env_id}.safetensors"
    build = {"mujoco": build_mujoco, "atari": build_atari, "procgen": build_procgen}[args.suite]
    envs, eval_envs, teacher, teacher_header, agent, header = build(args, path)
    teacher.to(args.device), agent.to(args.device)
    next_obs, _ = envs.reset(seed=args.seed)
    adam = {"lr": args.learning_rate, "eps": args.adam_eps, "fused": True}
    optimizer = torch.optim.Adam(agent.parameters(), **adam)
    trial = eval_envs[""].num_envs, args.seed, header["deterministic"]  # an episode in each
    if run.step == 0:
        score = evaluate(teacher, eval_envs[""], *trial)
        print("teacher:", score_text(score), f"({trial[0]} episodes)")
    run.start(header, {"agent": agent, "optimizer": optimizer, "envs": envs}, teacher_header)

    dtype = torch.uint8 if next_obs.dtype == np.uint8 else torch.float32
    obs = torch.zeros((T, *next_obs.shape), dtype=dtype, device=args.device)
    actor = agent  # the student acts, and its episodes are logged
    next_obs, episodes, metrics = envs.obs, [], []
    while run.step < run.total:
        # Collect a rollout.
        with torch.no_grad():
            for t in range(T):
                obs[t] = torch.from_numpy(next_obs)
                actions = actor.policy(obs[t]).sample()
                next_obs, _, _, _, infos = envs.step(actor.env_actions(actions))
                episodes += infos["episodes"]
            b_obs = obs.flatten(0, 1)  # (B, …)
            teacher_dist, teacher_values = teacher.policy(b_obs), teacher.value(b_obs)

        # One gradient step over the whole rollout.
        dist = agent.policy(b_obs)
        kl = policy_kl(teacher_dist, dist, args.kl)
        entropy_loss = dist.entropy().mean()
        v_loss = value_loss(agent.value(b_obs), teacher_values)
        loss = supervised_loss(kl, entropy_loss, v_loss, args.ent_coef, args.vf_coef)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
        optimizer.step()
        metrics.append({
            "distill/kl": kl.detach().mean(),
            "losses/value_loss": v_loss.detach(),
            "losses/entropy": entropy_loss.detach(),
            "losses/grad_norm": norm,
        })  # fmt: skip
        run.step += B
        last = run.step == run.total
        if run.due(args.log_every, B) or last or not norm.isfinite():
            run.log(metrics, {}, episodes)
            episodes, metrics = [], []
        if run.due(args.eval_every, B) or last and args.eval_every:
            for kind, some_envs in eval_envs.items():
                run.log_evaluation(evaluate(agent, some_envs, *trial), kind)
        if not metrics:  # a checkpoint holds no half of a mean
            run.save(args.save_every)

    run.bar.close()  # the final score, by the paper's protocol
    scores, protocol = {}, (args.episodes, args.seed, header["deterministic"])
    for key, policy in [("score", agent), ("teacher_score", teacher)]:
        for kind, some_envs in eval_envs.items():
            score = evaluate(policy, some_envs, *protocol)
            scores[key + kind] = score_games(args.env_id, score) if args.suite == "atari" else score
    result = run.finish(**scores)
    compare = compare_games if args.suite == "atari" else compare_scores
    for kind in eval_envs:
        levels = f"{'training' if kind else 'unseen'} levels: " if args.suite == "procgen" else ""
        print(levels + compare(scores["score" + kind], scores["teacher_score" + kind]))
    return result


def build_mujoco(args, path):
    """Environments, those to evaluate in, teacher, its header, student, header."""
    envs = MujocoVectorEnv(args.env_id, args.num_envs, args.num_workers)
    eval_envs = {"": MujocoVectorEnv(args.env_id, 10, args.num_workers)}
    (obs_dim,), box = envs.single_observation_space.shape, envs.single_action_space
    teacher, teacher_header = load_mujoco_agent(path, (obs_dim, *box.shape, box.dtype))
    if teacher.critic is None:
        raise UserError(f"{path}: has no critic to learn from; use ppd_mujoco.py")
    agent = MujocoAgent(box.low, box.high, obs_dim, args.hidden_sizes)
    for name in ("obs_mean", "obs_var", "obs_count", "obs_clip"):  # the teacher's, frozen
        agent.get_buffer(name).copy_(teacher.get_buffer(name))
    header = {"suite": "mujoco", "hidden_sizes": args.hidden_sizes, "deterministic": True}
    return envs, eval_envs, teacher, teacher_header, agent, header


def build_atari(args, path):
    """As `build_mujoco`."""
    envs = AtariGames(args.env_id, args.num_envs, args.env_threads, args.frame_skip, life_loss=True)
    eval_envs = AtariGames(args.env_id, 10, args.env_threads, args.frame_skip, life_loss=False)
    obs_shape, num_actions = envs.single_observation_space.shape, int(envs.single_action_space.n)
    teacher, teacher_header = load_atari_agent(path, num_actions)
    agent = PixelAgent(obs_shape, num_actions, args.student_size)
    agent.bfloat16 = args.bfloat16
    header = {"suite": "atari", "frame_skip": args.frame_skip, "size": args.student_size}
    return envs, {"": eval_envs}, teacher, teacher_header, agent, header | {"deterministic": True}


def build_procgen(args, path):
    """As `build_mujoco`; evaluated on unseen and on training levels, with sampled actions."""
    envs = ProcgenVectorEnv(args, args.num_envs, args.env_threads)
    kinds = {"": "unseen", "_training": "training"}
    eval_envs = {k: ProcgenVectorEnv(args, 20, args.env_threads, v) for k, v in kinds.items()}
    teacher, teacher_header = load_procgen_agent(path)
    agent = PixelAgent((3, 64, 64), 15, args.student_size)
    agent.bfloat16 = args.bfloat16
    header = {"suite": "procgen", "size": args.student_size, "deterministic": False}
    header |= {k: getattr(args, k) for k in ("num_levels", "start_level", "distribution_mode")}
    return envs, eval_envs, teacher, teacher_header, agent, header


# ------------------------------------------------------------------------------- Agents
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


# ------------------------------------------------------------------------------- Convolutions
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


# ------------------------------------------------------------------------------- Scoring
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


def score_games(env_id: str, score: dict) -> dict:
    """`evaluate`'s answer, how many games were distinct, and the human-normalised mean.

    A deterministic policy plays the same game after the same no-ops. Human-normalised, 0 is random
    play and 1 a human (Badia et al., 2020); known for the paper's games.
    """
    bases = {
        "Atlantis": (12850.0, 29028.1), "BeamRider": (363.9, 16926.5),
        "CrazyClimber": (10780.5, 35829.4), "DemonAttack": (152.1, 1971.0),
        "Enduro": (0.0, 860.5), "Freeway": (0.0, 29.6), "MsPacman": (307.3, 6951.6),
        "Pong": (-20.7, 14.6), "Qbert": (163.9, 13455.0), "Seaquest": (68.4, 42054.7),
        "Zaxxon": (32.5, 9173.3),
    }  # fmt: skip
    score = score | {"distinct": len(set(zip(score["returns"], score["lengths"], strict=True)))}
    if base := bases.get(env_id.removesuffix("NoFrameskip-v4")):
        random, human = base
        score["human_normalized"] = (score["mean"] - random) / (human - random)
    return score


def game_score_text(score: dict) -> str:
    """Mean ± standard error, distinct games and, where known, the human-normalised mean."""
    text = f"{score_text(score)}, {score['distinct']} distinct games"
    known = "human_normalized" in score
    return text + (f", human-normalised {score['human_normalized']:.2f}" if known else "")


def compare_games(score: dict, teacher_score: dict) -> str:
    """A student's score, its teacher's and, if that is above 0, the fraction, human-normalised."""
    mine, theirs = (s.get("human_normalized", s["mean"]) for s in (score, teacher_score))
    scores = f"student {game_score_text(score)} · teacher {game_score_text(teacher_score)}"
    return f"{scores} · {mine / theirs if theirs > 0 else np.nan:.3f}"


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


def load_atari_agent(path, num_actions: int | None = None) -> tuple[PixelAgent, dict]:
    """A frozen agent, if it has so many actions, and its header. Raises UserError."""

    def make(tensors, header):
        found = len(tensors["actor.1.bias"])
        if num_actions not in (None, found):
            raise ValueError(f"it has {found} actions, not {num_actions}")
        return PixelAgent((4, 84, 84), found, header["size"])

    return load_agent(path, "atari", make)


def load_procgen_agent(path) -> tuple[PixelAgent, dict]:
    """A frozen agent and its header. Raises UserError."""
    make = lambda tensors, header: PixelAgent((3, 64, 64), 15, header["size"])
    return load_agent(path, "procgen", make)


# ------------------------------------------------------------------------------- MuJoCo
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


# ------------------------------------------------------------------------------- Atari
def find_rom(env_id: str) -> str:
    """MsPacmanNoFrameskip-v4 to ale-py's ms_pacman. Raises UserError for what is no Atari game."""
    from ale_py import roms

    game = env_id.removesuffix("NoFrameskip-v4")
    rom = re.sub(r"(?<!^)(?=[A-Z])", "_", game).lower()
    if game == env_id or rom not in roms.get_all_rom_ids():
        raise UserError(f"--env-id {env_id}: no Atari game of ale-py's; try PongNoFrameskip-v4")
    return rom


class AtariGames(gym.vector.VectorEnv):
    """N games on ale-py's own threads, with same-step autoreset.

    Frames and games as in Gymnasium's NoFrameskip-v4 ids with AtariPreprocessing and
    FrameStackObservation: 84×84, grey, the last four, oldest first; at a game's start FIRE, where
    it has that button, and up to 29 no-ops. With `life_loss` a lost life is a termination as well,
    and the game goes on; infos["episodes"] are whole games.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}

    def __init__(self, env_id, num_envs: int, num_threads: int, frame_skip: int, life_loss: bool):
        from ale_py.vector_env import AtariVectorEnv

        max_frames = 108_000  # half an hour of play, then a truncation
        self.simulator = AtariVectorEnv(
            find_rom(env_id), num_envs, num_threads=num_threads, frameskip=frame_skip,
            max_num_frames_per_episode=max_frames, repeat_action_probability=0.0,
            full_action_space=False, reward_clipping=False, noop_max=30, use_fire_reset=True,
            life_loss_info=life_loss, episodic_life=False,
        )  # fmt: skip
        self.num_envs, self.life_loss = num_envs, life_loss
        self.single_observation_space = self.simulator.single_observation_space
        self.single_action_space = self.simulator.single_action_space
        # The simulator cannot be saved. A game is its slot's seed, the number of games that were
        # played there since it was seeded, and the actions since the game's start.
        self.seeds, self.games, self.lengths = np.zeros((3, num_envs), np.int64)
        self.actions = np.zeros((num_envs, max_frames // frame_skip + 2), np.uint8)
        self.returns = np.zeros(num_envs)

    def reset(self, *, seed: int = 0, options: dict | None = None):
        """Start new games, slot n from seed + n. Returns obs (N, C, H, W) and no infos."""
        self.seeds = seed + np.arange(self.num_envs)
        self.games[:] = self.lengths[:] = self.returns[:] = 0
        self.obs, _ = self.simulator.reset(seed=self.seeds)
        return self.obs, {}

    def start_games(self, slots: np.ndarray) -> None:
        """Start the next game in each slot that the mask (N,) marks."""
        # Without a seed: seeding loads the ROM again, which takes as long as 250 steps.
        self.obs, _ = self.simulator.reset(options={"reset_mask": slots})
        self.games[slots] += 1
        self.lengths[slots] = self.returns[slots] = 0

    def step(self, actions: np.ndarray):
        """Actions (N,) to obs (N, C, H, W), rewards, terminations, truncations (N,) and infos.

        infos["episodes"]: (n, return, length) of each game that is over; infos["final_obs"][n]:
        its last observation. obs[n] is the first of the next one.
        """
        self.actions[np.arange(self.num_envs), self.lengths] = actions
        self.obs, rewards, terminations, truncations, state = self.simulator.step(actions)
        infos = {"final_obs": self.obs}
        self.returns += rewards
        self.lengths += 1
        plays_on = self.life_loss & (state["lives"] > 0)  # games without lives report 0
        over = terminations & ~plays_on | truncations
        finished = zip(np.flatnonzero(over), self.returns[over], self.lengths[over], strict=True)
        infos["episodes"] = [(n, float(r), int(k)) for n, r, k in finished]
        if over.any():  # at once, or the next step would be lost to the simulator's own reset
            self.start_games(over)
        return self.obs, rewards, terminations, truncations, infos

    def state_dict(self) -> dict:
        """What it takes to play the running games again, and what they show."""
        names = ("seeds", "games", "lengths", "returns", "obs")
        state = {name: torch.tensor(getattr(self, name)) for name in names}
        return state | {"actions": torch.tensor(self.actions[:, : self.lengths.max()])}

    def load_state_dict(self, state: dict) -> None:
        """Play the running games again from their starts, up to where they were."""
        names = ("seeds", "games", "lengths", "returns", "actions")
        seeds, games, lengths, returns, actions = (state[name].numpy() for name in names)
        longest, rows = lengths.max(), np.arange(self.num_envs)
        # All end together: a shorter game starts later, and its slot plays anything until then.
        for left in reversed(range(longest + 1)):  # steps
            for slot in np.flatnonzero(lengths == left):
                mask = rows == slot
                self.obs, _ = self.simulator.reset(seed=seeds[mask], options={"reset_mask": mask})
                for _ in range(games[slot]):
                    self.start_games(mask)
            if left > 0:
                played = np.maximum(lengths - left, 0)
                self.obs = self.simulator.step(actions[rows, played].astype(np.int64))[0]
        self.seeds, self.games, self.lengths, self.returns = seeds, games, lengths, returns
        self.actions[:, :longest] = actions
        if not np.array_equal(self.obs, state["obs"].numpy()):
            print("WARNING: the running episodes do not replay to where they stopped")


# ------------------------------------------------------------------------------- Procgen
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
    suites = Annotated[MujocoArgs, tyro.conf.subcommand("mujoco")]
    suites |= Annotated[AtariArgs, tyro.conf.subcommand("atari")]
    suites |= Annotated[ProcgenArgs, tyro.conf.subcommand("procgen")]
    try:
        train(tyro.cli(suites, description=__doc__))
    except (UserError, OSError, ImportError, torch.OutOfMemoryError) as error:
        tqdm.write(f"{Path(__file__).stem}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    guard_process()
    main()
