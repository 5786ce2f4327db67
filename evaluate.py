"""Score checkpoints of any script by the paper's protocol, and film them.

    python evaluate.py teachers/Hopper-v4.safetensors
    python evaluate.py runs/*/agent.safetensors --episodes 20
    python evaluate.py teachers/Hopper-v4.safetensors --episodes 1 --video videos

Whole episodes, raw returns, a fixed quota of episodes per environment slot; deterministic actions
on MuJoCo and Atari, sampled ones on Procgen (Appendix A.3). An Atari episode is a whole game, all
lives; Procgen is played on unseen levels unless --levels says otherwise. With the default seed and
the run's own number of episodes it repeats the final score of the run that wrote the checkpoint,
number for number, on the same CPU, software and threads.
"""

import importlib
import json
import os
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from safetensors import SafetensorError, safe_open

SETTINGS = {  # what a checkpoint says of its environments, beside their name, and what it may say
    "mujoco": {"seed": range(2**30 + 1)},
    "atari": {"seed": range(2**30 + 1), "frame_skip": range(1, 2**10 + 1)},
    "procgen": {
        "seed": range(2**30 + 1), "distribution_mode": ("easy", "hard"),
        "num_levels": range(1, 2**31), "start_level": range(2**31),
    },
}  # fmt: skip


class UserError(Exception):
    """Something a user can cause and mend: one line on stderr, exit status 2."""


@dataclass
class Args:
    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional]  # one or more agent.safetensors
    episodes: int | None = None  # whole episodes of each; unset: 50, or 200 on Procgen (A.3)
    levels: Literal["unseen", "training"] = "unseen"  # of Procgen
    actions: Literal["likeliest", "sampled"] | None = None  # unset: the protocol's, as above
    env_id: str | None = None  # play in this one, a module:Id too; unset: the file's own
    seed: int | None = None  # of a run, which is scored from 10,000 above it; unset: the file's own
    device: Literal["cpu", "cuda"] = "cpu"  # of networks; to repeat a score take that of the run
    video: str | None = None  # also film one episode of each into this folder, as mp4


