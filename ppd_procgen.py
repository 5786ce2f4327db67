"""Proximal Policy Distillation (PPD) on Procgen: a student learns from a teacher and from reward.

    python ppd_procgen.py --env-id coinrun                             # 2 M steps, larger student
    python ppd_procgen.py --env-id coinrun --student-size smaller --teacher PATH.safetensors
    python ppd_procgen.py --resume runs/<run>                          # go on where a run stopped

"Proximal Policy Distillation" (Spigler, TMLR 2025), Algorithm 1: PPO on the student's own rollouts,
whose objective also keeps the student near the teacher, by a KL term weighted with the clipped
importance ratio:

    max  mean[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) + α·H(π_θ) − λ·KL(π_T ‖ π_θ)·max(r, 1−ε) ]

Differs from `ppo_teacher_procgen.py` only in the teacher: loaded, scored, asked once per rollout,
in the loss. The critic is trained from scratch.

The paper's games: coinrun, jumper, miner, ninja; the other twelve of Procgen work as well.
Symbols: T steps per rollout, N games, B = T·N samples, M minibatch, A actions; frames (C, H, W).
"""

import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch.distributions import Categorical, Distribution
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class UserError(Exception):
    """Something a user can cause and mend: one line, the cause and the remedy; exit status 2."""


