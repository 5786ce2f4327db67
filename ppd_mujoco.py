"""Proximal Policy Distillation (PPD) on MuJoCo: a student learns from a teacher and from reward.

    python ppd_mujoco.py --env-id Hopper-v4                            # 2 M steps, larger student
    python ppd_mujoco.py --env-id Hopper-v4 --student-size smaller --teacher PATH.safetensors
    python ppd_mujoco.py --resume runs/<run>                           # go on where a run stopped

"Proximal Policy Distillation" (Spigler, TMLR 2025), Algorithm 1: PPO on the student's own rollouts,
whose objective also keeps the student near the teacher, by a KL term weighted with the clipped
importance ratio:

    max  mean[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) + α·H(π_θ) − λ·KL(π_T ‖ π_θ)·max(r, 1−ε) ]

Differs from `ppo_teacher_mujoco.py` only in the teacher. The critic is trained from scratch.

The paper's environments: Ant, HalfCheetah, Hopper, Humanoid and Swimmer, each -v4.
Symbols: T steps per rollout, N environments, B = T·N samples, M minibatch, D observation, A action.
"""

import atexit
import importlib.metadata
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

# Read when torch loads OpenMP: how long idle threads spin before they sleep. By default it is long,
# which next to another busy process makes two threads up to 10× slower than one.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch.distributions import Distribution, Independent, Normal, kl_divergence
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class UserError(Exception):
    """Something a user can cause and mend: one line, the cause and the remedy; exit status 2."""


@dataclass
class Args:
    # Environment
    env_id: str = "Hopper-v4"
    """the environment; those of the paper stand at the top of the script"""
    seed: int = 100
    """seed of networks, sampling and environments; the paper's: 100, 200, 300, 400, 500"""
    num_envs: int = 18
    """environments stepped side by side, N (Table 3)"""
    num_workers: int | None = None
    """processes that share the environments, this one included; unset: one, or one per core"""
    device: str = "cpu"
    """torch device of networks and rollout: cpu, cuda, cuda:1, …; auto: cuda if there is one"""
    torch_threads: int | None = None
    """CPU threads of torch; unset: one, or one per core where that is measured to be faster"""

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
    hidden_sizes: tuple[int, ...] | None = None
    """hidden layers spelled out, for example 400 300; unset: those of the named size"""

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
    teacher_episodes: int = 10
    """episodes in which the teacher is scored before training"""

    # Logging and checkpoints
    eval_every: int = 100_000
    """environment steps between evaluations during training; 0: none"""
    eval_episodes: int = 10
    """episodes of each evaluation during training"""
    episodes: int = 50
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
        short = self.env_id.startswith(("Hopper-", "Swimmer-"))
        paper = {
            "hidden_sizes": mlp_sizes(self.student_size),
            "num_steps": 64,
            "gamma": 0.995 if short else 0.999,
            "ent_coef": 0.0,
        }
        self.from_paper = {name: paper[name] for name in paper if getattr(self, name) is None}
        for name, value in self.from_paper.items():
            setattr(self, name, value)

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


