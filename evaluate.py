"""Score checkpoints of any script by the paper's protocol, and film them.

    python evaluate.py teachers/Hopper-v4.safetensors
    python evaluate.py runs/*/agent.safetensors --episodes 20
    python evaluate.py teachers/Hopper-v4.safetensors --episodes 1 --video videos

A score is the mean return of whole episodes, with raw rewards; each environment plays a fixed
number of them. Actions are deterministic on MuJoCo and Atari, and sampled on Procgen (Appendix
A.3). An Atari episode is a whole game with all its lives. Procgen is played on unseen levels unless
--levels says otherwise. With the run's own seed and number of episodes, the final score of that run
is repeated number for number, on the same CPU with the same software and threads. A student of
several tasks (ppd_mujoco_multi.py) is scored in each.
"""

import importlib
import json
import os
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from safetensors import safe_open


class UserError(Exception):
    """A mistake that the user can fix: `main` prints it in one line, without a traceback."""


@dataclass
class Args:
    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional]  # agent.safetensors or run folder
    episodes: int | None = None  # whole episodes of each; default: 50, on Procgen 200 (A.3)
    levels: Literal["unseen", "training"] = "unseen"  # levels of Procgen
    actions: Literal["deterministic", "sampled"] | None = None  # default: by the protocol above
    env_id: str | None = None  # environment to play in, also module:Id; default: the agent's own
    seed: int | None = None  # seed of the run; its score starts from 10,000 above it
    device: Literal["cpu", "cuda"] = "cpu"  # to repeat a score, give the run's own device
    video: str | None = None  # folder for films: one episode of each checkpoint, as mp4


def refuse_empty_values(args) -> None:
    """Raises UserError for an empty text, most often an unset variable of the shell."""
    for name, value in vars(args).items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.strip():
                raise UserError(f"--{name.replace('_', '-')}: the value is empty; give one")


def read_header(path: str | Path) -> dict:
    """The header of a checkpoint, written by a script of this project. Raises UserError."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        if "header" not in metadata:
            raise ValueError("the file has no header")
        header = json.loads(metadata["header"])
        folder = Path(__file__).parent  # your own copy of a script counts, as in ppd_mine.py
        scripts = [*folder.glob("pp[do]_*.py"), *folder.glob("*_distill.py")]
        if header["script"] not in [script.stem for script in scripts]:
            raise ValueError(f"this project has no script {header['script']}.py")
    except Exception as error:  # a file from elsewhere can be wrong in any way
        advice = "import the policy of another library with convert.py"
        raise UserError(f"{path}: not an agent of this project ({error}); {advice}") from error
    return header


def agent_file(path: str | Path) -> Path:
    """The file of an agent, which can also be given as the folder of its run."""
    path = Path(path)
    return path / "agent.safetensors" if path.is_dir() else path


def load(path: str | Path, task: str | None = None):
    """The script that wrote a checkpoint, the agent and its header. Raises UserError.

    `task` is needed for a student of several tasks: the name of the one that is meant.
    """
    path = agent_file(path)
    header = read_header(path)
    script = importlib.import_module(header["script"])
    if "tasks" in header:
        student, header = script.load_multi_agent(path)
        if task is None and len(header["tasks"]) > 1:
            advice = f"give the file of a task, such as {header['tasks'][0]}.safetensors"
            raise UserError(f"{path}: is a student of several tasks; {advice}")
        number = 0 if task is None else header["tasks"].index(task)
        header["env_id"] = header["tasks"][number]
        return script, script.students_of(student)[number], header
    kind = "partial" if "memory" in header else header["suite"]
    load_agent = getattr(script, f"load_{kind}_agent", None)
    if load_agent is None:
        raise UserError(f"{path}: {header['script']}.py has no agents for {kind}")
    return script, *load_agent(path)


# ------------------------------------------------------------------------------- Scores
def make_envs(script, header: dict, levels: str):
    """The environments in which a checkpoint is scored."""
    threads, env_id = os.cpu_count() or 1, header["env_id"]
    if header["suite"] == "atari":
        return script.AtariGames(env_id, 10, threads, header["frame_skip"], life_loss=False)
    if header["suite"] == "procgen":
        return script.ProcgenVectorEnv(SimpleNamespace(**header), 20, threads, levels)
    return script.MujocoVectorEnv(env_id, 10, min(threads, 6))


def check_sizes(agent, envs, header: dict) -> None:
    """Raises UserError if the agent was made for other observations or actions."""
    observed, acted = envs.single_observation_space, envs.single_action_space
    if header["suite"] == "mujoco":
        here = *observed.shape, *acted.shape, acted.dtype.kind == "f"
        agents = len(agent.obs_mean), *agent.action_low.shape, agent.action_low.is_floating_point()
    else:
        here, agents = (int(acted.n),), agent.actor[1].bias.shape
    if here != tuple(agents):
        reason = f"has other observations or actions than the agent's, {here} and {tuple(agents)}"
        raise UserError(f"--env-id {header['env_id']}: {reason}; give one of the same sizes")


def play(script, agent, header: dict, episodes: int, seed: int, levels: str) -> dict:
    """The script's own score, with returns and lengths of the episodes. Raises UserError."""
    with closing(make_envs(script, header, levels)) as envs:
        check_sizes(agent, envs, header)
        if hasattr(agent, "reset"):  # a student with a memory
            envs = script.ForgettingEnvs(envs, agent)
        score = script.evaluate(agent, envs, episodes, seed, header["deterministic"])
    return script.score_games(header["env_id"], score) if header["suite"] == "atari" else score


