"""Student-distill: the student acts, and learns to do and to value what its teacher would.

    python student_distill.py mujoco --env-id Hopper-v4
    python student_distill.py atari --env-id PongNoFrameskip-v4 --student-size smaller
    python student_distill.py procgen --env-id coinrun
    python student_distill.py mujoco --resume runs/<run>

The baseline of "Proximal Policy Distillation" (Spigler, TMLR 2025), Algorithm 2, after "on-policy
distill" of Czarnecki et al. (2019): the student collects a short rollout, and one gradient step
over all of it minimises

    mean[ KL(π_T ‖ π_θ) ] − α·mean[ H(π_θ) ] + c_v·mean[ (V_φ − V_T)² ]

No reward enters. Differs from `teacher_distill.py`, Algorithm 3, only in who acts.

Symbols: T steps per rollout, N environments, B = T·N samples, A actions; observations are (B, D) on
MuJoCo, frames (B, C, H, W) on Atari and Procgen.
"""

import atexit
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
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
from typing import Annotated, Literal

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
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class UserError(Exception):
    """Something a user can cause and mend: one line, the cause and the remedy; exit status 2."""


@dataclass
class Args:
    # Environment
    env_id: str = ""
    """the environment; those of the paper stand at the top of the script"""
    seed: int = 100
    """seed of networks, sampling and environments; the paper's: 100, 200, 300, 400, 500"""
    num_envs: int = 18
    """environments stepped side by side, N (Table 3)"""
    device: str = "auto"
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

    # Distillation
    num_steps: int | None = None
    """steps per environment and rollout, T; unset: the paper's for the environment (Table 3)"""
    ent_coef: float | None = None
    """entropy coefficient α; unset: the paper's for the environment (Table 3, Appendix A.3)"""
    vf_coef: float = 0.5
    """weight of the value loss (SB3's default)"""
    teacher: str | None = None
    """the teacher's agent.safetensors; unset: teachers/<env-id>.safetensors beside this script"""
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
    log_every: int = 10_000
    """environment steps between two points of the learning curves, means over all between"""
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
        paper = {"hidden_sizes": mlp_sizes(self.student_size), "num_steps": 5, "ent_coef": 0.0}
        names = [name for name in paper if getattr(self, name, 0) is None]
        self.from_paper = {name: paper[name] for name in names}
        for name, value in self.from_paper.items():
            setattr(self, name, value)

    @property
    def suite(self) -> str:
        return type(self).__name__.removesuffix("Args").lower()

    @property
    def batch_size(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def num_iterations(self) -> int:
        return -(-self.total_timesteps // self.batch_size)

    @property
    def network(self) -> str:
        text = self.student_size == "smaller" and self.smaller_cnn == "text"
        return "smaller-text" if text else self.student_size


@dataclass
class MujocoArgs(Args):
    env_id: str = "Hopper-v4"
    """the environment; those of the paper stand at the top of the script"""
    num_workers: int | None = None
    """processes that share the environments, this one included; unset: one, or one per core"""
    device: str = "cpu"
    """torch device of networks and rollout: cpu, cuda, cuda:1, …; auto: cuda if there is one"""
    hidden_sizes: tuple[int, ...] | None = None
    """hidden layers spelled out, for example 400 300; unset: those of the named size"""


@dataclass
class AtariArgs(Args):
    env_id: str = "PongNoFrameskip-v4"
    """the environment; those of the paper stand at the top of the script"""
    frame_skip: int = 4
    """frames for which an action is held; the paper's text says 1, its code 4"""
    env_threads: int | None = None
    """CPU threads of the simulator; unset: as many as torch takes, one per core"""
    smaller_cnn: Literal["table", "text"] = "table"
    """what "smaller" is: as the paper's Table 4 counts it, or as its text describes it"""
    eval_every: int = 200_000
    """environment steps between evaluations during training; 0: none"""


@dataclass
class ProcgenArgs(Args):
    env_id: str = "coinrun"
    """the environment; those of the paper stand at the top of the script"""
    num_levels: int = 200
    """training levels, one of which is drawn for each episode; the levels after them are unseen"""
    start_level: int = 0
    """the first training level"""
    distribution_mode: Literal["easy", "hard"] = "easy"
    """difficulty of the levels (Appendix A.3: easy)"""
    env_threads: int | None = None
    """CPU threads of the simulator; unset: as many as torch takes, one per core"""
    smaller_cnn: Literal["table", "text"] = "table"
    """what "smaller" is: as the paper's Table 4 counts it, or as its text describes it"""
    eval_every: int = 200_000
    """environment steps between evaluations during training; 0: none"""
    eval_episodes: int = 20
    """episodes of each evaluation during training"""
    teacher_episodes: int = 20
    """episodes in which the teacher is scored before training"""
    episodes: int = 200
    """episodes of the final score (Appendix A.3)"""


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


# ------------------------------------------------------------------------------- MuJoCo


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


# ------------------------------------------------------------------------------- Atari


def find_rom(env_id: str) -> str:
    """MsPacmanNoFrameskip-v4 to ale-py's ms_pacman. Raises UserError for what is no Atari game."""
    from ale_py import roms

    refused = f"--env-id {env_id}: "
    found = re.fullmatch(r"([A-Z][A-Za-z0-9]*)NoFrameskip-v4", env_id)
    if not found:
        advice = "give one like PongNoFrameskip-v4; for others use the scripts of their suite"
        raise UserError(f"{refused}no Atari id; {advice}")
    rom = re.sub(r"(?<!^)(?=[A-Z])", "_", found[1]).lower()
    if rom not in roms.get_all_rom_ids():
        raise UserError(f"{refused}ale-py has no such game; try PongNoFrameskip-v4")
    try:
        roms.get_rom_path(rom)
    except OSError as error:
        advice = "unset ALE_ROMS_DIR, or pip install --force-reinstall ale-py"
        raise UserError(f"{refused}its ROM cannot be read ({error}); {advice}") from error
    return rom


class AtariGames(gym.vector.VectorEnv):
    """N games on ale-py's own threads, with same-step autoreset.

    Frames and games as in Gymnasium's NoFrameskip-v4 ids with AtariPreprocessing and
    FrameStackObservation: 84×84, grey, the last four, oldest first; at a game's start FIRE, where
    it has that button, and up to 29 no-ops. With `life_loss` a lost life is a termination as well,
    and the game goes on; infos["game_over"] (N,) tells where it does not. Observations that `reset`
    and `step` return are overwritten by the next step.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}

    def __init__(
        self, env_id: str, num_envs: int, num_threads: int, frame_skip: int, life_loss: bool
    ):
        """Raises UserError for an id that `find_rom` refuses."""
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
        self.observation_space = self.simulator.observation_space
        self.action_space = self.simulator.action_space
        self.obs = np.zeros(self.observation_space.shape, np.uint8)
        # The simulator cannot be saved. A game is its slot's seed, the number of games that were
        # played there since it was seeded, and the actions since the game's start.
        self.seeds = np.zeros(num_envs, np.int64)
        self.games = np.zeros(num_envs, np.int64)
        self.actions = np.zeros((num_envs, max_frames // frame_skip + 2), np.uint8)
        self.lengths = np.zeros(num_envs, np.int64)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start new games, slot i from seed + i. Returns obs (N, C, H, W) and no infos."""
        super().reset(seed=seed)
        first = int(self.np_random.integers(2**30)) if seed is None else seed
        self.seeds = first + np.arange(self.num_envs)
        self.games[:] = self.lengths[:] = 0
        self.obs[:], _ = self.simulator.reset(seed=self.seeds)
        return self.obs, {}

    def start_games(self, slots: np.ndarray) -> None:
        """Start the next game in each slot that the mask (N,) marks."""
        # Without a seed: seeding loads the ROM again, which takes as long as 250 steps.
        self.obs[:], _ = self.simulator.reset(options={"reset_mask": slots})
        self.games[slots] += 1
        self.lengths[slots] = 0

    def step(self, actions: np.ndarray):
        """Actions (N,) to obs (N, C, H, W), rewards, terminations, truncations (N,) and infos.

        Where a game is over, obs is the first of the next one, and infos["final_obs"] the last of
        the old one in the rows that infos["_final_obs"] (N,) marks.
        """
        self.actions[np.arange(self.num_envs), self.lengths] = actions
        self.lengths += 1
        obs, rewards, terminations, truncations, state = self.simulator.step(actions)
        self.obs[:] = obs
        plays_on = self.life_loss & (state["lives"] > 0)  # games without lives report 0
        game_over = terminations & ~plays_on | truncations
        infos = {"game_over": game_over}
        if game_over.any():  # at once, or the next step would be lost to the simulator's own reset
            infos |= {"final_obs": obs, "_final_obs": game_over}
            self.start_games(game_over)
        return self.obs, rewards, terminations, truncations, infos

    def state_dict(self) -> dict:
        """What it takes to play the running games again, and what they show."""
        state = {name: getattr(self, name).tolist() for name in ("seeds", "games", "lengths")}
        actions = torch.tensor(self.actions[:, : self.lengths.max()])
        return state | {"actions": actions, "obs": torch.tensor(self.obs)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`, after a reset: plays the running games again from their starts.

        Raises UserError where they do not come out the same.
        """
        self.seeds, lengths = np.array(state["seeds"]), np.array(state["lengths"])
        longest, rows = lengths.max(), np.arange(self.num_envs)
        self.actions[:, :longest] = state["actions"].numpy()
        # All end together: a shorter game starts later, and its slot plays anything until then.
        for step in range(longest + 1):
            for slot in np.flatnonzero(lengths == longest - step):
                mask = rows == slot
                options = {"reset_mask": mask}
                self.obs[:], _ = self.simulator.reset(seed=self.seeds[mask], options=options)
                self.games[slot] = 0
                for _ in range(state["games"][slot]):
                    self.start_games(mask)
            if step < longest:
                played = np.maximum(step - (longest - lengths), 0)
                actions = self.actions[rows, played].astype(np.int64)
                self.obs[:] = self.simulator.step(actions)[0]
        self.lengths = lengths
        if not np.array_equal(self.obs, state["obs"].numpy()):
            advice = "go on with the ale-py that it was started with"
            raise UserError(f"the running games do not replay to where they stopped; {advice}")


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


# ------------------------------------------------------------------------------- Losses


def value_loss(values, returns):
    """Squared error of the critic, without a further ½ (as SB3): (M,), (M,) to a scalar."""
    # mean[ (V(s) − R̂)² ]
    return (values - returns).square().mean()


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


def supervised_loss(kl, entropy_loss, v_loss, ent_coef, vf_coef):
    """The loss of Algorithms 2 and 3: KL to the teacher (B,), and two scalars, to a scalar."""
    # mean[KL] − α·mean[H] + c_v·mean[(V − V_T)²]
    return kl.mean() - ent_coef * entropy_loss + vf_coef * v_loss


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


def load_atari_agent(path: str | Path, device: str = "cpu") -> tuple[PixelAgent, dict]:
    """A frozen agent and its header. Raises UserError for anything else than an Atari agent."""
    tensors, header = read_checkpoint(path)
    if header.get("suite") != "atari":
        suite = header.get("suite")
        raise UserError(f"checkpoint {path}: an agent for {suite}; give one trained on Atari")
    try:
        agent = PixelAgent((4, 84, 84), len(tensors["actor.1.bias"]), header["size"])
        agent.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = "its weights do not have the sizes that its header names"
        raise UserError(f"checkpoint {path}: {reason}; copy it again or train anew") from error
    return agent.to(device).eval().requires_grad_(False), header


def load_atari_teacher(args, num_actions: int) -> tuple[PixelAgent, dict, str | None]:
    """The teacher, its header, and a warning if it was trained on another game or frame skip.

    Raises UserError for a file that is no Atari agent, or one of another number of actions.
    """
    path = args.teacher or Path(__file__).parent / "teachers" / f"{args.env_id}.safetensors"
    if not Path(path).exists():
        advice = f"train one with `python ppo_teacher_atari.py --env-id {args.env_id}`"
        raise UserError(f"teacher {path}: no such file; put it there, give --teacher, or {advice}")
    teacher, header = load_atari_agent(path, choose_device(args.device))
    found = len(teacher.actor[1].bias)
    if found != num_actions:
        reason = f"made for {found} actions, {args.env_id} has {num_actions}"
        raise UserError(f"teacher {path}: {reason}; give a teacher for {args.env_id}")
    theirs = [header.get(key) for key in ("env_id", "frame_skip")]
    if theirs == [args.env_id, args.frame_skip]:
        return teacher, header, None
    trained = "the teacher was trained on {} with frame skip {}".format(*theirs)
    return teacher, header, f"{trained}, not {args.env_id} with {args.frame_skip}"


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


def base_scores(env_id: str) -> tuple[float, float] | None:
    """Scores of random play and of a human (Badia et al., 2020) in the paper's games, else None."""
    return {
        "AtlantisNoFrameskip-v4": (12850.0, 29028.1),
        "BeamRiderNoFrameskip-v4": (363.9, 16926.5),
        "CrazyClimberNoFrameskip-v4": (10780.5, 35829.4),
        "DemonAttackNoFrameskip-v4": (152.1, 1971.0),
        "EnduroNoFrameskip-v4": (0.0, 860.5),
        "FreewayNoFrameskip-v4": (0.0, 29.6),
        "MsPacmanNoFrameskip-v4": (307.3, 6951.6),
        "PongNoFrameskip-v4": (-20.7, 14.6),
        "QbertNoFrameskip-v4": (163.9, 13455.0),
        "SeaquestNoFrameskip-v4": (68.4, 42054.7),
        "ZaxxonNoFrameskip-v4": (32.5, 9173.3),
    }.get(env_id)


def score_games(env_id: str, returns: list[float], lengths: list[int]) -> dict:
    """`summarize`, and the human-normalised mean: 0 is random play, 1 a human.

    A deterministic policy plays the same game after the same no-ops: `distinct` tells how many of
    the games differ in return or length; there may be more.
    """
    score = summarize(returns) | {"distinct": len(set(zip(returns, lengths, strict=True)))}
    bases = base_scores(env_id)
    if bases:
        random, human = bases
        score["human_normalized"] = (score["mean"] - random) / (human - random)
    return score


def score_text(score: dict) -> str:
    """`summarize`'s answer as text: mean ± standard error."""
    error = score["standard_error"]
    return f"{score['mean']:.1f} " + ("(n=1)" if error is None else f"± {error:.1f}")


def game_score_text(score: dict) -> str:
    """`score_games`' answer as text: mean ± standard error, human-normalised, distinct games."""
    text = f"{score_text(score)}, at least {score['distinct']} distinct"
    if "human_normalized" in score:
        text += f", human-normalised {score['human_normalized']:.2f}"
    return text


def score_agent(args, agent, eval_envs: dict, episodes: int) -> dict[str, dict]:
    """Play on each of `eval_envs`, by the protocol of the suite; a score for each name.

    Deterministic actions, but on Procgen sampled ones (Appendix A.3).
    """
    scores, sampled = {}, args.suite == "procgen"
    for name, envs in eval_envs.items():
        returns, lengths = evaluate(agent, envs, episodes, 10_000 + args.seed, not sampled)
        atari = args.suite == "atari"
        score = score_games(args.env_id, returns, lengths) if atari else summarize(returns)
        scores[name] = {"score": score, "episode_returns": returns, "episode_lengths": lengths}
    return scores


# ------------------------------------------------------------------------------- Training


def build_mujoco(args, device: torch.device, cores: int):
    """Environments, those to evaluate in, student, teacher, its header, a warning, a header."""
    workers = args.num_workers or faster_worker_count(args.env_id, args.num_envs)
    envs = MujocoVectorEnv(args.env_id, args.num_envs, workers)
    eval_envs = {"": MujocoVectorEnv(args.env_id, 10, workers)}
    teacher, teacher_header, warning = load_mujoco_teacher(args, envs)
    bounds, obs_dim = (teacher.action_low, teacher.action_high), len(teacher.obs_mean)
    agent = MujocoAgent(*bounds, obs_dim, args.hidden_sizes).to(device)
    for name in ("obs_mean", "obs_var", "obs_count"):  # the teacher's statistics, frozen
        agent.get_buffer(name).copy_(teacher.get_buffer(name))
    header = {"hidden_sizes": args.hidden_sizes, "deterministic": True}
    return envs, eval_envs, agent, teacher, teacher_header, warning, header


def build_atari(args, device: torch.device, cores: int):
    """As `build_mujoco`."""
    game = {"env_id": args.env_id, "num_threads": args.env_threads or cores}
    game |= {"frame_skip": args.frame_skip}
    envs = AtariGames(num_envs=args.num_envs, life_loss=True, **game)
    eval_envs = {"": AtariGames(num_envs=10, life_loss=False, **game)}
    obs_shape, num_actions = envs.single_observation_space.shape, int(envs.single_action_space.n)
    teacher, teacher_header, warning = load_atari_teacher(args, num_actions)
    agent = PixelAgent(obs_shape, num_actions, args.network).to(device)
    header = {"frame_skip": args.frame_skip, "size": args.network}
    header |= {"deterministic": True}
    return envs, eval_envs, agent, teacher, teacher_header, warning, header


def build_procgen(args, device: torch.device, cores: int):
    """As `build_mujoco`."""
    threads = args.env_threads or cores
    envs = make_procgen_envs(args, args.num_envs, threads)
    kinds = {"": "unseen", "_training": "training"}
    eval_envs = {name: make_procgen_envs(args, 20, threads, kinds[name]) for name in kinds}
    teacher, teacher_header, warning = load_procgen_teacher(args)
    obs_shape, num_actions = envs.single_observation_space.shape, int(envs.single_action_space.n)
    agent = PixelAgent(obs_shape, num_actions, args.network).to(device)
    header = {"num_levels": args.num_levels, "start_level": args.start_level}
    header |= {"distribution_mode": args.distribution_mode, "size": args.network}
    header |= {"deterministic": False}
    return envs, eval_envs, agent, teacher, teacher_header, warning, header


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


def check_divergence(kl: float, first_kl: float, step: int, run_dir: Path) -> None:
    """Raises UserError where a student is ten times as far from its teacher as at its start."""
    if kl > 10 * first_kl:
        advice = "the last good checkpoint is kept; start anew with a lower --learning-rate"
        found = f"the KL to the teacher grew from {first_kl:.3g} to {kl:.3g} by step {step:,}"
        raise UserError(f"{run_dir}: diverged: {found}; {advice}")


def train(args: MujocoArgs | AtariArgs | ProcgenArgs) -> dict:
    """Student-distill and its score; returns what result.json holds. Raises UserError."""
    script, state = Path(__file__).stem, None
    if args.resume:
        if args != type(args)(resume=args.resume):
            raise UserError("--resume takes no other flag: a run goes on with its own arguments")
        run_dir = Path(args.resume)
        state = load_training_state(args.resume, f"{script} {args.suite}", type(args))
        args = state["args"]
    check_args(args)
    torch.manual_seed(args.seed)
    device, T, N = choose_device(args.device), args.num_steps, args.num_envs
    cores = torch.get_num_threads()
    builders = {"mujoco": build_mujoco, "atari": build_atari, "procgen": build_procgen}
    built = builders[args.suite](args, device, cores)
    envs, eval_envs, agent, teacher, teacher_header, warning, header = built
    next_obs, _ = envs.reset(seed=args.seed)
    pixels = next_obs.dtype == np.uint8
    obs_dtype = torch.uint8 if pixels else torch.float32
    obs = torch.zeros((T, *next_obs.shape), dtype=obs_dtype, device=device)
    actor, actor_name = agent, "student"  # who acts, and whose returns the rollouts show

    adam = {"lr": args.learning_rate, "eps": args.adam_eps, "fused": True}
    optimizer = torch.optim.Adam(agent.parameters(), **adam)
    track_episodes = EpisodeStatistics(N)
    parts = {"agent": agent, "optimizer": optimizer, "envs": envs, "track_episodes": track_episodes}
    log = {"iteration": 0, "seconds": 0.0, "curve": [], "evaluations": [], "first_kl": None}
    if args.torch_threads is None:
        args.torch_threads = faster_thread_count(agent, obs.flatten(0, 1))
    # A few observations are too little to share out, a few frames are not.
    acting_threads = args.torch_threads if pixels else 1
    torch.set_num_threads(acting_threads)
    header |= {"format": "ppd-agent-1", "suite": args.suite, "script": script}
    header |= {"env_id": args.env_id, "seed": args.seed}
    if state:
        log, lost = state["log"], []
        if None in state["envs"].get("simulators", []):
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
        facts = {"script": f"{script} {args.suite}", "args": asdict(args), "log": log}
        save_training_state(run_dir, parts, facts)
        save_agent(agent, run_dir / "agent.safetensors", header | {"steps": global_step})

    stop_signals = catch_stop_signals()
    started, seconds_before = time.perf_counter(), log["seconds"]
    global_step = log["iteration"] * args.batch_size
    save()
    if "teacher_score" not in log:
        teacher_scores = score_agent(args, teacher, eval_envs, args.teacher_episodes)
        log["teacher_score"] = teacher_scores[""]["score"]
        warnings_found = [warning, compare_with_header(log["teacher_score"], teacher_header)]
        log |= {"teacher": teacher_header, "warnings": [text for text in warnings_found if text]}
    for text in log["warnings"]:
        print(f"WARNING: {text}")
    print(f"teacher: {score_text(log['teacher_score'])} over {args.teacher_episodes} episodes")
    print(f"{args.env_id}: {args.torch_threads} torch threads")
    taken = ", ".join(f"{name} {value}" for name, value in args.from_paper.items())
    if taken:
        print(f"the paper's {taken}")
    writer = start_logging(args, run_dir, global_step)
    total, quiet = args.num_iterations * args.batch_size, 1 if sys.stderr.isatty() else 60
    bar = {"unit": " steps", "unit_scale": True, "dynamic_ncols": True, "mininterval": quiet}
    progress = tqdm(total=total, initial=global_step, **bar)

    finished, metrics = [], []
    while global_step < total:
        # Collect a rollout.
        with torch.no_grad():
            for t in range(T):
                obs[t] = torch.from_numpy(next_obs)
                actions = actor.sample(actor.policy_outputs(obs[t]))
                env_step = envs.step(agent.env_actions(actions))
                next_obs, reward, terminations, truncations, infos = env_step
                ended = infos.get("game_over", terminations | truncations)
                finished += track_episodes(reward, ended)
            torch.set_num_threads(args.torch_threads)
            b_obs = obs.flatten(0, 1)  # (B, …)
            teacher_dist = teacher.distribution(teacher.policy_outputs(b_obs))
            teacher_values = teacher.value(b_obs)

        # One gradient step over the whole rollout.
        student_dist = agent.distribution(agent.policy_outputs(b_obs))
        kl = policy_kl(teacher_dist, student_dist, args.kl)
        entropy_loss = student_dist.entropy().mean()
        v_loss = value_loss(agent.value(b_obs), teacher_values)
        loss = supervised_loss(kl, entropy_loss, v_loss, args.ent_coef, args.vf_coef)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
        optimizer.step()
        terms = {"distill/kl": kl.mean(), "losses/value_loss": v_loss}
        terms |= {"losses/entropy": entropy_loss}
        metrics.append({name: term.detach() for name, term in terms.items()})
        torch.set_num_threads(acting_threads)
        log["iteration"] += 1
        previous_step, global_step = global_step, global_step + args.batch_size

        # Log, evaluate, save; rarely, beside so short a rollout.
        intervals, last = (args.log_every, args.eval_every, args.save_every), global_step == total
        due = {n: n and (global_step // n > previous_step // n or last) for n in intervals}
        if not any(due.values()) and not stop_signals:
            continue
        scalars = {name: torch.stack([m[name] for m in metrics]).mean().item() for name in terms}
        check_finite(agent, scalars, log["iteration"], run_dir)
        log["first_kl"] = log["first_kl"] or scalars["distill/kl"]
        check_divergence(scalars["distill/kl"], log["first_kl"], global_step, run_dir)
        metrics = []
        scalars["charts/learning_rate"] = args.learning_rate
        scalars["charts/SPS"] = progress.format_dict["rate"] or 0
        if finished:
            mean_return = statistics.fmean(episode_return for episode_return, _ in finished)
            mean_length = statistics.fmean(length for _, length in finished)
            scalars[f"charts/{actor_name}_episodic_return"] = mean_return
            scalars[f"charts/{actor_name}_episodic_length"] = mean_length
            log["curve"].append([global_step, mean_return, len(finished)])
            finished = []
        if due[args.eval_every]:
            for name, scored in score_agent(args, agent, eval_envs, args.eval_episodes).items():
                score = scored["score"]
                scalars[f"eval/student_return{name}"] = score["mean"]
                point = [global_step, score["mean"], score["standard_error"]]
                log.setdefault(f"evaluations{name}", []).append(point)
        for name, value in scalars.items():
            writer.add_scalar(name, value, global_step)
        recent = [mean for _, mean, _ in log["curve"][-10:]]
        shown = {f"{actor_name}_return": f"{statistics.fmean(recent):.1f}"} if recent else {}
        shown["KL"] = f"{scalars['distill/kl']:.3f}"
        progress.set_postfix(shown, refresh=False)
        progress.update(global_step - progress.n)
        if due[args.save_every] or stop_signals:
            save()
        if stop_signals:
            progress.close()
            command = f"python {script}.py {args.suite} --resume {run_dir}"
            tqdm.write(f"stopped at step {global_step:,}; {command}")
            sys.exit(128 + stop_signals[0])

    progress.close()
    restore_stop_signals()  # all is saved: from here on Ctrl-C may end the process at once

    # The final score, by the paper's protocol, of the student and of its teacher.
    scores = score_agent(args, agent, eval_envs, args.episodes)
    teacher_scores = score_agent(args, teacher, eval_envs, args.episodes)
    score, teacher_score = scores[""]["score"], teacher_scores[""]["score"]
    random, _ = base_scores(args.env_id) or (0.0, 1.0)  # zero of the human-normalised score
    gain = teacher_header.get("original_score", teacher_score)["mean"] - random
    fraction = (score["mean"] - random) / gain if gain > 0 else None  # None: a random teacher
    reached = [step for step, mean, _ in log["evaluations"] if mean - random >= 0.9 * gain > 0]
    header |= {"steps": total} | {f"score{name}": scores[name]["score"] for name in scores}
    save_agent(agent, run_dir / "agent.safetensors", header)
    result = {"script": script, "args": asdict(args), "steps": total, **log}
    result["curve_of"] = actor_name
    for name in eval_envs:
        result |= {f"{key}{name}": value for key, value in scores[name].items()}
        result[f"teacher_score{name}"] = teacher_scores[name]["score"]
    result |= {"fraction_of_teacher": fraction}
    result |= {"steps_to_90_percent": reached[0] if reached else None}
    result |= {"steps_per_second": total / log["seconds"], **describe_software()}
    write_whole(run_dir / "result.json", lambda path: path.write_text(json.dumps(result)))
    for closable in (envs, *eval_envs.values(), writer):
        closable.close()
    print(f"{run_dir}: {total:,} steps, {args.episodes} episodes each")
    text = f"student {score_text(score)} · teacher {score_text(teacher_score)}"
    print(text + (f" · {fraction:.3f}" if fraction is not None else ""))
    return result


def main() -> None:
    suites = Annotated[MujocoArgs, tyro.conf.subcommand("mujoco")]
    suites |= Annotated[AtariArgs, tyro.conf.subcommand("atari")]
    suites |= Annotated[ProcgenArgs, tyro.conf.subcommand("procgen")]
    try:
        train(tyro.cli(suites, description=__doc__))
    except UserError as error:
        tqdm.write(f"{Path(__file__).stem}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before there was anything to save
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