@dataclass
class Args:
    # Environment
    env_id: str = "coinrun"
    """the environment; those of the paper stand at the top of the script"""
    num_levels: int = 200
    """training levels, one of which is drawn for each episode; the levels after them are unseen"""
    start_level: int = 0
    """the first training level"""
    distribution_mode: Literal["easy", "hard"] = "easy"
    """difficulty of the levels (Appendix A.3: easy)"""
    seed: int = 100
    """seed of networks, sampling and environments; the paper's: 100, 200, 300, 400, 500"""
    num_envs: int = 18
    """environments stepped side by side, N (Table 3)"""
    env_threads: int | None = None
    """CPU threads of the simulator; unset: as many as torch takes, one per core"""
    device: str = "auto"
    """torch device of networks and rollout: cpu, cuda, cuda:1, …; auto: cuda if there is one"""
    torch_threads: int | None = None
    """CPU threads of torch; unset: one, or one per core where that is measured to be faster"""
    compile: bool = False
    """compile the networks, on a GPU into CUDA graphs; takes a minute at the start"""
    bfloat16: bool = False
    """run the networks in bfloat16 where torch's autocast does, for a GPU; weights stay float32"""

    # Optimisation
    total_timesteps: int = 2_000_000
    """environment steps, all environments together; whole rollouts, so the total rounds up"""
    learning_rate: float = 3e-4
    """Adam's learning rate, constant (Table 3)"""
    adam_eps: float = 1e-5
    """Adam's ε (the authors' released code)"""
    max_grad_norm: float = 0.5
    """largest gradient norm, policy and critic together (SB3's default)"""
    student_size: Literal["smaller", "same", "larger"] = "larger"
    """networks of policy and critic, smaller than, same as, larger than the teacher's (Table 4)"""
    smaller_cnn: Literal["table", "text"] = "table"
    """what "smaller" is: as the paper's Table 4 counts it, or as its text describes it"""

    # PPO
    num_steps: int | None = None
    """steps per environment and rollout, T; unset: the paper's for the environment (Table 3)"""
    minibatch_size: int = 512
    """samples per gradient step, M; the last minibatch of an epoch may be smaller (Table 3)"""
    update_epochs: int = 4
    """passes over each rollout (Table 3)"""
    gamma: float | None = None
    """discount γ; unset: the paper's for the environment (Table 3, Appendix A.3)"""
    gae_lambda: float = 0.9
    """λ of generalised advantage estimation (Table 3)"""
    clip_coef: float = 0.2
    """clip range ε of the importance ratio (SB3's default)"""
    ent_coef: float | None = None
    """entropy coefficient α; unset: the paper's for the environment (Table 3, Appendix A.3)"""
    vf_coef: float = 0.5
    """weight of the value loss (SB3's default)"""

    # Distillation
    teacher: str | None = None
    """the teacher's agent.safetensors; unset: teachers/<env-id>.safetensors beside this script"""
    distill_lambda: float = 1.0
    """weight λ of the distillation loss; 0 is exactly PPO (the paper's sweep: 0.5, 1, 2, 5)"""
    distill_lambda_final: float | None = None
    """λ at the end of training, reached linearly; unset: λ is constant"""
    kl: Literal["forward", "reverse"] = "forward"
    """forward KL(π_T ‖ π_θ), the paper's, or reverse KL(π_θ ‖ π_T)"""
    teacher_episodes: int = 20
    """episodes in which the teacher is scored before training"""

    # Logging and checkpoints
    eval_every: int = 200_000
    """environment steps between evaluations during training; 0: none"""
    eval_episodes: int = 20
    """episodes of each evaluation during training"""
    episodes: int = 200
    """episodes of the final score (Appendix A.3)"""
    save_every: int = 100_000
    """environment steps between checkpoints"""
    run_dir: str | None = None
    """folder of the run, which must not exist yet; unset: runs/<env>__<script>__<seed>__<time>"""
    resume: str | None = None
    """folder of a stopped run to go on with as if it had not stopped; takes no other flag"""
    track: bool = False
    """also log to Weights & Biases (pip install wandb)"""
    wandb_project_name: str = "ppd"
    """project on Weights & Biases"""
    wandb_entity: str | None = None
    """team on Weights & Biases"""

    def __post_init__(self):
        """Fields left unset take the paper's value for the environment; `from_paper` lists them."""
        paper = {"num_steps": 64, "gamma": 0.999, "ent_coef": 0.0}
        self.from_paper = {name: paper[name] for name in paper if getattr(self, name) is None}
        for name, value in self.from_paper.items():
            setattr(self, name, value)

    @property
    def network(self) -> str:
        text = self.student_size == "smaller" and self.smaller_cnn == "text"
        return "smaller-text" if text else self.student_size

    @property
    def batch_size(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def num_iterations(self) -> int:
        return -(-self.total_timesteps // self.batch_size)


def choose_device(name: str) -> torch.device:
    """The torch device of that name; auto is cuda where there is one. Raises UserError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
    except RuntimeError as error:
        raise UserError(f"--device {name}: no such device here; use cpu or cuda") from error
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise UserError(f"--device {name}: torch finds {found} GPUs here; use --device cpu")
    return device


def check_args(args) -> None:
    """Refuse values that cannot work, before anything is created. Raises UserError."""
    counts = "frame_skip num_envs num_workers env_threads torch_threads total_timesteps num_levels "
    counts += "num_steps minibatch_size update_epochs eval_episodes episodes save_every "
    counts += "teacher_episodes log_every"
    rules = [
        (counts, "at least 1", lambda value: value >= 1),
        ("learning_rate adam_eps max_grad_norm clip_coef", "above 0", lambda value: value > 0),
        ("seed", "from 0 to 2**30", lambda value: 0 <= value <= 2**30),
        ("start_level eval_every ent_coef vf_coef", "0 or more", lambda value: value >= 0),
        ("distill_lambda distill_lambda_final", "0 or more", lambda value: value >= 0),
        ("gamma gae_lambda", "between 0 and 1", lambda value: 0 <= value <= 1),
        ("hidden_sizes", "one or more sizes, each at least 1", lambda v: v and min(v) >= 1),
    ]
    for names, rule, holds in rules:
        for name in names.split():
            value = getattr(args, name, None)
            if value is not None and (not holds(value) or not np.all(np.isfinite(value))):
                raise UserError(f"--{name.replace('_', '-')} {value}: must be {rule}")
    choose_device(args.device)
    if args.track:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError("--track: pip install wandb first, or leave it out") from error


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

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        num_levels: int,
        start_level: int,
        distribution_mode: str,
        num_threads: int,
        render_mode: str | None = None,
    ):
        """Games on levels start_level up to start_level + num_levels. Raises UserError."""
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = gym.spaces.Box(0, 255, (3, 64, 64), np.uint8)
        self.single_action_space = gym.spaces.Discrete(15)
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, num_envs
        )
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.simulator_class, self.simulator = import_procgen(env_id), None
        self.options = {"num": num_envs, "env_name": env_id, "num_threads": num_threads}
        self.options |= {"num_levels": num_levels, "start_level": start_level}
        self.options |= {"distribution_mode": distribution_mode, "render_mode": render_mode}
        # (N, C, H, W) on memory in the simulator's order (N, H, W, C): no pixel is moved
        self.obs = np.zeros((num_envs, 64, 64, 3), np.uint8).transpose(0, 3, 1, 2)

    def observe(self):
        """What the simulator shows: obs into `self.obs`; returns rewards (N,) and `first` (N,).

        `first` marks an obs that starts an episode: its reward is the last of the one before.
        """
        rewards, obs, first = self.simulator.observe()
        self.obs[:] = obs["rgb"].transpose(0, 3, 1, 2)
        return rewards, first

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start new games, the same for the same seed. Returns obs (N, C, H, W) and no infos."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31 - 1))
        # Procgen cannot be seeded again. A new simulator takes milliseconds, as long as the old one
        # keeps the pictures in memory until then. Its seeds have 31 bits.
        old, options = self.simulator, self.options | {"rand_seed": seed % 2**31}
        self.simulator = self.simulator_class(**options)
        if old:
            old.close()
        self.observe()
        return self.obs, {}

    def step(self, actions: np.ndarray):
        """Actions (N,) to obs (N, C, H, W), rewards, terminations, truncations (N,) and infos.

        Where an episode ended, obs is the first of the next one.
        """
        self.simulator.act(actions)
        rewards, ended = self.observe()
        return self.obs, rewards, ended, np.zeros_like(ended), {}

    def render(self) -> tuple[np.ndarray, ...]:
        """What a person would see: N frames (512, 512, 3); needs render_mode rgb_array."""
        return tuple(info["rgb"] for info in self.simulator.get_info())

    def state_dict(self) -> dict:
        """Where the games are, with their random numbers and what they show."""
        states = self.simulator.get_state()
        return {"simulators": [torch.frombuffer(bytearray(s), dtype=torch.uint8) for s in states]}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`, after a reset."""
        self.simulator.set_state([game.numpy().tobytes() for game in state["simulators"]])
        self.observe()

    def close(self) -> None:
        """End the simulator and its threads."""
        if self.simulator:
            self.simulator.close()


def make_procgen_envs(args, num_envs: int, num_threads: int, levels: str = "training"):
    """N games on the training levels, or on the unseen ones: all that come after those.

    Raises UserError where nothing comes after them, or the game cannot be played.
    """
    start_level, num_levels = args.start_level, args.num_levels
    if start_level + num_levels > 2**31 - 2:
        reason = "leave no unseen level; there are 2147483647, so give less"
        raise UserError(f"--start-level {start_level} --num-levels {num_levels}: {reason}")
    if levels == "unseen":  # num_levels 0, Procgen's "all", would draw training levels too
        start_level, num_levels = start_level + num_levels, 2**31 - 1 - start_level - num_levels
    mode = args.distribution_mode
    return ProcgenVectorEnv(args.env_id, num_envs, num_levels, start_level, mode, num_threads)


def merge_moments(mean_a, var_a, count_a, mean_b, var_b, count_b):
    """Mean, variance and count of two samples put together (Chan et al., 1979)."""
    count, delta = count_a + count_b, mean_b - mean_a
    spread = var_a * count_a + var_b * count_b + delta**2 * count_a * count_b / count
    return mean_a + delta * count_b / count, spread / count, count


class EpisodeStatistics(nn.Module):
    """Raw returns and lengths of the episodes as they end; its buffers go into a checkpoint."""

    def __init__(self, num_envs: int):
        super().__init__()
        self.register_buffer("returns", torch.zeros(num_envs, dtype=torch.float64))
        self.register_buffer("lengths", torch.zeros(num_envs, dtype=torch.int64))

    def forward(self, rewards: np.ndarray, ended: np.ndarray) -> list[tuple[float, int]]:
        """One step's raw rewards and ends (N,) to (return, length) of each episode it ended."""
        returns, lengths = self.returns.numpy(), self.lengths.numpy()
        returns += rewards
        lengths += 1
        finished = list(zip(returns[ended].tolist(), lengths[ended].tolist(), strict=True))
        returns[ended] = lengths[ended] = 0
        return finished


class RewardNormalizer(nn.Module):
    """Rewards over the running deviation of their discounted sum, as SB3's VecNormalize."""

    def __init__(self, num_envs: int, gamma: float = 0.99, epsilon: float = 1e-8, clip: float = 10):
        super().__init__()
        self.gamma, self.epsilon, self.clip = gamma, epsilon, clip
        self.register_buffer("returns", torch.zeros(num_envs, dtype=torch.float64))
        # mean, variance and count of the discounted returns so far
        self.register_buffer("moments", torch.tensor([0, 1, 1e-4], dtype=torch.float64))

    def forward(self, rewards: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """A rollout's rewards and ends (T, N) to scaled rewards (T, N), step after step."""
        running, returns, variances = self.returns.numpy(), np.empty_like(rewards), []
        for t in range(len(rewards)):
            running *= self.gamma
            running += rewards[t]
            returns[t] = running
            running[ended[t]] = 0
        moments = self.moments.tolist()
        for mean, var in zip(returns.mean(1).tolist(), returns.var(1).tolist(), strict=True):
            moments = merge_moments(*moments, mean, var, returns.shape[1])
            variances.append(moments[1])
        self.moments.copy_(torch.tensor(moments, dtype=torch.float64))
        deviations = np.sqrt(np.array(variances) + self.epsilon)[:, None]  # (T, 1)
        return np.clip(rewards / deviations, -self.clip, self.clip)


# ------------------------------------------------------------------------------- Networks


def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (SB3's initialisation)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class NatureCNN(nn.Sequential):
    """Frames (B, C, H, W) in 0…1 to features (B, F): three convolutions (Mnih et al., 2015)."""

    def __init__(self, obs_shape: tuple[int, ...], channels: tuple[int, ...], features: int):
        first, second, third = channels
        convolutions = nn.Sequential(
            init_layer(nn.Conv2d(obs_shape[0], first, 8, stride=4)), nn.ReLU(),
            init_layer(nn.Conv2d(first, second, 4, stride=2)), nn.ReLU(),
            init_layer(nn.Conv2d(second, third, 3)), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        flat = convolutions(torch.zeros(1, *obs_shape)).shape[1]
        super().__init__(convolutions, init_layer(nn.Linear(flat, features)), nn.ReLU())


class ResidualBlock(nn.Module):
    """ReLU, convolution, ReLU, convolution, and past them the input itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = init_layer(nn.Conv2d(channels, channels, 3, padding=1))
        self.conv1 = init_layer(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv1(self.conv0(x.relu()).relu())


class ImpalaCNN(nn.Sequential):
    """Frames (B, C, H, W) in 0…1 to features (B, F): residual (Espeholt et al., 2018, no LSTM)."""

    def __init__(self, obs_shape: tuple[int, ...], channels: tuple[int, ...], features: int):
        inputs, height, width = obs_shape
        layers = []
        for outputs in channels:
            layers += [init_layer(nn.Conv2d(inputs, outputs, 3, padding=1))]
            layers += [nn.MaxPool2d(3, stride=2, padding=1)]  # halves height and width, rounding up
            layers += [ResidualBlock(outputs), ResidualBlock(outputs)]
            inputs, height, width = outputs, (height + 1) // 2, (width + 1) // 2
        layers += [nn.Flatten(), nn.ReLU()]
        linear = init_layer(nn.Linear(inputs * height * width, features))
        super().__init__(*layers, linear, nn.ReLU())


def make_cnn(size: str, obs_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """One of the paper's networks for frames (C, H, W), and its number of features."""
    if size == "smaller":  # as the paper's Table 4 counts it
        return NatureCNN(obs_shape, (32, 64, 64), 64), 64
    if size == "smaller-text":  # as the paper's Appendix A.3 describes it
        return NatureCNN(obs_shape, (32, 32, 32), 128), 128
    channels, features = {"same": ((16, 32, 32), 256), "larger": ((32, 64, 64), 1024)}[size]
    return ImpalaCNN(obs_shape, channels, features), features


class PixelAgent(nn.Module):
    """Policy and critic, two networks; takes raw frames, uint8."""

    def __init__(self, obs_shape: tuple[int, ...], num_actions: int, size: str):
        super().__init__()
        actor, features = make_cnn(size, obs_shape)
        self.actor = nn.Sequential(actor, init_layer(nn.Linear(features, num_actions), 0.01))
        critic, features = make_cnn(size, obs_shape)
        self.critic = nn.Sequential(critic, init_layer(nn.Linear(features, 1), 1.0))
        self.bfloat16 = False  # a setting of a run, not of its checkpoint

    def run(self, network: nn.Module, obs: torch.Tensor) -> torch.Tensor:
        """Frames (B, C, H, W) through the actor or the critic; float32 whatever is inside."""
        # Convolutions are fastest where a pixel's channels are neighbours in memory.
        frames = obs.to(torch.float32, memory_format=torch.channels_last) / 255
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bfloat16):
            outputs = network(frames)
        return outputs.to(torch.float32, copy=True)  # a CUDA graph overwrites its own outputs

    def policy_outputs(self, obs: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to the logits (B, A) of the action distribution."""
        return self.run(self.actor, obs)

    def distribution(self, outputs: torch.Tensor) -> Distribution:
        """(B, A) logits to a categorical distribution whose log_prob, entropy and KL are (B,)."""
        return Categorical(logits=outputs, validate_args=False)

    def sample(self, outputs: torch.Tensor) -> torch.Tensor:
        """(B, A) logits to actions (B,): `distribution(outputs).sample()` with less overhead."""
        return torch.multinomial(outputs.softmax(-1), 1).squeeze(-1)

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B,)."""
        return self.run(self.critic, obs).squeeze(-1)

    @torch.no_grad()
    def act(self, obs, deterministic: bool = True) -> np.ndarray:
        """Raw frames (B, C, H, W) to actions (B,)."""
        device = next(self.parameters()).device
        outputs = self.policy_outputs(torch.as_tensor(obs, device=device))
        actions = outputs.argmax(-1) if deterministic else self.sample(outputs)
        return self.env_actions(actions)

    def env_actions(self, actions: torch.Tensor) -> np.ndarray:
        """Sampled actions (B,), as the environment takes them."""
        return actions.cpu().numpy()


# ------------------------------------------------------------------------------- Advantages, losses


def compute_gae(rewards, values, next_values, terminations, ended, gamma, gae_lambda):
    """Generalised advantage estimation (Schulman et al., 2016); tensors and result (T, N).

    `next_values` are V of the state each step really led to: where a time limit ended an episode,
    of its final observation. `terminations` are true ends; `ended` counts time limits as well.
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[0])
    # δ_t = r_t + γ·V(s_t+1)·[not terminal] − V(s_t);  Â_t = δ_t + γ·λ·Â_t+1·[same episode]
    deltas = rewards + gamma * next_values * ~terminations - values
    discounts = gamma * gae_lambda * ~ended
    for t in reversed(range(len(rewards))):
        running = deltas[t] + discounts[t] * running
        advantages[t] = running
    return advantages


def normalize_advantages(advantages: torch.Tensor) -> torch.Tensor:
    """(M,) to mean 0 and deviation 1, per minibatch as in SB3; a single sample is left as it is."""
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
    return (values - returns).square().mean()


def ppo_loss(pg_loss, v_loss, entropy_loss, ent_coef, vf_coef):
    """PPO's objective, negated (Equation 2 with λ = 0); scalars."""
    # −L_PPO − α·mean[H] + c_v·mean[(V − R̂)²]
    return pg_loss - ent_coef * entropy_loss + vf_coef * v_loss


def kl_divergence(p, q):
    """KL(p ‖ q) per state; torch's own is infinite where a categorical's probability underflows."""
    if isinstance(p, Categorical):
        return (p.probs * (p.logits - q.logits)).sum(-1)
    return torch.distributions.kl_divergence(p, q)


def policy_kl(teacher_dist, student_dist, direction):
    """KL divergence per state, summed over action dimensions: distributions over (M,) to (M,)."""
    if direction == "forward":
        return kl_divergence(teacher_dist, student_dist)  # KL(π_T ‖ π_θ)
    return kl_divergence(student_dist, teacher_dist)  # KL(π_θ ‖ π_T)


def distillation_loss(kl, ratio, clip_coef, distill_lambda):
    """The proximal distillation term of Equation 2: KL and ratio r (M,) to a scalar."""
    assert kl.shape == ratio.shape, (kl.shape, ratio.shape)
    # λ·mean[ KL·max(r, 1−ε) ]; the gradient flows through both factors
    return distill_lambda * (kl * ratio.clamp(min=1 - clip_coef)).mean()


# ------------------------------------------------------------------------------- Checkpoints


def write_whole(path: Path, write) -> None:
    """Have `write(path)` write a file that appears at `path` complete or not at all.

    Raises UserError where it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch.save's
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        advice = "mend that, then go on with --resume from the last checkpoint"
        raise UserError(f"{path} cannot be written: {reason}; {advice}") from error


def save_agent(agent: nn.Module, path: Path, header: dict) -> None:
    """Write an agent's tensors, and `header` as JSON strings in the file's metadata."""
    metadata = {key: json.dumps(value) for key, value in header.items()}
    # not save_file, whose files only their owner may read
    write_whole(path, lambda partial: partial.write_bytes(to_bytes(agent.state_dict(), metadata)))


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and header of an agent.safetensors, which is data and runs nothing.

    Raises UserError for a file that is missing, damaged, a pickle, foreign, or has NaN weights.
    """
    refused = f"checkpoint {path}: "
    try:
        with open(path, "rb") as file:
            start = file.read(2)
    except OSError as error:
        advice = "give an agent.safetensors, or train a teacher with a ppo_teacher script"
        raise UserError(f"{refused}{error.strerror}; {advice}") from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            ours = metadata.get("format") == json.dumps("ppd-agent-1")
            header = {key: json.loads(value) for key, value in metadata.items()} if ours else {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        # Only now: a sound file starts with its header's length, which may be these bytes too.
        if start == b"PK" or start[:1] == b"\x80":
            reason = "a pickle, which could run code, so it was not opened"
            advice = "give an agent.safetensors of this project"
            raise UserError(f"{refused}{reason}; {advice}") from error
        reason = f"cut off, damaged or not safetensors ({error})"
        raise UserError(f"{refused}{reason}; copy it again or train anew") from error
    if not ours:
        reason = "safetensors, but not an agent of this project"
        raise UserError(f"{refused}{reason}; train one with a script of this project")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all() and not name.startswith("action_"):  # a Box may be unbounded
            raise UserError(f"{refused}{name} holds NaN or infinite numbers; train it anew")
    return tensors, header


def load_procgen_agent(path: str | Path, device: str = "cpu") -> tuple[PixelAgent, dict]:
    """A frozen agent and its header. Raises UserError for anything else than a Procgen agent."""
    tensors, header = read_checkpoint(path)
    if header.get("suite") != "procgen":
        suite = header.get("suite")
        raise UserError(f"checkpoint {path}: an agent for {suite}; give one trained on Procgen")
    try:
        agent = PixelAgent((3, 64, 64), 15, header["size"])
        agent.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = "its weights do not have the sizes that its header names"
        raise UserError(f"checkpoint {path}: {reason}; copy it again or train anew") from error
    return agent.to(device).eval().requires_grad_(False), header


def load_procgen_teacher(args) -> tuple[PixelAgent, dict, str | None]:
    """The teacher, its header, and a warning if it was trained on another game or other levels.

    Raises UserError for a file that is no Procgen agent.
    """
    path = args.teacher or Path(__file__).parent / "teachers" / f"{args.env_id}.safetensors"
    if not Path(path).exists():
        advice = f"train one with `python ppo_teacher_procgen.py --env-id {args.env_id}`"
        raise UserError(f"teacher {path}: no such file; put it there, give --teacher, or {advice}")
    teacher, header = load_procgen_agent(path, choose_device(args.device))
    keys = ("env_id", "distribution_mode", "num_levels", "start_level")
    found = [(key, header.get(key), getattr(args, key)) for key in keys]
    others = [f"{key} {theirs}, not {ours}" for key, theirs, ours in found if theirs != ours]
    return teacher, header, f"the teacher was trained on {'; '.join(others)}" if others else None


def compare_with_header(score: dict, header: dict) -> str | None:
    """A warning if a teacher's score just measured is far below the one in its header."""
    known = header.get("score")
    if not known:
        return None
    errors = [s["standard_error"] or 0 for s in (score, known)]
    slack = 0.2 * abs(known["mean"]) + 3 * float(np.hypot(*errors))
    if score["mean"] >= known["mean"] - slack:
        return None
    found = f"the teacher scores {score['mean']:.1f} here but {known['mean']:.1f} in its header"
    return f"{found}: a damaged file, or another simulator version?"


def create_run_dir(args, script: str) -> Path:
    """Make the folder of a new run. Raises UserError where that cannot be done."""
    started = time.strftime("%Y%m%d-%H%M%S")
    name = f"{args.env_id.replace('/', '-')}__{script}__{args.seed}__{started}"
    run_dir = Path(args.run_dir or Path("runs") / name)
    try:
        run_dir.mkdir(parents=True)
    except OSError as error:
        advice = "name another with --run-dir, or go on with --resume"
        raise UserError(f"run folder {run_dir}: {error.strerror}; {advice}") from error
    return run_dir


def save_training_state(run_dir: Path, parts: dict, facts: dict) -> None:
    """Write all that the rest of a run depends on: `parts` have a state_dict, `facts` are data."""
    state = {name: part.state_dict() for name, part in parts.items()} | facts
    state["torch_rng"] = torch.get_rng_state()
    state["cuda_rng"] = torch.cuda.get_rng_state_all()
    write_whole(run_dir / "training_state.pt", lambda path: torch.save(state, path))


def load_training_state(run_dir: str, script: str, args_class: type) -> dict:
    """What `save_training_state` wrote last. Raises UserError for a run that cannot go on."""
    path = Path(run_dir) / "training_state.pt"
    if (Path(run_dir) / "result.json").exists():
        raise UserError(f"--resume {run_dir}: this run is finished; score it with evaluate.py")
    if not path.is_file():
        raise UserError(f"--resume {run_dir}: no training_state.pt in it; give a folder in runs/")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["script"]
        if found == script:
            state["args"] = args_class(**state["args"])
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"--resume {run_dir}: training_state.pt is damaged; train anew") from error
    if found != script:
        raise UserError(f"--resume {run_dir}: a run of {found}; resume it with that script")
    return state


def restore_random_numbers(state: dict) -> None:
    """Set torch's random number generators to where `save_training_state` found them."""
    torch.set_rng_state(state["torch_rng"])
    if len(state["cuda_rng"]) == torch.cuda.device_count():  # else on other GPUs than before
        torch.cuda.set_rng_state_all(state["cuda_rng"])


def describe_software() -> dict:
    """Versions and git commit, for result.json."""
    packages = ["torch", "numpy", "gymnasium", "mujoco", "ale-py", "procgen", "procgen-mirror"]
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    git = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=12"]
    commit = None
    with suppress(OSError):
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    return {"versions": versions, "git_commit": commit}


# ------------------------------------------------------------------------------- Evaluation


def evaluate(agent, envs, episodes: int, seed: int, deterministic: bool) -> tuple[list, list]:
    """Raw returns and lengths of whole episodes, a fixed quota from each slot of `envs`.

    The first so many to end, from whatever slot, would favour short episodes.
    """
    quota = [len(slot) for slot in np.array_split(np.arange(episodes), envs.num_envs)]
    played = [[] for _ in quota]
    track_episodes = EpisodeStatistics(envs.num_envs)
    with torch.random.fork_rng():  # sampling here leaves the random numbers of training alone
        torch.manual_seed(seed)
        obs, _ = envs.reset(seed=seed)
        while any(len(slot) < wanted for slot, wanted in zip(played, quota, strict=True)):
            obs, rewards, terminations, truncations, _ = envs.step(agent.act(obs, deterministic))
            ended = terminations | truncations
            finished = track_episodes(rewards, ended)
            for slot, episode in zip(np.flatnonzero(ended), finished, strict=True):
                played[slot].append(episode)
    episodes = [e for slot, wanted in zip(played, quota, strict=True) for e in slot[:wanted]]
    return [episode[0] for episode in episodes], [episode[1] for episode in episodes]


def summarize(returns: list[float]) -> dict:
    """Mean, standard error (None for one episode) and number of episode returns."""
    error = statistics.stdev(returns) / len(returns) ** 0.5 if len(returns) > 1 else None
    return {"mean": statistics.fmean(returns), "standard_error": error, "episodes": len(returns)}


def score_levels(agent, level_envs, episodes: int, seed: int) -> list[dict]:
    """Play with sampled actions on each of `level_envs`; their scores and episodes."""
    played = [evaluate(agent, envs, episodes, seed, False) for envs in level_envs]
    return [
        {"score": summarize(returns), "episode_returns": returns, "episode_lengths": lengths}
        for returns, lengths in played
    ]


def score_text(score: dict) -> str:
    """`summarize`'s answer as text: mean ± standard error."""
    error = score["standard_error"]
    return f"{score['mean']:.1f} " + ("(n=1)" if error is None else f"± {error:.1f}")


# ------------------------------------------------------------------------------- Training


def faster_thread_count(agent: nn.Module, obs: torch.Tensor) -> int:
    """One thread, or one per core, whichever runs the critic over observations (B, …) faster.

    Where another process uses a core as well, threads wait for each other, and two can be slower
    than one: so it is measured, not assumed.
    """
    cores = torch.get_num_threads()
    seconds = {1: [], cores: []}
    for _ in range(20):
        for threads in seconds:
            torch.set_num_threads(threads)
            start = time.perf_counter()
            agent.value(obs).sum().backward()
            seconds[threads].append(time.perf_counter() - start)
    agent.zero_grad()
    # means, for the few long waits are what counts, but for the first passes, which warm up
    return min(seconds, key=lambda threads: statistics.fmean(seconds[threads][5:]))


def catch_stop_signals() -> list[int]:
    """From now on Ctrl-C and SIGTERM go into this list; a second Ctrl-C ends the process now."""
    caught = []

    def handle(number, frame):
        if caught and number == signal.SIGINT:  # not SIGTERM, which Slurm may send twice
            sys.exit(128 + number)
        if not caught:
            tqdm.write("saving after this update, then stopping; Ctrl-C stops at once, unsaved")
        caught.append(number)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return caught


def restore_stop_signals() -> None:
    """Undo `catch_stop_signals`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def start_logging(args, run_dir: Path, first_step: int) -> SummaryWriter:
    """TensorBoard events in the run's folder and, with --track, Weights & Biases."""
    if args.track:
        import wandb

        names = {"name": run_dir.name, "id": run_dir.name, "entity": args.wandb_entity}
        project, config = args.wandb_project_name, asdict(args)
        wandb.init(project=project, config=config, resume="allow", sync_tensorboard=True, **names)
    writer = SummaryWriter(str(run_dir), purge_step=first_step)
    rows = "\n".join(f"|{name}|{value}|" for name, value in asdict(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
    return writer


def check_finite(agent: nn.Module, losses: dict, update: int, run_dir: Path) -> None:
    """Raises UserError, before anything is saved, where a loss or weight is no number any more."""
    finite = np.isfinite(list(losses.values())).all()
    if not finite or not all(p.isfinite().all() for p in agent.parameters()):
        advice = "the last good checkpoint is kept; start anew with a lower --learning-rate"
        raise UserError(f"{run_dir}: NaN or infinite loss at update {update}; {advice}")


def train(args: Args) -> dict:
    """Distil a teacher by PPD and score both; returns what result.json holds. Raises UserError."""
    script, state = Path(__file__).stem, None
    if args.resume:
        if args != Args(resume=args.resume):
            raise UserError("--resume takes no other flag: a run goes on with its own arguments")
        run_dir, state = Path(args.resume), load_training_state(args.resume, script, Args)
        args = state["args"]
    check_args(args)
    torch.manual_seed(args.seed)
    device, T, N = choose_device(args.device), args.num_steps, args.num_envs
    env_threads, eval_seed = args.env_threads or torch.get_num_threads(), 10_000 + args.seed
    envs = make_procgen_envs(args, N, env_threads)
    eval_envs = [make_procgen_envs(args, 20, env_threads, kind) for kind in ("unseen", "training")]
    obs_shape, num_actions = envs.single_observation_space.shape, int(envs.single_action_space.n)
    next_obs, _ = envs.reset(seed=args.seed)

    teacher, teacher_header, warning = load_procgen_teacher(args)
    agent = PixelAgent(obs_shape, num_actions, args.network).to(device)
    agent.bfloat16 = args.bfloat16
    adam = {"lr": args.learning_rate, "eps": args.adam_eps, "fused": True}
    optimizer = torch.optim.Adam(agent.parameters(), **adam)
    normalize_reward, track_episodes = RewardNormalizer(N), EpisodeStatistics(N)
    parts = {"agent": agent, "optimizer": optimizer, "envs": envs}
    parts |= {"normalize_reward": normalize_reward, "track_episodes": track_episodes}
    log = {"iteration": 0, "seconds": 0.0, "curve": []}
    log |= {"evaluations": [], "evaluations_training": []}
    if args.torch_threads is None:
        sample = torch.zeros((16, *obs_shape), device=device)
        args.torch_threads = faster_thread_count(agent, sample)
    torch.set_num_threads(args.torch_threads)
    if args.compile:
        for network in (agent.actor, agent.critic):
            network.compile(mode="reduce-overhead", dynamic=False)
    header = {"format": "ppd-agent-1", "suite": "procgen", "script": script, "env_id": args.env_id}
    header |= {"num_levels": args.num_levels, "start_level": args.start_level}
    header |= {"distribution_mode": args.distribution_mode, "size": args.network}
    header |= {"seed": args.seed, "deterministic": False}
    if state:
        log = state["log"]
        if log.get("teacher", teacher_header) != teacher_header:
            raise UserError(f"--resume {run_dir}: its teacher has changed; put the first one back")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        restore_random_numbers(state)
    else:
        run_dir = create_run_dir(args, script)

    def save() -> None:
        log["seconds"] = seconds_before + time.perf_counter() - started
        facts = {"script": script, "args": asdict(args), "log": log}
        save_training_state(run_dir, parts, facts)
        save_agent(agent, run_dir / "agent.safetensors", header | {"steps": global_step})

    stop_signals = catch_stop_signals()
    started, seconds_before = time.perf_counter(), log["seconds"]
    global_step = log["iteration"] * args.batch_size
    save()
    if "teacher_score" not in log:
        scores = score_levels(teacher, eval_envs, args.teacher_episodes, eval_seed)
        log["teacher_score"], log["teacher_score_training"] = (kind["score"] for kind in scores)
        warnings_found = [warning, compare_with_header(log["teacher_score"], teacher_header)]
        log |= {"teacher": teacher_header, "warnings": [text for text in warnings_found if text]}
    for text in log["warnings"]:
        print(f"WARNING: {text}")
    scores = [score_text(log[key]) for key in ("teacher_score", "teacher_score_training")]
    print(f"teacher: {scores[0]} on unseen levels, {scores[1]} on training levels, ", end="")
    print(f"{args.teacher_episodes} episodes each")
    taken = ", ".join(f"{name} {value}" for name, value in args.from_paper.items())
    print(f"{args.env_id}: {env_threads} simulator threads, {args.torch_threads} torch threads")
    if taken:
        print(f"the paper's {taken}")
    writer = start_logging(args, run_dir, global_step)
    total, quiet = args.num_iterations * args.batch_size, 1 if sys.stderr.isatty() else 60
    bar = {"unit": " steps", "unit_scale": True, "dynamic_ncols": True, "mininterval": quiet}
    progress = tqdm(total=total, initial=global_step, **bar)

    obs = torch.zeros((T, N, *obs_shape), dtype=torch.uint8, device=device)
    actions = torch.zeros((T, N), dtype=torch.int64, device=device)
    outputs = torch.zeros((T, N, num_actions), device=device)  # of the policy: the actions' logits
    rewards, ended = np.zeros((T, N)), np.zeros((T, N), dtype=bool)
    while global_step < total:
        # Collect a rollout with the policy as it is.
        finished = []
        with torch.no_grad():
            for t in range(T):
                obs[t] = torch.from_numpy(next_obs)
                outputs[t] = agent.policy_outputs(obs[t])
                actions[t] = agent.sample(outputs[t])
                env_step = envs.step(agent.env_actions(actions[t]))
                next_obs, rewards[t], ended[t], _, _ = env_step
                finished += track_episodes(rewards[t], ended[t])

            # Advantages. Procgen shows no time limit and no final observation: an end is an end.
            b_obs, b_actions = obs.flatten(0, 1), actions.flatten()  # (B, C, H, W), (B,)
            b_logprobs = agent.distribution(outputs.flatten(0, 1)).log_prob(b_actions)  # (B,)
            chunks = b_obs.split(args.minibatch_size)
            values = torch.cat([agent.value(chunk) for chunk in chunks]).view(T, N)
            last_values = agent.value(torch.from_numpy(next_obs).to(device))
            next_values = torch.cat([values[1:], last_values[None]])
            scaled_rewards = torch.from_numpy(normalize_reward(rewards, ended)).to(values)
            ends = torch.from_numpy(ended).to(device)
            advantages = compute_gae(
                scaled_rewards, values, next_values, ends, ends, args.gamma, args.gae_lambda
            )
            # The teacher is asked once per rollout.
            teacher_outputs = torch.cat([teacher.policy_outputs(chunk) for chunk in chunks])
            b_returns = (advantages + values).flatten()  # (B,)
            b_advantages = advantages.flatten()

        # Update the policy and the critic: several epochs over shuffled minibatches.
        metrics = []
        distill_lambda = args.distill_lambda
        if args.distill_lambda_final is not None:
            distill_lambda += (args.distill_lambda_final - distill_lambda) * global_step / total
        for _ in range(args.update_epochs):
            for mb in torch.randperm(args.batch_size, device=device).split(args.minibatch_size):
                mb_obs = b_obs[mb]
                student_dist = agent.distribution(agent.policy_outputs(mb_obs))
                teacher_dist = teacher.distribution(teacher_outputs[mb])
                logratio = student_dist.log_prob(b_actions[mb]) - b_logprobs[mb]
                ratio = logratio.exp()
                mb_advantages = normalize_advantages(b_advantages[mb])
                pg_loss = clipped_surrogate_loss(ratio, mb_advantages, args.clip_coef)
                v_loss = value_loss(agent.value(mb_obs), b_returns[mb])
                entropy_loss = student_dist.entropy().mean()
                kl = policy_kl(teacher_dist, student_dist, args.kl)
                distill_loss = distillation_loss(kl, ratio, args.clip_coef, distill_lambda)
                loss = ppo_loss(pg_loss, v_loss, entropy_loss, args.ent_coef, args.vf_coef)
                loss = loss + distill_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
                with torch.no_grad():
                    approx_kl = (ratio - 1 - logratio).mean()
                    clipfrac = ((ratio - 1).abs() > args.clip_coef).float().mean()
                terms = {"losses/policy_loss": pg_loss, "losses/value_loss": v_loss}
                terms |= {"losses/entropy": entropy_loss, "losses/approx_kl": approx_kl}
                terms |= {"losses/clipfrac": clipfrac}
                terms |= {"distill/kl": kl.mean(), "distill/loss": distill_loss}
                metrics.append({name: term.detach() for name, term in terms.items()})
        log["iteration"] += 1
        previous_step, global_step = global_step, global_step + args.batch_size

        # Log, evaluate, save.
        scalars = {name: torch.stack([m[name] for m in metrics]).mean().item() for name in terms}
        check_finite(agent, scalars, log["iteration"], run_dir)
        unexplained = (b_returns - values.flatten()).var() / b_returns.var()
        scalars["losses/explained_variance"] = 1 - unexplained.item()
        scalars["distill/lambda"] = distill_lambda
        scalars["charts/learning_rate"] = args.learning_rate
        scalars["charts/SPS"] = progress.format_dict["rate"] or 0
        if finished:
            scalars["charts/episodic_return"] = statistics.fmean(r for r, _ in finished)
            scalars["charts/episodic_length"] = statistics.fmean(length for _, length in finished)
            point = [global_step, scalars["charts/episodic_return"], len(finished)]
            log["curve"].append(point)
        if args.eval_every and global_step // args.eval_every > previous_step // args.eval_every:
            unseen, training = score_levels(agent, eval_envs, args.eval_episodes, eval_seed)
            for kind, key in [(unseen, "evaluations"), (training, "evaluations_training")]:
                mean, error = kind["score"]["mean"], kind["score"]["standard_error"]
                log[key].append([global_step, mean, error])
            scalars["eval/return_unseen"] = unseen["score"]["mean"]
            scalars["eval/return_training"] = training["score"]["mean"]
        for name, value in scalars.items():
            writer.add_scalar(name, value, global_step)
        recent = [mean for _, mean, _ in log["curve"][-10:]]
        shown = {"return": f"{statistics.fmean(recent):.1f}"} if recent else {}
        shown["KL"] = f"{scalars['distill/kl']:.3f}"
        progress.set_postfix(shown, refresh=False)
        progress.update(args.batch_size)
        if global_step // args.save_every > previous_step // args.save_every or stop_signals:
            save()
        if stop_signals:
            progress.close()
            tqdm.write(f"stopped at step {global_step:,}; python {script}.py --resume {run_dir}")
            sys.exit(128 + stop_signals[0])

    save()
    progress.close()
    restore_stop_signals()  # all is saved: from here on Ctrl-C may end the process at once

    # The final score, by the paper's protocol, of the student and of its teacher.
    unseen, training = score_levels(agent, eval_envs, args.episodes, eval_seed)
    teacher_scores = score_levels(teacher, eval_envs, args.episodes, eval_seed)
    teacher_score, teacher_score_training = (kind["score"] for kind in teacher_scores)
    score, score_training = unseen["score"], training["score"]
    reference = teacher_header.get("original_score", teacher_score)["mean"]
    fraction = score["mean"] / reference if reference > 0 else None  # None: it never scored
    reached = [step for step, mean, _ in log["evaluations"] if mean >= 0.9 * reference > 0]
    header |= {"steps": total, "score": score, "score_training": score_training}
    save_agent(agent, run_dir / "agent.safetensors", header)
    result = {"script": script, "args": asdict(args), "steps": total, **log, **unseen}
    result |= {f"{key}_training": value for key, value in training.items()}
    result |= {"teacher_score": teacher_score}
    result |= {"teacher_score_training": teacher_score_training, "fraction_of_teacher": fraction}
    result |= {"steps_to_90_percent": reached[0] if reached else None}
    result |= {"steps_per_second": total / log["seconds"], **describe_software()}
    write_whole(run_dir / "result.json", lambda path: path.write_text(json.dumps(result)))
    for closable in (envs, *eval_envs, writer):
        closable.close()
    print(f"{run_dir}: {total:,} steps, {args.episodes} episodes each")
    print(
        f"student: unseen levels {score_text(score)} · training levels {score_text(score_training)}"
    )
    print(f"teacher: unseen levels {score_text(teacher_score)}", end=" · ")
    print(f"training levels {score_text(teacher_score_training)}")
    print(f"fraction of teacher, unseen levels: {fraction and round(fraction, 3)}")
    return result


def main() -> None:
    try:
        train(tyro.cli(Args, description=__doc__))
    except UserError as error:
        tqdm.write(f"{Path(__file__).stem}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before there was anything to save
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