def read_header(path: str) -> dict:
    """What a checkpoint says of itself, and the script that wrote it. Raises UserError."""
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["header"])
        folder = Path(__file__).parent  # scripts may be copied: ppd_mine.py
        scripts = [*folder.glob("pp[do]_*.py"), *folder.glob("*_distill.py")]
        if header["script"] not in [path.stem for path in scripts]:
            raise ValueError(f"no script of this project is called {header['script']}")
        if header["suite"] not in SETTINGS:
            raise ValueError(f"its suite is {header['suite']}")
        for name, sound in SETTINGS[header["suite"]].items():
            if type(header[name]) not in (int, str) or header[name] not in sound:
                raise ValueError(f"its {name} is {header[name]}")
    except (OSError, SafetensorError, RecursionError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: no agent of this project and version: {reason}") from error
    return header


def load(path: str):
    """The script that wrote a checkpoint, the agent and the header. Raises its UserError."""
    header = read_header(path)
    script = importlib.import_module(header["script"])
    kind = "partial" if "memory" in header else header["suite"]
    if not hasattr(script, f"load_{kind}_agent"):
        raise UserError(f"{path}: {header['script']}.py has no agents for {kind}")
    return script, *getattr(script, f"load_{kind}_agent")(path)


def confidence_interval(returns: list[float], resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    draws = np.random.default_rng(0).choice(returns, (resamples, len(returns)))
    low, high = np.percentile(draws.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def write_video(path: Path, frames, frames_per_second: Fraction | int) -> None:
    """Write an iterable of RGB frames (H, W, 3), uint8, as H.264 in an mp4."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = None
        for frame in frames:
            frame = frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]  # H.264 wants it even
            if stream is None:
                stream = file.add_stream("libx264", rate=frames_per_second)
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def make_envs(script, header: dict, levels: str):
    """The environments in which a checkpoint of its suite is scored."""
    threads, env_id = os.cpu_count() or 1, header["env_id"]
    if header["suite"] == "atari":
        return script.AtariGames(env_id, 10, threads, header["frame_skip"], life_loss=False)
    if header["suite"] == "procgen":
        return script.ProcgenVectorEnv(SimpleNamespace(**header), 20, threads, levels)
    return script.MujocoVectorEnv(env_id, 10, min(threads, 6))


def check_sizes(agent, envs, header: dict) -> None:
    """Raises UserError where the environment is not one of the sizes that an agent was made for."""
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
    envs = make_envs(script, header, levels)
    check_sizes(agent, envs, header)
    if hasattr(agent, "reset"):  # it has a memory
        envs = script.ForgettingEnvs(envs, agent)
    score = script.evaluate(agent, envs, episodes, seed, header["deterministic"])
    return script.score_games(header["env_id"], score) if header["suite"] == "atari" else score


def follow_robot(env) -> None:
    """Look through the camera `track`, where there is one: the default lets the robot run off."""
    import mujoco

    if hasattr(env.unwrapped, "mujoco_renderer"):
        model, kind = env.unwrapped.model, mujoco.mjtObj.mjOBJ_CAMERA
        track = mujoco.mj_name2id(model, kind, "track")
        env.unwrapped.mujoco_renderer.camera_id = track if track >= 0 else None


def film_mujoco(script, agent, header: dict, seed: int):
    """Frames of one episode, and how many a second. Raises UserError where nothing can be drawn."""
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # drawing without a screen
    env_id = header["env_id"]
    try:
        env = script.make_mujoco_env(env_id, render_mode="rgb_array")
        obs, _ = env.reset(seed=seed)
        follow_robot(env)
        env.render()
    except (gym.error.Error, ImportError, AttributeError, RuntimeError) as error:
        advice = "install libegl1 and libgl1-mesa-dri, or set MUJOCO_GL=osmesa with libosmesa6"
        raise UserError(f"--video: {env_id} cannot draw here ({error}); {advice}") from error

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

    return frames(obs), env.metadata["render_fps"]


def film_atari(script, agent, header: dict, seed: int):
    """Frames (210, 160, 3) of one game, one per action, and how many a second.

    The same game is played twice side by side: small and grey for the agent, in colour for us.
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
    """Frames (512, 512, 3) of one episode, and how many a second."""
    args = SimpleNamespace(**header)
    env = script.ProcgenVectorEnv(args, 1, 1, levels, render_mode="rgb_array")

    def frames():
        torch.manual_seed(seed)
        obs, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            yield env.render()[0]
            obs, _, terminations, _, _ = env.step(agent.act(obs, header["deterministic"]))
            ended = terminations[0]  # what env shows now is the next level

    return frames(), env.metadata["render_fps"]


def load_to_play(path: str, args: Args):
    """As `load`, the header as the flags want it played."""
    script, agent, header = load(path)
    agent.to(args.device)
    header["env_id"] = args.env_id or header["env_id"]
    header["seed"] = header["seed"] if args.seed is None else args.seed
    if args.actions is not None:
        header["deterministic"] = args.actions == "likeliest"
    return script, agent, header


def film_checkpoint(path: str, args: Args) -> Path:
    """Film one episode; returns the file. Raises UserError."""
    script, agent, header = load_to_play(path, args)
    parts = Path(path).resolve().with_suffix("").parts[-2:]  # of its own for each checkpoint
    parts += (header["env_id"].replace("/", "-"),)
    film = {"mujoco": film_mujoco, "atari": film_atari, "procgen": film_procgen}[header["suite"]]
    levels = [args.levels] if header["suite"] == "procgen" else []
    video = Path(args.video) / f"{'__'.join(parts)}.mp4"
    write_video(video, *film(script, agent, header, 10_000 + header["seed"], *levels))
    return video


def score_checkpoint(path: str, args: Args) -> list[str]:
    """Play a checkpoint's episodes; returns its row of the table. Raises UserError."""
    script, agent, header = load_to_play(path, args)
    suite, env_id = header["suite"], header["env_id"].replace("/", "-")
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if suite == "mujoco" else threads)  # more only slow an MLP down
    episodes = args.episodes or (200 if suite == "procgen" else 50)
    score = play(script, agent, header, episodes, header["seed"], args.levels)
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
    columns = [env_id, header["script"], network, f"{header['steps']:,}", text]
    return [path, *columns, interval if episodes > 1 else "n=1", ", ".join(notes)]


def main() -> None:
    if sys.stdout:  # which may be closed
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know ± or σ
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed stream is replaced, not left
        os.set_inheritable(number, True)  # to the next file that is opened
    sys.stderr = sys.stderr or os.fdopen(2, "w")  # tqdm writes to it
    args = tyro.cli(Args, description=__doc__)
    try:
        if not args.checkpoints:
            raise UserError("no checkpoint given; give one or more agent.safetensors")
        if args.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU here; use --device cpu")
        if args.episodes is not None and args.episodes < 1:
            raise UserError(f"--episodes {args.episodes}: must be at least 1")
        if args.seed is not None and not 0 <= args.seed <= 2**30:
            raise UserError(f"--seed {args.seed}: must be from 0 to 2**30")
        for path in args.checkpoints:  # all of them before the first long evaluation
            load(path)
        if args.video:
            Path(args.video).mkdir(parents=True, exist_ok=True)
        titles = ["checkpoint", "env", "script", "network", "trained steps"]
        titles += ["score ± s.e.", "95 % interval", "episodes"]
        print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
        for path in args.checkpoints:
            print("| " + " | ".join(score_checkpoint(path, args)) + " |", flush=True)
        for path in args.checkpoints if args.video else ():  # a film that fails costs no score
            print(f"video: {film_checkpoint(path, args)}")
    except Exception as error:
        known = isinstance(error, (OSError, ImportError, torch.OutOfMemoryError))
        if type(error).__name__ != "UserError" and not known:
            raise  # each script has a UserError of its own
        print(f"evaluate: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("evaluate: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
