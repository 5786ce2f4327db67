"""Student-distill: the student acts, and learns to do and to value what its teacher would.

    python student_distill.py mujoco --env-id Hopper-v4
    python student_distill.py procgen                  # or atari
    python student_distill.py mujoco --resume runs/<run>      # continue a stopped run

A baseline of "Proximal Policy Distillation" (Spigler, TMLR 2025): its Algorithm 2, after "on-policy
distill" of Czarnecki et al. (2019). The student collects a short rollout, and one gradient step
over all of it minimises

    mean[ KL(π_T ‖ π_θ) ] − α·mean[ H(π_θ) ] + c_v·mean[ (V_φ − V_T)² ]

No reward is used. `teacher_distill.py`, Algorithm 3, differs only in who acts.

The method comes first: Args, losses, networks, training. The rest supports it: scoring, runs and
checkpoints, environments. T steps in N environments give B samples. Observations are (B, D) on
MuJoCo, and frames (B, C, H, W) on Atari and Procgen. Actions have A dimensions, or A choices.
"""

import importlib.metadata
import io
import json
import math
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import warnings
import zipfile
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

# Idle torch threads sleep. By default they spin, which slows other processes on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
    seed: int = 100  # seed of networks, sampling and environments; paper: 100, 200, 300, 400, 500
    num_envs: int = 18  # number of parallel environments, N (Table 3)

    # Optimisation
    total_timesteps: int = 2_000_000  # environment steps in total, rounded up to whole rollouts
    num_steps: int = 5  # steps per environment and rollout, T (Appendix A.3)
    learning_rate: float = 3e-4  # Adam's learning rate, constant (Table 3)
    adam_eps: float = 1e-5  # Adam's ε (the authors' code)
    ent_coef: float = 0.0  # entropy coefficient α (Appendix A.3)
    vf_coef: float = 0.5  # coefficient of the value loss, c_v (SB3's default)
    max_grad_norm: float = 0.5  # gradient norm limit of policy and critic together (SB3's default)

    # Distillation
    teacher: str | None = None  # path of its checkpoint; default: teachers/<env-id>.safetensors
    kl: Literal["forward", "reverse"] = "forward"  # KL(π_T ‖ π_θ), as the paper, or KL(π_θ ‖ π_T)

    # Logging and checkpoints
    log_every: int = 10_000  # steps between points of the training curves, which are means
    save_every: float = 60.0  # seconds between checkpoints
    run_dir: str | None = None  # new folder; default: runs/<env>__<script>__<seed>__<time>
    resume: str | None = None  # folder of a stopped run to continue, without any other flag
    track: bool = False  # also log to Weights & Biases; needs `pip install wandb`


@dataclass
class MujocoArgs(Args):
    suite = "mujoco"
    env_id: str = "Hopper-v4"  # Gymnasium id; paper: Ant, HalfCheetah, Hopper, Humanoid, Swimmer
    num_workers: int = min(torch.get_num_threads(), 6)  # processes with environments, this included
    device: Literal["cpu", "cuda"] = "cpu"  # small networks: a GPU is no faster
    torch_threads: int = 1  # CPU threads of the networks; try more for large ones on idle cores
    student_size: Literal["smaller", "same", "larger"] = "larger"  # layers 128 64, 256 256, 512 512
    hidden_sizes: tuple[int, ...] | None = None  # hidden layers; default: set by --student-size
    eval_every: int = 100_000  # steps between evaluations of ten episodes; 0: never
    episodes: int = 50  # episodes of the final score (Appendix A.3)

    def __post_init__(self):
        if self.hidden_sizes is None:
            sizes = {"smaller": (128, 64), "same": (256, 256), "larger": (512, 512)}  # A.2, A.3
            self.hidden_sizes = sizes[self.student_size]


@dataclass
class PixelArgs(Args):
    env_threads: int = torch.get_num_threads()  # CPU threads of the simulator
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"  # of networks
    torch_threads: int = torch.get_num_threads()  # CPU threads of the networks
    bfloat16: bool = False  # train in bfloat16, on GPUs and CPUs with AVX512-BF16; scores: float32
    student_size: Literal["smaller", "smaller-text", "same", "larger"] = "smaller"  # see `make_cnn`