def make_mujoco_env(env_id: str, render_mode: str | None = None) -> gym.Env:
    """One environment with observations (D,) and actions (A,). Raises UserError for other ids."""
    if "NoFrameskip" in env_id or env_id.startswith("ALE/"):
        raise UserError(f"--env-id {env_id}: an Atari game; use ppo_teacher_atari.py, ppd_atari.py")
    with warnings.catch_warnings():
        # The paper's environments are the v4 ones: the advice to take v5 would change its numbers.
        warnings.filterwarnings("ignore", message=".*The environment .* is out of date.*")
        warnings.filterwarnings("ignore", message=".*Using the latest versioned environment.*")
        try:
            options = {"render_mode": render_mode} if render_mode else {}  # not all take one
            env = gym.make(env_id, disable_env_checker=True, **options)
        except (gym.error.Error, ImportError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--env-id {env_id}: {reason} Try Hopper-v4 or Ant-v4.") from error
    if env.spec.id != env_id.split(":")[-1]:  # Hopper alone would be the latest version
        raise UserError(f"--env-id {env_id}: which version? Give {env.spec.id}, or an older one")
    for name, space in [("observations", env.observation_space), ("actions", env.action_space)]:
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise UserError(f"--env-id {env_id}: its {name} are {space}; use an id with flat Boxes")
    return env


def get_simulator_state(env: gym.Env) -> dict | None:
    """All that the future of one of the paper's environments depends on; None for any other."""
    import mujoco

    if env.spec.id not in ("Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Swimmer-v4", "Humanoid-v4"):
        return None
    base, kind = env.unwrapped, mujoco.mjtState.mjSTATE_INTEGRATION
    physics = np.empty(mujoco.mj_stateSize(base.model, kind))
    mujoco.mj_getState(base.model, base.data, physics, kind)
    # xpos, xipos: Ant and Humanoid read body positions before the next step computes them anew.
    return {
        "physics": physics.tolist(),
        "xpos": base.data.xpos.tolist(),
        "xipos": base.data.xipos.tolist(),
        "elapsed_steps": env.get_wrapper_attr("_elapsed_steps"),
        "rng": base.np_random.bit_generator.state,
    }


def set_simulator_state(env: gym.Env, state: dict) -> None:
    """Put an environment, reset before, where `get_simulator_state` found another."""
    import mujoco

    base, kind = env.unwrapped, mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(base.model, base.data, np.array(state["physics"]), kind)
    base.data.xpos[:], base.data.xipos[:] = state["xpos"], state["xipos"]
    env.set_wrapper_attr("_elapsed_steps", state["elapsed_steps"])
    base.np_random.bit_generator.state = state["rng"]


def view_shared_memory(memory: dict) -> dict[str, np.ndarray]:
    """NumPy arrays on the memory that the main process and its workers share."""
    return {
        name: np.frombuffer(raw, dtype).reshape(shape)
        for name, (raw, dtype, shape) in memory.items()
    }


def obey(command: str, argument, envs: dict[int, gym.Env], shared: dict) -> list | None:
    """Do to the environments of some rows what `command` says; answers get_state alone."""
    if command == "step":
        for row, env in envs.items():
            obs, reward, terminated, truncated, _ = env.step(shared["actions"][row])
            shared["rewards"][row] = reward
            shared["terminations"][row] = terminated
            shared["truncations"][row] = truncated
            if terminated or truncated:
                shared["final_obs"][row] = obs
                obs, _ = env.reset()
            shared["obs"][row] = obs
    elif command == "reset":
        for row, env in envs.items():
            seed = None if argument is None else argument + row
            shared["obs"][row], _ = env.reset(seed=seed)
    elif command == "get_state":
        return [get_simulator_state(env) for env in envs.values()]
    elif command == "set_state":
        for row, env in envs.items():
            set_simulator_state(env, argument[row])
    return None


def run_mujoco_worker(pipe, env_id: str, rows: list[int], memory: dict) -> None:
    """Obey, with the environments of `rows`, what comes through the pipe until it closes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C in a terminal, and Slurm's SIGTERM,
        signal.signal(number, signal.SIG_IGN)  # go to all processes: the main one handles them
    try:
        shared = view_shared_memory(memory)
        envs = {row: make_mujoco_env(env_id) for row in rows}
        while True:
            pipe.send((obey(*pipe.recv(), envs, shared), None))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the main process is gone, or has closed the pool
    except Exception:
        pipe.send((None, traceback.format_exc()))


class MujocoVectorEnv(gym.vector.VectorEnv):
    """N environments, shared out between this process and its workers, with same-step autoreset.

    Bitwise equal to `gymnasium.vector.SyncVectorEnv` with the same seeds and actions. (Gymnasium's
    AsyncVectorEnv runs a process per environment, and waking 18 of them costs more than physics.)
    The arrays that `reset` and `step` return are overwritten by the next step.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}

    def __init__(self, env_id: str, num_envs: int, num_workers: int):
        """Raises UserError for an id that `make_mujoco_env` refuses."""
        env = make_mujoco_env(env_id)
        obs_space, action_space = env.observation_space, env.action_space
        env.close()
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = obs_space, action_space
        self.observation_space = gym.vector.utils.batch_space(obs_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(action_space, num_envs)
        # A fork server has no threads to fork in mid-work, and no worker inherits another's pipe:
        # when the main process dies, however it dies, each worker sees its pipe close and ends.
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        # It imports this file once for all; asked for __main__, Python 3.11 imports nothing.
        context.set_forkserver_preload([Path(__file__).stem])
        memory = {}
        for name, dtype, shape in [
            ("obs", obs_space.dtype, (num_envs, *obs_space.shape)),
            ("final_obs", obs_space.dtype, (num_envs, *obs_space.shape)),
            ("actions", action_space.dtype, (num_envs, *action_space.shape)),
            ("rewards", np.dtype(np.float64), (num_envs,)),
            ("terminations", np.dtype(np.bool_), (num_envs,)),
            ("truncations", np.dtype(np.bool_), (num_envs,)),
        ]:
            memory[name] = context.RawArray("b", dtype.itemsize * int(np.prod(shape))), dtype, shape
        self.shared = view_shared_memory(memory)
        shares = np.array_split(np.arange(num_envs), min(num_workers, num_envs))
        own_rows, *workers_rows = [share.tolist() for share in shares]
        self.pipes, self.workers = [], []
        for rows in workers_rows:
            pipe, worker_pipe = context.Pipe()
            arguments = (worker_pipe, env_id, rows, memory)
            worker = context.Process(target=run_mujoco_worker, args=arguments, daemon=True)
            worker.start()
            worker_pipe.close()
            self.pipes.append(pipe)
            self.workers.append(worker)
        # Before multiprocessing waits, at the end, for workers that wait for their pipe to close.
        atexit.register(self.close)
        self.own_envs = {row: make_mujoco_env(env_id) for row in own_rows}

    def ask(self, command: str, argument=None) -> list:
        """Have this process and its workers do `command`; their answers. Raises UserError."""
        try:
            for pipe in self.pipes:
                pipe.send((command, argument))
            own_answer = obey(command, argument, self.own_envs, self.shared)
            answers = [pipe.recv() for pipe in self.pipes]
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self.close()
            reason = "an environment worker died (killed, or out of memory): free some memory"
            raise UserError(f"{reason}, then go on with --resume") from error
        for _, failure in answers:
            if failure:
                raise RuntimeError(f"an environment failed in its worker:\n{failure}")
        return [own_answer, *(answer for answer, _ in answers)]

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start new episodes, environment i from seed + i. Returns obs (N, D) and no infos."""
        self.ask("reset", seed)
        return self.shared["obs"], {}

    def step(self, actions: np.ndarray):
        """Actions (N, A) to obs (N, D), rewards, terminations, truncations (N,) and infos.

        Where an episode ended, obs is the first of the next one, and infos["final_obs"] (N, D) the
        last of the old one in the rows that infos["_final_obs"] (N,) marks.
        """
        shared = self.shared
        shared["actions"][:] = actions
        self.ask("step")
        ended = shared["terminations"] | shared["truncations"]
        infos = {"final_obs": shared["final_obs"], "_final_obs": ended} if ended.any() else {}
        return (
            shared["obs"],
            shared["rewards"],
            shared["terminations"],
            shared["truncations"],
            infos,
        )

    def state_dict(self) -> dict:
        """Where the simulators are, one state per environment; None for each that has none."""
        states = [state for answer in self.ask("get_state") for state in answer]
        return {"obs": torch.tensor(self.shared["obs"]), "simulators": states}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`, after a reset."""
        self.ask("set_state", state["simulators"])
        self.shared["obs"][:] = state["obs"].numpy()

    def close(self) -> None:
        """End the worker processes, and the environments of this one."""
        atexit.unregister(self.close)
        for pipe in self.pipes:
            pipe.close()
        for worker in self.workers:
            worker.join(timeout=5)
            worker.kill()
        for env in self.own_envs.values():
            env.close()


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


def mlp_sizes(size: str) -> tuple[int, ...]:
    """Hidden layers of the three MuJoCo networks (Appendix A.2, A.3)."""
    return {"smaller": (128, 64), "same": (256, 256), "larger": (512, 512)}[size]


def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (SB3's initialisation)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def make_mlp(
    inputs: int, hidden_sizes: tuple[int, ...], outputs: int, gain: float
) -> nn.Sequential:
    """ReLU network; `gain` initialises its last layer."""
    layers = []
    for hidden in hidden_sizes:
        layers += [init_layer(nn.Linear(inputs, hidden)), nn.ReLU()]
        inputs = hidden
    return nn.Sequential(*layers, init_layer(nn.Linear(inputs, outputs), gain))


class MujocoAgent(nn.Module):
    """Policy, critic and observation statistics; takes raw observations, all in one file."""

    def __init__(
        self, action_low: torch.Tensor, action_high: torch.Tensor, obs_dim: int, hidden_sizes
    ):
        super().__init__()
        action_dim = len(action_low)
        self.actor = make_mlp(obs_dim, hidden_sizes, action_dim, gain=0.01)
        self.log_std = nn.Parameter(torch.zeros(action_dim))
        self.critic = make_mlp(obs_dim, hidden_sizes, 1, gain=1.0)
        self.register_buffer("action_low", action_low)
        self.register_buffer("action_high", action_high)
        self.register_buffer("obs_mean", torch.zeros(obs_dim, dtype=torch.float64))
        self.register_buffer("obs_var", torch.ones(obs_dim, dtype=torch.float64))
        self.register_buffer("obs_count", torch.tensor(1e-4, dtype=torch.float64))

    def normalize(self, obs: torch.Tensor) -> torch.Tensor:
        """(B, D) to (B, D): running mean 0 and variance 1, clipped to ±10 (SB3's VecNormalize)."""
        mean, var = self.obs_mean.to(obs), self.obs_var.to(obs)
        return ((obs - mean) * (var + 1e-8).rsqrt()).clamp(-10, 10)

    @torch.no_grad()
    def update_normalizer(self, obs: torch.Tensor) -> None:
        """Take one step's raw observations (N, D) into the running mean and variance."""
        var, mean = torch.var_mean(obs.double(), 0, unbiased=False)
        moments = self.obs_mean, self.obs_var, self.obs_count
        mean, var, count = merge_moments(*moments, mean, var, len(obs))
        self.obs_mean.copy_(mean)
        self.obs_var.copy_(var)
        self.obs_count.copy_(count)

    def policy_outputs(self, obs: torch.Tensor) -> torch.Tensor:
        """(B, D) to the means (B, A) of the action distribution."""
        return self.actor(self.normalize(obs))

    def distribution(self, outputs: torch.Tensor) -> Distribution:
        """(B, A) means to a diagonal Gaussian whose log_prob, entropy and KL are (B,)."""
        normal = Normal(outputs, self.log_std.exp().expand_as(outputs), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def sample(self, outputs: torch.Tensor) -> torch.Tensor:
        """(B, A) means to actions (B, A): `distribution(outputs).sample()` with less overhead."""
        return outputs + self.log_std.exp() * torch.randn_like(outputs)

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """(B, D) to (B,)."""
        return self.critic(self.normalize(obs)).squeeze(-1)

    @torch.no_grad()
    def act(self, obs, deterministic: bool = True) -> np.ndarray:
        """Raw observations (B, D) to actions (B, A) within the environment's bounds."""
        outputs = self.policy_outputs(
            torch.as_tensor(obs, dtype=torch.float32, device=self.obs_mean.device)
        )
        actions = outputs if deterministic else self.sample(outputs)
        return self.env_actions(actions)

    def env_actions(self, actions: torch.Tensor) -> np.ndarray:
        """Sampled actions (B, A), clipped to the environment's Box."""
        return actions.clamp(self.action_low, self.action_high).cpu().numpy()


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


def load_mujoco_agent(path: str | Path, device: str = "cpu") -> tuple[MujocoAgent, dict]:
    """A frozen agent and its header. Raises UserError for anything else than a MuJoCo agent."""
    tensors, header = read_checkpoint(path)
    if header.get("suite") != "mujoco":
        suite = header.get("suite")
        raise UserError(f"checkpoint {path}: an agent for {suite}; give one trained on MuJoCo")
    try:
        bounds = tensors["action_low"], tensors["action_high"]
        agent = MujocoAgent(*bounds, len(tensors["obs_mean"]), header["hidden_sizes"])
        agent.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = "its weights do not have the sizes that its header names"
        raise UserError(f"checkpoint {path}: {reason}; copy it again or train anew") from error
    return agent.to(device).eval().requires_grad_(False), header


def load_mujoco_teacher(args, envs) -> tuple[MujocoAgent, dict, str | None]:
    """The teacher, its header, and a warning if it was trained on another environment id.

    Raises UserError for a file that is no MuJoCo agent, or one of other sizes.
    """
    path = args.teacher or Path(__file__).parent / "teachers" / f"{args.env_id}.safetensors"
    if not Path(path).exists():
        advice = f"train one with `python ppo_teacher_mujoco.py --env-id {args.env_id}`"
        raise UserError(f"teacher {path}: no such file; put it there, give --teacher, or {advice}")
    teacher, header = load_mujoco_agent(path, choose_device(args.device))
    shapes = (*teacher.obs_mean.shape, *teacher.action_low.shape)
    wanted = (*envs.single_observation_space.shape, *envs.single_action_space.shape)
    if shapes != wanted:
        reason = f"made for observations and actions of sizes {shapes}, {args.env_id} has {wanted}"
        raise UserError(f"teacher {path}: {reason}; give a teacher for {args.env_id}")
    if header["env_id"] == args.env_id:
        return teacher, header, None
    return teacher, header, f"the teacher was trained on {header['env_id']}, not {args.env_id}"


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


def score_text(score: dict) -> str:
    """`summarize`'s answer as text: mean ± standard error."""
    error = score["standard_error"]
    return f"{score['mean']:.1f} " + ("(n=1)" if error is None else f"± {error:.1f}")


# ------------------------------------------------------------------------------- Training


def faster_worker_count(env_id: str, num_envs: int) -> int:
    """One process, or one per core, whichever steps the environments faster.

    Where another process uses a core as well, each step waits for the half that has to share it.
    """
    pools = {n: MujocoVectorEnv(env_id, num_envs, n) for n in {1, torch.get_num_threads()}}
    seconds = dict.fromkeys(pools, 0.0)
    for pool in pools.values():
        pool.reset(seed=0)
    actions = pool.action_space.sample()
    for _ in range(50):
        for workers, pool in pools.items():
            start = time.perf_counter()
            pool.step(actions)
            seconds[workers] += time.perf_counter() - start
    for pool in pools.values():
        pool.close()
    return min(seconds, key=seconds.get)


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
    num_workers = args.num_workers or faster_worker_count(args.env_id, N)
    envs = MujocoVectorEnv(args.env_id, N, num_workers)
    eval_envs, eval_seed = MujocoVectorEnv(args.env_id, 10, num_workers), 10_000 + args.seed
    (obs_dim,), box = envs.single_observation_space.shape, envs.single_action_space
    next_obs, _ = envs.reset(seed=args.seed)

    teacher, teacher_header, warning = load_mujoco_teacher(args, envs)
    bounds = torch.tensor(box.low), torch.tensor(box.high)
    agent = MujocoAgent(*bounds, obs_dim, args.hidden_sizes).to(device)
    for name in ("obs_mean", "obs_var", "obs_count"):  # the teacher's statistics, frozen
        agent.get_buffer(name).copy_(teacher.get_buffer(name))
    adam = {"lr": args.learning_rate, "eps": args.adam_eps, "fused": True}
    optimizer = torch.optim.Adam(agent.parameters(), **adam)
    normalize_reward, track_episodes = RewardNormalizer(N), EpisodeStatistics(N)
    parts = {"agent": agent, "optimizer": optimizer, "envs": envs}
    parts |= {"normalize_reward": normalize_reward, "track_episodes": track_episodes}
    log = {"iteration": 0, "seconds": 0.0, "curve": [], "evaluations": []}
    if args.torch_threads is None:
        eval_envs.reset()  # wait for its workers, whose start would disturb the measurement
        sample = torch.zeros(args.minibatch_size, obs_dim, device=device)
        args.torch_threads = faster_thread_count(agent, sample)
    torch.set_num_threads(1)  # but for the update: a few observations are too little to share out
    header = {"format": "ppd-agent-1", "suite": "mujoco", "script": script, "env_id": args.env_id}
    header |= {"hidden_sizes": args.hidden_sizes, "seed": args.seed, "deterministic": True}
    if state:
        log, lost = state["log"], []
        if None in state["envs"]["simulators"]:
            print(f"{args.env_id}: its simulator cannot be saved, so its running episodes restart")
            lost, _ = ["envs", "track_episodes"], envs.reset(seed=args.seed + log["iteration"])
        if log.get("teacher", teacher_header) != teacher_header:
            raise UserError(f"--resume {run_dir}: its teacher has changed; put the first one back")
        for name in parts.keys() - lost:
            parts[name].load_state_dict(state[name])
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
        returns, _ = evaluate(teacher, eval_envs, args.teacher_episodes, eval_seed, True)
        log["teacher_score"] = summarize(returns)
        warnings_found = [warning, compare_with_header(log["teacher_score"], teacher_header)]
        log |= {"teacher": teacher_header, "warnings": [text for text in warnings_found if text]}
    for text in log["warnings"]:
        print(f"WARNING: {text}")
    print(f"teacher: {score_text(log['teacher_score'])} over {args.teacher_episodes} episodes")
    taken = ", ".join(f"{name} {value}" for name, value in args.from_paper.items())
    print(f"{args.env_id}: simulator on {num_workers} cores, {args.torch_threads} torch threads")
    if taken:
        print(f"the paper's {taken}")
    writer = start_logging(args, run_dir, global_step)
    total, quiet = args.num_iterations * args.batch_size, 1 if sys.stderr.isatty() else 60
    bar = {"unit": " steps", "unit_scale": True, "dynamic_ncols": True, "mininterval": quiet}
    progress = tqdm(total=total, initial=global_step, **bar)

    obs = torch.zeros((T, N, obs_dim), device=device)  # normalised as they come, once for all
    actions = torch.zeros((T, N, *box.shape), device=device)
    outputs = torch.zeros((T, N, *box.shape), device=device)  # of the policy: the actions' means
    rewards = np.zeros((T, N))
    terminations, truncations = np.zeros((T, N), dtype=bool), np.zeros((T, N), dtype=bool)
    while global_step < total:
        # Collect a rollout with the policy as it is.
        finished, final_obs = [], []
        with torch.no_grad():
            for t in range(T):
                raw_obs = torch.from_numpy(next_obs).to(obs)
                obs[t] = agent.normalize(raw_obs)
                outputs[t] = agent.actor(obs[t])
                actions[t] = agent.sample(outputs[t])
                env_step = envs.step(agent.env_actions(actions[t]))
                next_obs, rewards[t], terminations[t], truncations[t], infos = env_step
                finished += track_episodes(rewards[t], terminations[t] | truncations[t])
                if truncations[t].any():
                    final_obs.append(torch.tensor(infos["final_obs"][truncations[t]]))

            torch.set_num_threads(args.torch_threads)
            # Advantages. A time limit is no terminal state: bootstrap from the final observation.
            b_obs, b_actions = obs.flatten(0, 1), actions.flatten(0, 1)  # (B, D), (B, A)
            b_logprobs = agent.distribution(outputs.flatten(0, 1)).log_prob(b_actions)  # (B,)
            values = agent.critic(b_obs).view(T, N)
            last_values = agent.value(torch.from_numpy(next_obs).to(obs))
            next_values = torch.cat([values[1:], last_values[None]])
            if final_obs:
                next_values[truncations] = agent.value(torch.cat(final_obs).to(obs))
            ended = terminations | truncations
            scaled_rewards = torch.from_numpy(normalize_reward(rewards, ended)).to(values)
            ends, terminals = (torch.from_numpy(e).to(device) for e in (ended, terminations))
            advantages = compute_gae(
                scaled_rewards, values, next_values, terminals, ends, args.gamma, args.gae_lambda
            )
            # The teacher is asked once per rollout; it has the same observation statistics.
            teacher_outputs = teacher.actor(b_obs)
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
                student_dist = agent.distribution(agent.actor(mb_obs))
                teacher_dist = teacher.distribution(teacher_outputs[mb])
                logratio = student_dist.log_prob(b_actions[mb]) - b_logprobs[mb]
                ratio = logratio.exp()
                mb_advantages = normalize_advantages(b_advantages[mb])
                pg_loss = clipped_surrogate_loss(ratio, mb_advantages, args.clip_coef)
                v_loss = value_loss(agent.critic(mb_obs).squeeze(-1), b_returns[mb])
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
        torch.set_num_threads(1)
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
            score = summarize(evaluate(agent, eval_envs, args.eval_episodes, eval_seed, True)[0])
            scalars["eval/return"] = score["mean"]
            log["evaluations"].append([global_step, score["mean"], score["standard_error"]])
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
    returns, lengths = evaluate(agent, eval_envs, args.episodes, eval_seed, True)
    teacher_returns, _ = evaluate(teacher, eval_envs, args.episodes, eval_seed, True)
    score, teacher_score = summarize(returns), summarize(teacher_returns)
    reference = teacher_header.get("original_score", teacher_score)["mean"]
    fraction = score["mean"] / reference if reference > 0 else None
    reached = [step for step, mean, _ in log["evaluations"] if mean >= 0.9 * reference > 0]
    save_agent(agent, run_dir / "agent.safetensors", header | {"steps": total, "score": score})
    result = {"script": script, "args": asdict(args), "score": score, "steps": total}
    result |= {"episode_returns": returns, "episode_lengths": lengths, **log}
    result |= {"teacher_score": teacher_score, "fraction_of_teacher": fraction}
    result |= {"steps_to_90_percent": reached[0] if reached else None}
    result |= {"steps_per_second": total / log["seconds"], **describe_software()}
    write_whole(run_dir / "result.json", lambda path: path.write_text(json.dumps(result)))
    for closable in (envs, eval_envs, writer):
        closable.close()
    print(f"{run_dir}: {total:,} steps, {args.episodes} episodes each")
    text = f"student {score_text(score)} · teacher {score_text(teacher_score)}"
    print(text + (f" · {fraction:.3f}" if fraction is not None else ""))
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