def confidence_interval(returns: list[float], resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    draws = np.random.default_rng(0).choice(returns, (resamples, len(returns)))
    low, high = np.percentile(draws.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


# ------------------------------------------------------------------------------- Films
def write_video(path: Path, frames, frames_per_second: Fraction | int) -> None:
    """Write RGB frames, each (H, W, 3) and uint8, as H.264 in an mp4."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = None
        for frame in frames:
            frame = frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]  # H.264: even
            if stream is None:
                stream = file.add_stream("libx264", rate=frames_per_second)
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def follow_robot(env) -> None:
    """Use the camera `track` if the robot has one; the default camera stays where it is."""
    import mujoco

    if hasattr(env.unwrapped, "mujoco_renderer"):
        model, kind = env.unwrapped.model, mujoco.mjtObj.mjOBJ_CAMERA
        track = mujoco.mj_name2id(model, kind, "track")
        env.unwrapped.mujoco_renderer.camera_id = track if track >= 0 else None


def frame_rate(metadata: dict) -> Fraction:
    """Frames a second as an environment's metadata say, or 30 if they say nothing."""
    return Fraction(float(metadata.get("render_fps") or 30)).limit_denominator(1000)


def film_mujoco(script, agent, header: dict, seed: int):
    """Frames of one episode, and their number a second. Raises UserError if it cannot draw."""
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # draws without a screen
    env_id = header["env_id"]
    try:
        env = script.make_mujoco_env(env_id, render_mode="rgb_array")
        obs, _ = env.reset(seed=seed)
        follow_robot(env)
        if env.render() is None:
            raise ValueError("its render() gives no picture for rgb_array")
    # Missing graphics libraries and environments without rgb_array raise any of these.
    except (gym.error.Error, ImportError, AttributeError, RuntimeError, TypeError, ValueError) as e:
        advice = "MuJoCo needs libegl1 and libgl1-mesa-dri, or MUJOCO_GL=osmesa and libosmesa6"
        raise UserError(f"--video: {env_id} cannot draw here ({e}); {advice}") from e

    def frames(obs):
        ended = False
        torch.manual_seed(seed)
        if hasattr(agent, "reset"):
            agent.reset()
        while not ended:
            yield env.render()
            action = agent.act(obs[None], header["deterministic"])[0]
            obs, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
        yield env.render()
        env.close()

    return frames(obs), frame_rate(env.metadata)


def film_atari(script, agent, header: dict, seed: int):
    """Frames (210, 160, 3) of one game, one per action, and their number a second.

    The same game is played twice at the same time: small and grey for the agent, and in colour.
    """
    from ale_py.vector_env import AtariVectorEnv

    env_id, skip = header["env_id"], header["frame_skip"]
    games = script.AtariGames(env_id, 1, 1, skip, life_loss=False)
    colour = AtariVectorEnv(
        script.find_rom(env_id), 1, num_threads=1, frameskip=skip,
        max_num_frames_per_episode=108_000, repeat_action_probability=0.0,
        full_action_space=False, noop_max=30, use_fire_reset=True,
        grayscale=False, stack_num=1, img_height=210, img_width=160,
    )  # fmt: skip

    def frames():
        torch.manual_seed(seed)
        obs, _ = games.reset(seed=seed)
        picture, _ = colour.reset(seed=np.array([seed]))
        ended = False
        while not ended:
            yield picture[0, 0]
            actions = agent.act(obs, header["deterministic"])
            obs, _, terminations, truncations, _ = games.step(actions)
            picture, *_ = colour.step(actions)
            ended = terminations[0] or truncations[0]
        yield picture[0, 0]

    return frames(), Fraction(60, skip)


def film_procgen(script, agent, header: dict, seed: int, levels: str):
    """Frames (512, 512, 3) of one episode, and their number a second."""
    args = SimpleNamespace(**header)
    env = script.ProcgenVectorEnv(args, 1, 1, levels, render_mode="rgb_array")

    def frames():
        torch.manual_seed(seed)
        obs, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            yield env.render()[0]
            obs, _, terminations, _, _ = env.step(agent.act(obs, header["deterministic"]))
            ended = terminations[0]  # env shows the next level now

    return frames(), frame_rate(env.metadata)


# ------------------------------------------------------------------------------- Main
def tasks_to_play(path: str | Path, env_id: str | None) -> list[str | None]:
    """The tasks of a student of several, or [None]. Raises UserError if it has no task `env_id`."""
    tasks = read_header(agent_file(path)).get("tasks", [None])
    if len(tasks) == 1 or env_id is None:
        return tasks
    if env_id.split(":")[-1] not in tasks:
        raise UserError(f"--env-id {env_id}: {path} learned {', '.join(tasks)}; give one of these")
    return [env_id.split(":")[-1]]


def load_to_play(path: str | Path, args: Args, task: str | None = None):
    """As `load`, with the header changed by the flags. Raises UserError."""
    script, agent, header = load(path, task)
    agent.to(args.device)
    with suppress(ImportError):  # a copy of this file alone has no folder experiments
        importlib.import_module("experiments.tasks")  # registers the tasks of our own teachers
    if header["suite"] == "mujoco" and args.env_id is None:
        env_id = header["env_id"]  # without the module that registers it: a file must not import
        if env_id not in gym.registry:
            advice = f"give the module that registers it, --env-id your_module:{env_id}"
            raise UserError(f"{path}: Gymnasium has no environment {env_id}; {advice}")
    header["env_id"] = args.env_id or header["env_id"]
    header["seed"] = header["seed"] if args.seed is None else args.seed
    if args.actions is not None:
        header["deterministic"] = args.actions == "deterministic"
    return script, agent, header


def film_checkpoint(path: str, args: Args, task: str | None = None) -> Path:
    """Film one episode; returns the file. Raises UserError."""
    script, agent, header = load_to_play(path, args, task)
    # <folder>__<file>__<environment>.mp4, so that films of several runs have several names
    parts = Path(path).resolve().with_suffix("").parts[-2:]
    parts += (header["env_id"].split(":")[-1].replace("/", "-"),)
    film = {"mujoco": film_mujoco, "atari": film_atari, "procgen": film_procgen}[header["suite"]]
    levels = [args.levels] if header["suite"] == "procgen" else []
    video = Path(args.video) / f"{'__'.join(parts)}.mp4"
    write_video(video, *film(script, agent, header, 10_000 + header["seed"], *levels))
    return video


def score_checkpoint(path: str, args: Args, task: str | None = None) -> list[str]:
    """Play a checkpoint's episodes; returns its row of the table. Raises UserError."""
    script, agent, header = load_to_play(path, args, task)
    suite, env_id = header["suite"], header["env_id"].replace("/", "-")
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if suite == "mujoco" else threads)  # small MLPs are fastest on one
    episodes = args.episodes or (200 if suite == "procgen" else 50)
    try:
        score = play(script, agent, header, episodes, header["seed"], args.levels)
    finally:
        torch.set_num_threads(threads)
    low, high = confidence_interval(score["returns"])
    text, interval = script.score_text(score), f"{low:.1f} to {high:.1f}"
    notes = [f"{episodes}, {np.mean(score['lengths']):.0f} steps"]
    if args.actions is not None:
        notes.append(f"{args.actions} actions")
    if suite == "atari":
        notes.append(f"at least {score['distinct']} distinct")
        if "human_normalized" in score:
            text += f" (human-normalised {score['human_normalized']:.2f})"
    if suite == "procgen":
        notes.append(f"{args.levels} levels")
    network = header.get("size") or " ".join(str(size) for size in header["hidden_sizes"])
    trained_by = header.get("trained_by", header["script"])  # the library of an imported agent
    columns = [env_id, trained_by, network, f"{header['steps']:,}", text]
    return [str(path), *columns, interval if episodes > 1 else "n=1", ", ".join(notes)]


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        refuse_empty_values(args)
        if not args.checkpoints:
            raise UserError("no checkpoint given; give one or more agent.safetensors")
        if args.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU here; use --device cpu")
        if args.episodes is not None and args.episodes < 1:
            raise UserError(f"--episodes {args.episodes}: must be at least 1")
        if args.seed is not None and not 0 <= args.seed <= 2**30:
            raise UserError(f"--seed {args.seed}: must be from 0 to 2**30")
        agents = [(p, t) for p in args.checkpoints for t in tasks_to_play(p, args.env_id)]
        for path, task in agents:  # find mistakes before the first long evaluation
            load_to_play(path, args, task)
        if args.video:
            Path(args.video).mkdir(parents=True, exist_ok=True)
        titles = ["checkpoint", "env", "trained by", "network", "trained steps"]
        titles += ["score ± s.e.", "95 % interval", "episodes"]
        print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
        for path, task in agents:
            print("| " + " | ".join(score_checkpoint(path, args, task)) + " |", flush=True)
        if args.video:
            for path, task in agents:  # after all scores, which a failed film must not cost
                print(f"video: {film_checkpoint(path, args, task)}")
    except Exception as error:
        # Each script has its own UserError. OSError and ImportError explain themselves.
        if type(error).__name__ != "UserError" and not isinstance(error, (OSError, ImportError)):
            raise
        message = " ".join(str(error).split())  # one line
        print(f"evaluate: error: {message}", file=sys.stderr)
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