@dataclass
class AtariArgs(PixelArgs):
    suite = "atari"
    env_id: str = "CrazyClimberNoFrameskip-v4"  # any game of ale-py, as QbertNoFrameskip-v4
    frame_skip: int = 4  # frames per action; the paper's text says 1, the authors' code 4
    eval_every: int = 200_000  # steps between evaluations of ten games; 0: never
    episodes: int = 50  # episodes of the final score (Appendix A.3)


@dataclass
class ProcgenArgs(PixelArgs):
    suite = "procgen"
    env_id: str = "coinrun"  # any Procgen game; paper: coinrun, jumper, miner, ninja
    num_levels: int = 200  # number of training levels; the levels after them are unseen
    start_level: int = 0  # the first training level
    distribution_mode: Literal["easy", "hard"] = "easy"  # of the levels (Appendix A.2: easy)
    eval_every: int = 200_000  # steps between evaluations of twenty episodes; 0: never
    episodes: int = 200  # episodes of the final score (Appendix A.3)


# ------------------------------------------------------------------------------- Losses
def value_loss(values, targets):
    """Mean squared error of the critic, without a factor ½, as SB3: (M,) and (M,) to a scalar.

    Targets are returns R̂; in student-distill and teacher-distill, the teacher's values V_T.
    """
    # mean[ (V(s) − target)² ]
    return nn.functional.mse_loss(values, targets)  # warns if the shapes differ


def policy_kl(teacher_dist, student_dist, direction):
    """KL divergence in each state, summed over action dimensions: M distributions to (M,)."""
    p, q = (teacher_dist, student_dist) if direction == "forward" else (student_dist, teacher_dist)
    if isinstance(p, Categorical | OneHotCategorical):
        # Torch's own is infinite if a probability underflows to 0.
        return (p.probs * (p.logits - q.logits)).sum(-1)
    return kl_divergence(p, q)


def supervised_loss(kl, entropy, v_loss, ent_coef, vf_coef):
    """The loss of Algorithms 2 and 3: KL (M,), mean entropy and value loss to a scalar."""
    # mean[KL] − α·mean[H] + c_v·mean[(V − V_T)²]
    return kl.mean() - ent_coef * entropy + vf_coef * v_loss


# ------------------------------------------------------------------------------- Agents
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
def learn(args: MujocoArgs | AtariArgs | ProcgenArgs, run: "Run") -> dict:
    """Student-distill, and scores of student and teacher; returns the content of result.json."""
    T, B = args.num_steps, args.num_steps * args.num_envs
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.torch_threads)
    env_name = args.env_id.split(":")[-1]  # without the module that registers it
    path = args.teacher or Path(__file__).parent / "teachers" / f"{env_name}.safetensors"
    build = {"mujoco": build_mujoco, "atari": build_atari, "procgen": build_procgen}[args.suite]
    # `eval_envs` is a dict: "" is for the score, and on Procgen "_training" for training levels.
    (envs, eval_envs), (teacher, teacher_header), (agent, header) = build(args, path, run)
    envs.reset(seed=args.seed)
    teacher.to(args.device)
    agent.to(args.device)
    adam = {"lr": args.learning_rate, "eps": args.adam_eps, "fused": True}
    optimizer = torch.optim.Adam(agent.parameters(), **adam)
    eval_episodes = eval_envs[""].num_envs  # one in each environment
    deterministic = header["deterministic"]  # whether scored by the policy's mode, or by samples
    if run.step == 0:
        score = evaluate(teacher, eval_envs[""], eval_episodes, args.seed, deterministic)
        print("teacher:", score_text(score), f"({eval_episodes} episodes)")
    parts = {"agent": agent, "optimizer": optimizer, "envs": envs}
    run.start(header, parts, teacher_header)  # also restores the parts of a resumed run

    # The first observations: of the reset above or, in a resumed run, where the replay ended.
    next_obs = envs.obs
    dtype = torch.float32 if args.suite == "mujoco" else torch.uint8
    obs = torch.zeros((T, *next_obs.shape), dtype=dtype, device=args.device)  # raw
    actor = agent  # the student acts, and its episodes are logged
    episodes, metrics = [], []  # since the last log
    while run.step < run.total:
        # Collect a rollout, and ask the teacher what it would do and how it values the states.
        with torch.no_grad():
            for t in range(T):
                obs[t] = torch.as_tensor(next_obs)
                actions = actor.policy(obs[t]).sample()
                next_obs, *_, infos = envs.step(actor.env_actions(actions))
                episodes += infos["episodes"]
            b_obs = obs.flatten(0, 1)  # (B, …)
            teacher_dist, teacher_values = teacher.policy(b_obs), teacher.value(b_obs)

        # Take one gradient step over the whole rollout.
        dist = agent.policy(b_obs)
        kl = policy_kl(teacher_dist, dist, args.kl)
        entropy = dist.entropy().mean()
        v_loss = value_loss(agent.value(b_obs), teacher_values)
        loss = supervised_loss(kl, entropy, v_loss, args.ent_coef, args.vf_coef)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
        optimizer.step()
        metrics.append({
            "distill/kl": kl.detach().mean(),
            "losses/value_loss": v_loss.detach(),
            "losses/entropy": entropy.detach(),
            "losses/grad_norm": grad_norm,
        })  # fmt: skip
        if run.step == 0:
            advise_vf_coef(v_loss.item(), args.vf_coef)
        run.step += B
        last = run.step >= run.total
        # A point of a curve is a mean over many short rollouts. NaN ends the run at once.
        if run.step % args.log_every < B or last or not grad_norm.isfinite():
            run.log(metrics, {}, episodes)
            episodes, metrics = [], []
        if args.eval_every and (run.step % args.eval_every < B or last):
            for kind, some_envs in eval_envs.items():
                score = evaluate(agent, some_envs, eval_episodes, args.seed, deterministic)
                run.log_evaluation(score, kind)
        if not metrics:  # a checkpoint does not hold what is not yet logged
            run.save_if_due()

    # The final scores, by the paper's protocol (Appendix A.3).
    run.bar.close()
    scores = {}
    for name, policy in (("score", agent), ("teacher_score", teacher)):
        for kind, some_envs in eval_envs.items():
            score = evaluate(policy, some_envs, args.episodes, args.seed, deterministic)
            if args.suite == "atari":
                score = score_games(args.env_id, score)
            scores[name + kind] = score
    result = run.finish(**scores)
    compare = compare_games if args.suite == "atari" else compare_scores
    for kind in eval_envs:
        levels = "training levels: " if kind else "unseen levels: "
        text = compare(scores["score" + kind], scores["teacher_score" + kind])
        print(levels + text if args.suite == "procgen" else text)
    return result


def build_mujoco(args: MujocoArgs, teacher_path, run: "Run") -> tuple:
    """Environments and those of evaluations; the teacher and its header; the student and its."""
    # Run is an ExitStack: it closes at the end what it has entered.
    envs = run.enter_context(MujocoVectorEnv(args.env_id, args.num_envs, args.num_workers))
    eval_envs = run.enter_context(MujocoVectorEnv(args.env_id, 10, args.num_workers))
    action_space, (obs_dim,) = envs.single_action_space, envs.single_observation_space.shape
    teacher, teacher_header = load_mujoco_agent(teacher_path, envs)
    if teacher.critic is None:
        raise UserError(f"{teacher_path}: has no critic to learn from; use ppd_mujoco.py")
    agent = MujocoAgent(action_space.low, action_space.high, obs_dim, args.hidden_sizes)
    # As in the paper, the student uses the teacher's observation statistics, which never change.
    for name in ("obs_mean", "obs_var", "obs_count", "obs_clip"):
        agent.get_buffer(name).copy_(teacher.get_buffer(name))
    header = {"suite": "mujoco", "hidden_sizes": args.hidden_sizes}
    header["deterministic"] = True  # evaluate.py scores it by the policy's mode
    return (envs, {"": eval_envs}), (teacher, teacher_header), (agent, header)


def build_atari(args: AtariArgs, teacher_path, run: "Run") -> tuple:
    """What `build_mujoco` returns, for Atari."""
    envs = AtariGames(args.env_id, args.num_envs, args.env_threads, args.frame_skip, life_loss=True)
    eval_envs = AtariGames(args.env_id, 10, args.env_threads, args.frame_skip, life_loss=False)
    obs_shape, num_actions = envs.single_observation_space.shape, int(envs.single_action_space.n)
    teacher, teacher_header = load_atari_agent(teacher_path, envs)
    if teacher_header["frame_skip"] != args.frame_skip:
        print(f"WARNING: the teacher was trained with frame_skip {teacher_header['frame_skip']}")
    agent = PixelAgent(obs_shape, num_actions, args.student_size)
    agent.bfloat16 = args.bfloat16
    header = {"suite": "atari", "frame_skip": args.frame_skip, "size": args.student_size}
    header["deterministic"] = True  # evaluate.py scores it by the policy's mode
    return (envs, {"": eval_envs}), (teacher, teacher_header), (agent, header)


def build_procgen(args: ProcgenArgs, teacher_path, run: "Run") -> tuple:
    """What `build_mujoco` returns, for Procgen."""
    envs = ProcgenVectorEnv(args, args.num_envs, args.env_threads)
    unseen = ProcgenVectorEnv(args, 20, args.env_threads, "unseen")
    training = ProcgenVectorEnv(args, 20, args.env_threads)
    teacher, teacher_header = load_procgen_agent(teacher_path)
    level_settings = {k: vars(args)[k] for k in ("num_levels", "start_level", "distribution_mode")}
    for name, setting in level_settings.items():
        if teacher_header[name] != setting:
            print(f"WARNING: the teacher was trained with {name} {teacher_header[name]}")
    agent = PixelAgent(envs.single_observation_space.shape, 15, args.student_size)
    agent.bfloat16 = args.bfloat16
    header = {"suite": "procgen", "size": args.student_size, **level_settings}
    header["deterministic"] = False  # evaluate.py scores it by samples of the policy
    return (envs, {"": unseen, "_training": training}), (teacher, teacher_header), (agent, header)


def advise_vf_coef(v_loss: float, vf_coef: float) -> None:
    """Print a hint if the first value loss is so large that it hides the KL.

    The critic starts near 0, so this loss is the mean square of the teacher's values: below 50 for
    the teachers in teachers/, which were trained with normalised rewards. The gradient norm of
    policy and critic together is limited, so a large value loss leaves little of the KL's gradient.
    On Hopper, values 10 times as large (2,400 after the factor c_v) delay the student little, and
    17 times as large (6,900) by some 250 updates.
    """
    if vf_coef * v_loss > 5_000:
        advice = f"try --vf-coef {vf_coef * 50 / v_loss:.0e}"
        tqdm.write(
            f"HINT: the teacher's values are about ±{v_loss**0.5:.0f}, as for rewards that are not "
            f"normalised. The value loss hides the KL, and the student learns late: {advice}"
        )


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


# ------------------------------------------------------------------------------- Scoring
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


def load_procgen_agent(path) -> tuple[PixelAgent, dict]:
    """A frozen agent and its header. Raises UserError."""
    tensors, header = read_agent(path, "procgen")
    agent = PixelAgent((3, 64, 64), 15, header["size"])
    try:
        agent.load_state_dict(tensors)
    except RuntimeError as error:  # the header describes other layers
        raise UserError(f"{path}: {error}") from error
    return agent.eval().requires_grad_(False), header


# ------------------------------------------------------------------------------- MuJoCo
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


# ------------------------------------------------------------------------------- Atari
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


# ------------------------------------------------------------------------------- Procgen
def import_procgen(env_id: str):
    """Procgen's simulator class, without its banner. Raises UserError if it cannot play."""
    with suppress(ImportError):  # Procgen imports the old gym, which would print a notice
        import gym_notices.notices

        gym_notices.notices.notices.clear()
    try:
        from procgen import ProcgenGym3Env
        from procgen.env import ENV_NAMES
    except ImportError as error:
        advice = "pip install procgen (Python 3.10) or procgen-mirror (3.11, 3.12), x86-64 only"
        raise UserError(f"Procgen is not installed here ({error}): {advice}") from error
    if env_id not in ENV_NAMES:
        names = ", ".join(ENV_NAMES)
        raise UserError(f"--env-id {env_id}: not a Procgen game; give one of {names}")
    return ProcgenGym3Env


class ProcgenVectorEnv(gym.vector.VectorEnv):
    """N games on Procgen's own threads, with same-step autoreset; levels are drawn at random.

    The simulator gives no final observation and does not tell time limits: each end is a
    termination. The next step overwrites the observations that `reset` and `step` return.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP, "render_fps": 15}

    def __init__(self, args, num_envs, num_threads, levels="training", render_mode=None):
        """Games on the training levels that `args` describe, or "unseen": on all levels after them.

        `args` has env_id, num_levels, start_level and distribution_mode. Raises UserError if no
        unseen level is left, or if the game cannot be played.
        """
        start_level, num_levels = args.start_level, args.num_levels
        if start_level + num_levels > 2**31 - 2:
            advice = "they leave no unseen level of 2147483647; give less"
            raise UserError(f"--start-level {start_level} --num-levels {num_levels}: {advice}")
        if levels == "unseen":  # Procgen's "all", num_levels 0, would draw training levels too
            start_level += num_levels
            num_levels = 2**31 - 1 - start_level
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = gym.spaces.Box(0, 255, (3, 64, 64), np.uint8)
        self.single_action_space = gym.spaces.Discrete(15)
        self.simulator_class, self.simulator = import_procgen(args.env_id), None
        self.options = {"num": num_envs, "env_name": args.env_id, "num_threads": num_threads}
        self.options |= {"num_levels": num_levels, "start_level": start_level}
        self.options |= {"distribution_mode": args.distribution_mode, "render_mode": render_mode}
        # (N, C, H, W), in memory (N, H, W, C) as the simulator's frames: copying moves no pixel
        self.obs = np.zeros((num_envs, 64, 64, 3), np.uint8).transpose(0, 3, 1, 2)

    def observe(self) -> tuple[np.ndarray, np.ndarray]:
        """Copy the frames to `self.obs`. Returns rewards and ends (N,) of the last step."""
        rewards, obs, ended = self.simulator.observe()
        self.obs[:] = obs["rgb"].transpose(0, 3, 1, 2)
        return rewards, ended

    def reset(self, *, seed: int = 0, options: dict | None = None):
        """Start new games, the same for the same seed. Returns obs (N, C, H, W) and no infos."""
        # A simulator cannot be seeded again, so it is replaced. Making one takes milliseconds if
        # the old one still exists, which keeps the game's pictures in memory.
        old = self.simulator
        self.simulator = self.simulator_class(**self.options, rand_seed=seed)
        if old:
            old.close()
        self.returns, self.lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        self.observe()
        return self.obs, {}

    def step(self, actions: np.ndarray):
        """Actions (N,) to obs (N, C, H, W), rewards, terminations and truncations (N,), and infos.

        infos["episodes"] lists (n, return, length) of the episodes that just ended. obs[n] starts
        the next one.
        """
        self.simulator.act(actions)
        rewards, ended = self.observe()
        self.returns += rewards
        self.lengths += 1
        infos = {"episodes": []}
        for n in np.flatnonzero(ended):
            infos["episodes"].append((n, float(self.returns[n]), int(self.lengths[n])))
        self.returns[ended] = self.lengths[ended] = 0
        return self.obs, rewards, ended, np.zeros_like(ended), infos

    def render(self) -> tuple[np.ndarray, ...]:
        """N frames (512, 512, 3) as a person would see them; needs render_mode "rgb_array"."""
        return tuple(info["rgb"] for info in self.simulator.get_info())

    def state_dict(self) -> dict:
        """The states of the games, with their random numbers."""
        states = self.simulator.get_state()
        games = [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states]
        counts = {name: torch.tensor(getattr(self, name)) for name in ("returns", "lengths")}
        return {"games": games, **counts}

    def load_state_dict(self, state: dict) -> None:
        """Restore the games; needs a reset before."""
        self.simulator.set_state([game.numpy().tobytes() for game in state["games"]])
        self.returns, self.lengths = state["returns"].numpy(), state["lengths"].numpy()
        self.observe()

    def close_extras(self, **options) -> None:
        """End the simulator and its threads."""
        if self.simulator:
            self.simulator.close()


# ------------------------------------------------------------------------------- Main
def train(args: MujocoArgs | AtariArgs | ProcgenArgs) -> dict:
    """Run the whole training; returns the content of result.json.

    Raises UserError for mistakes in arguments, files and environments.
    """
    with Run(args, args.suite) as run:  # closes its files and processes, however training ends
        return learn(run.args, run)


def main() -> None:
    suites = Annotated[MujocoArgs, tyro.conf.subcommand("mujoco")]
    suites |= Annotated[AtariArgs, tyro.conf.subcommand("atari")]
    suites |= Annotated[ProcgenArgs, tyro.conf.subcommand("procgen")]
    try:
        train(tyro.cli(suites, description=__doc__))
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
#     "procgen==0.10.7; python_version < '3.11' and platform_machine == 'x86_64'",
#     "procgen-mirror==0.10.7; python_version in '3.11 3.12' and platform_machine == 'x86_64'",
# ]
# ///
