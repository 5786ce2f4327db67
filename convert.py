"""Bring a teacher from another library, take a student anywhere; no file's code is ever run.

    python convert.py import model.zip --vecnormalize vecnormalize.pkl \\
        --env-id Hopper-v4 --out hopper.safetensors
    python ppd_mujoco.py --env-id Hopper-v4 --teacher hopper.safetensors --student-size smaller
    python convert.py export runs/<run>/agent.safetensors --out student.onnx

`import` reads PPO and A2C of Stable-Baselines3 (.zip), CleanRL (.cleanrl_model) and rsl_rl (.pt),
weights alone, and writes an agent of this project: the same actions, distributions and values. It
plays some episodes, since a lost normaliser looks like a working file that plays badly. `export`
writes ONNX, normaliser and action bounds inside, and compares it with the agent (docs/convert.md).
D numbers are observed, A acted; a layer is its weight (outputs, inputs) and its bias.
"""

import base64
import importlib
import io
import itertools
import json
import logging
import pickle
import re
import shlex
import sys
import time
import warnings
import zipfile
import zlib
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
from safetensors import SafetensorError, safe_open
from tyro.conf import Positional, subcommand


class UserError(Exception):
    """Something a user can cause and mend: one line on stderr, exit status 2."""


@dataclass
class Import:
    source: Positional[str]  # SB3's .zip, CleanRL's .cleanrl_model or rsl_rl's .pt
    env_id: str  # the environment to play; a version that is gone becomes the next installed one
    out: str  # the agent's file, .safetensors
    vecnormalize: str | None = None  # SB3's pickle of it; or an .npz with mean, var (clip, epsilon)
    activation: Literal["relu", "tanh", "elu"] | None = None  # unset: CleanRL's tanh, rsl_rl's elu
    episodes: int = 10  # to play
    expect: float | None = None  # their mean return, as known; unset: as the file says, if it does
    seed: int = 0  # of the episodes, which start from 10,000 above it


@dataclass
class Export:
    checkpoint: Positional[str]  # an agent.safetensors of any script
    out: str  # the model's file, .onnx


@dataclass
class Teacher:
    """What a file of another library holds."""

    trained_by: str
    image_weights: dict = field(default_factory=dict)  # of an image policy, as `PixelAgent`'s
    actor: list[tuple] = field(default_factory=list)  # layers of an MLP policy
    critic: list[tuple] = field(default_factory=list)  # none: it observes something else
    activation: str = "tanh"
    log_std: torch.Tensor | None = None  # of Gaussian actions (A,); None: discrete ones
    mean: np.ndarray | None = None  # of observations (D,), where the file has a normaliser
    scale: np.ndarray | None = None  # what they are divided by
    clip: float = float(torch.finfo(torch.float32).max)  # of what comes out: none
    steps: int = 0  # of its training; 0: the file does not say
    told: float | None = None  # mean return of its last training episodes


# ------------------------------------------------------------------------------- Reading data
class Inert:
    """Stands for an object of another library, whose code is not run; holds its state."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        self.__dict__.update(state if isinstance(state, dict) else {})


class DataUnpickler(pickle.Unpickler):
    """Numpy arrays and numbers as they are, objects of the libraries inert, nothing else."""

    def find_class(self, module: str, name: str):
        """Raises UserError for what is neither."""
        array_parts = ("_reconstruct", "scalar", "_frombuffer", "ndarray", "dtype")
        numpy_modules = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        numpy_modules += ("numpy.core.numeric", "numpy._core.numeric")
        if module in numpy_modules and name in array_parts:
            return getattr(importlib.import_module(module.replace("_core", "core")), name)
        if (module, name) == ("collections", "deque"):
            return deque
        libraries = ("gym", "gymnasium", "stable_baselines3")
        if module.split(".")[0] in libraries or module.startswith("numpy.random."):
            return type(name, (Inert,), {})
        raise UserError(f"asks for {module}.{name}, which is neither numbers nor VecNormalize's")


def one_line(error: BaseException) -> str:
    """What an error of another library says, in a line that fits."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 160 else text[:157] + "..."


def read_weights(content: bytes, kind: str) -> dict:
    """A torch file as tensors and numbers. Raises UserError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused a line later
            return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds
        asked = re.search(r"GLOBAL ([\w.]+)|Unsupported operand", str(error))
        if asked:
            name = asked[1] or "objects"
            raise UserError(f"{kind} asks for {name}, which no weights need; not loaded") from error
        raise UserError(f"{kind} is no torch file of weights, or cut short") from error


def check_folder(path: str) -> None:
    """Before any work: raises UserError where the file could not be written."""
    if Path(path).is_dir():
        raise UserError(f"--out {path}: a folder; name a file in it")
    if not Path(path).parent.is_dir():
        raise UserError(f"--out {path}: its folder does not exist; make it first")


def layers(weights: dict, prefix: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The linear layers `prefix`.0, .2, … in order; between them are activations."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight")
    numbers = sorted(int(match[1]) for match in map(pattern.fullmatch, weights) if match)
    found = [(weights[f"{prefix}.{n}.weight"], weights[f"{prefix}.{n}.bias"]) for n in numbers]
    if numbers != list(range(0, 2 * len(numbers), 2)) or any(w.ndim != 2 for w, _ in found):
        raise UserError(f"{prefix} is no plain MLP: it has layers {numbers}; nothing reads that")
    return found


def nature_cnn(weights: dict, actor: list[str], critic: list[str]) -> dict[str, torch.Tensor]:
    """Two networks as `PixelAgent` names them; each: 3 convolutions, a linear layer, a head."""
    ours = ("0.0.0", "0.0.2", "0.0.4", "0.1", "1")
    named = {f"actor.{k}": name for k, name in zip(ours, actor, strict=True)}
    named |= {f"critic.{k}": name for k, name in zip(ours, critic, strict=True)}
    pairs = itertools.product(named.items(), ("weight", "bias"))
    return {f"{our}.{kind}": weights[f"{their}.{kind}"] for (our, their), kind in pairs}


# ------------------------------------------------------------------------------- Other libraries
def read_teacher(args: Import) -> Teacher:
    """A teacher from a file that is known by its content. Raises UserError."""
    content = Path(args.source).read_bytes()
    if zipfile.is_zipfile(io.BytesIO(content)):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            if "data" in names and "policy.pth" in names:
                return read_sb3(archive, args)
            if any("/code/" in name for name in names):
                raise UserError("TorchScript, which is code; give the checkpoint that it came from")
            if not any(name.endswith("/data.pkl") for name in names):
                raise UserError("a zip without data and policy.pth: SB3's model.save writes both")
    weights = read_weights(content, "neither SB3's zip nor weights: it")
    if {"model_state_dict", "actor_state_dict"} & weights.keys():
        return read_rsl_rl(weights, args.activation or "elu")
    return read_cleanrl(weights, args.activation or "tanh")


def read_sb3(archive: zipfile.ZipFile, args: Import) -> Teacher:
    """PPO or A2C of Stable-Baselines3, any version. Raises UserError."""
    try:
        data = json.loads(archive.read("data"))
        weights = read_weights(archive.read("policy.pth"), "its policy.pth")
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"SB3's zip is damaged: {one_line(error)}") from error
    options, kind = data["policy_kwargs"], data["action_space"][":type:"]
    module = data["policy_class"]["__module__"]  # all three: what SB3 printed beside its pickles
    if not re.fullmatch(r"stable_baselines3\.(common|ppo|a2c)\.policies", module):
        raise UserError(f"a policy of {module}; PPO's and A2C's of stable_baselines3 are read")
    if any(name.startswith("features_extractor.extractors") for name in weights):
        raise UserError("a policy for Dict observations; MlpPolicy and CnnPolicy are read")
    if data["use_sde"]:
        raise UserError("gSDE: its deviation depends on the state, an agent's here does not")
    if not re.search(r"box\.Box'|discrete\.Discrete'", kind):
        raise UserError(f"its actions are {kind}; Box and Discrete are read")
    for name, wanted in (("squash_output", False), ("normalize_images", True)):
        if str(options.get(name, wanted)) != str(wanted):
            raise UserError(f"trained with {name}={options[name]}, which no agent here has")
    if args.activation:
        raise UserError("--activation: an SB3 file names its own; leave it out")
    if data.get("_last_original_obs") and not args.vecnormalize:
        print(
            "WARNING: it was trained with VecNormalize: give --vecnormalize what its save() wrote"
        )

    teacher = Teacher("stable-baselines3", steps=data["num_timesteps"])
    with suppress(Exception):  # only to be shown; an older format of it is no reason to refuse
        infos = base64.b64decode(data["ep_info_buffer"][":serialized:"])
        teacher.told = fmean(i["r"] for i in DataUnpickler(io.BytesIO(infos)).load())
    if any(".cnn." in name for name in weights):
        if any(name.startswith("mlp_extractor") for name in weights):
            raise UserError("an image policy with layers behind its CNN; give one without net_arch")
        networks = []
        for network, head in (("pi", "action_net"), ("vf", "value_net")):
            own = f"{network}_features_extractor"
            cnn = own if f"{own}.cnn.0.weight" in weights else "features_extractor"
            networks.append([*(f"{cnn}.cnn.{n}" for n in (0, 2, 4)), f"{cnn}.linear.0", head])
        teacher.image_weights = nature_cnn(weights, *networks)
        return teacher
    if any("features_extractor" in name for name in weights):
        raise UserError("a features extractor of its own; MlpPolicy and CnnPolicy are read")
    found = re.search(r"(\w+)'>$", str(options.get("activation_fn", "<class 'Tanh'>")))
    teacher.activation = found[1].lower()
    shared = layers(weights, "mlp_extractor.shared_net")  # of old versions: both begin with it
    heads = [(weights[f"{h}_net.weight"], weights[f"{h}_net.bias"]) for h in ("action", "value")]
    teacher.actor = [*shared, *layers(weights, "mlp_extractor.policy_net"), heads[0]]
    teacher.critic = [*shared, *layers(weights, "mlp_extractor.value_net"), heads[1]]
    teacher.log_std = weights.get("log_std")
    return teacher


def read_cleanrl(weights: dict, activation: str) -> Teacher:
    """A state_dict of CleanRL's ppo.py, ppo_continuous_action.py or ppo_atari.py."""
    if "network.0.weight" in weights and "actor.weight" in weights:
        cnn = ["network.0", "network.2", "network.4", "network.7"]
        return Teacher("cleanrl", nature_cnn(weights, [*cnn, "actor"], [*cnn, "critic"]))
    actor = layers(weights, "actor_mean") or layers(weights, "actor")
    if not actor or any(name.startswith("lstm") for name in weights):
        raise UserError("a torch file, but neither CleanRL's PPO nor rsl_rl's")
    critic, log_std = layers(weights, "critic"), weights.get("actor_logstd")
    log_std = None if log_std is None else log_std.flatten()
    return Teacher("cleanrl", {}, actor, critic, activation, log_std)


def read_rsl_rl(content: dict, activation: str) -> Teacher:
    """A checkpoint of rsl_rl's PPO, of its versions 1 to 5. Raises UserError."""
    if "actor_state_dict" in content:  # from version 4 on an actor and a critic
        parts = {"actor": content["actor_state_dict"], "critic": content["critic_state_dict"]}
        weights = {f"{p}.{name}": v for p, part in parts.items() for name, v in part.items()}
        actor, critic = "actor.mlp", "critic.mlp"
        normalizers = {"actor": "actor.obs_normalizer", "critic": "critic.obs_normalizer"}
    else:
        weights, actor, critic = content["model_state_dict"], "actor", "critic"
        normalizers = {"actor": "actor_obs_normalizer", "critic": "critic_obs_normalizer"}
        keys = {"obs_norm": "actor", "critic_obs_norm": "critic", "privileged_obs_norm": "critic"}
        for key, network in keys.items():  # up to version 2 beside the weights
            beside = content.get(f"{key}_state_dict", {})
            weights |= {f"{normalizers[network]}.{name}": v for name, v in beside.items()}
    if any(re.search(r"memory|rnn\.|cnns?\.", name) for name in weights):
        raise UserError("a recurrent or image policy of rsl_rl; its MLPs are read")
    # std, log_std, actor.std, actor.log_std, actor.distribution.(std|log_std)_param
    found = {n: v for n, v in weights.items() if re.search(r"(^|\.)(log_)?std(_param)?$", n)}
    if len(found) != 1:
        raise UserError("no deviation that is the same in each state; an agent here has one")
    [(name, std)] = found.items()
    log_std = std if "log_std" in name else std.clamp(min=1e-6).log()
    actor, critic = layers(weights, actor), layers(weights, critic)
    teacher = Teacher("rsl_rl", {}, actor, critic, activation, log_std)

    observed, critic_observes = (len(network[0][0].T) for network in (actor, critic))
    statistics = {}
    for network, prefix in normalizers.items():  # divides by the deviation + 0.01, clips nothing
        if f"{prefix}._mean" in weights:
            mean, std = (weights[f"{prefix}.{k}"].flatten().double() for k in ("_mean", "_std"))
            statistics[network] = mean, std + 0.01
    if "actor" in statistics:
        teacher.mean, teacher.scale = (value.numpy() for value in statistics["actor"])
    if critic_observes != observed:
        print(f"its critic observes {critic_observes} numbers, its policy {observed}: left out")
        teacher.critic = []
    elif statistics:  # an agent has one normaliser: the critic's goes into its first layer
        identity = torch.zeros(observed).double(), torch.ones(observed).double()
        mean, scale = statistics.get("actor", identity)
        critics_mean, critics_scale = statistics.get("critic", identity)
        weight, bias = (value.double() for value in critic[0])
        bias = bias + weight @ ((mean - critics_mean) / critics_scale)
        critic[0] = (weight * (scale / critics_scale)).float(), bias.float()
    return teacher


def read_normalizer(path: str, teacher: Teacher) -> None:
    """Give a teacher the statistics of SB3's VecNormalize, or of an .npz. Raises UserError."""
    if teacher.image_weights or teacher.mean is not None:
        raise UserError("--vecnormalize: it scales its observations by itself; leave this out")
    content = Path(path).read_bytes()
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            arrays = np.load(io.BytesIO(content), allow_pickle=False)
            found = {"clip": 10.0, "epsilon": 1e-8, **arrays}
        else:
            saved = DataUnpickler(io.BytesIO(content)).load()
            if not saved.norm_obs:
                return
            found = {"mean": saved.obs_rms.mean, "var": saved.obs_rms.var}
            found |= {"clip": saved.clip_obs, "epsilon": saved.epsilon}
        teacher.mean = np.asarray(found["mean"], np.float64)
        var = np.asarray(found["var"], np.float64) + float(found["epsilon"])
        if not (var > 0).all():
            raise ValueError("a variance is NaN or below 0")
        teacher.scale = np.sqrt(var)
        teacher.clip = min(float(found["clip"]), teacher.clip)
    except Exception as error:  # a pickle of anything raises anything
        raise UserError(f"{path}: no VecNormalize of SB3's: {one_line(error)}") from error


# ------------------------------------------------------------------------------- Import
def find_env_id(env_id: str, make_env) -> tuple[str, gym.Env]:
    """An id that can be played, and its environment: the version asked for, or the next one."""
    name, _, version = env_id.rpartition("-v")
    versions = [spec.version or 0 for spec in gym.registry.values() if spec.name == name]
    newer = sorted(v for v in versions if version.isdigit() and v > int(version))
    for found in (env_id, *(f"{name}-v{v}" for v in newer)):
        try:
            env = make_env(found)
        except Exception as error:  # the script's own UserError
            failure = error
        else:
            if found != env_id:
                print(f"{env_id} is not installed: {found} in its place")
            return found, env
    raise failure


def build_mujoco(script, teacher: Teacher, env_id: str):
    """The agent, its header and the environments to play. Raises UserError for other sizes."""
    env_id, env = find_env_id(env_id, script.make_mujoco_env)
    box, obs_dim = env.action_space, env.observation_space.shape[0]
    observed, acted = teacher.actor[0][0].shape[1], len(teacher.actor[-1][1])
    sizes = f"observes {observed} numbers, and {env_id} has {obs_dim}"
    if observed == obs_dim + 1:
        raise UserError(f"{sizes}: one more, as of a time feature; train it without")
    if observed != obs_dim and observed % obs_dim == 0:
        raise UserError(f"{sizes}: {observed // obs_dim} stacked observations; train it on one")
    if observed != obs_dim:
        raise UserError(f"{sizes}; give the id that it was trained on")
    kind = "discrete" if box.dtype == np.int8 else "continuous"
    if (teacher.log_std is None) != (kind == "discrete") or acted != len(box.low):
        theirs = "discrete" if teacher.log_std is None else "continuous"
        found = f"{len(box.low)} {kind} ones"
        raise UserError(f"has {acted} {theirs} actions, and {env_id} {found}; give its own id")
    if teacher.activation not in ("relu", "tanh", "elu"):
        raise UserError(f"its activation is {teacher.activation}; relu, tanh and elu are read")

    actor, critic = [[len(bias) for _, bias in n[:-1]] for n in (teacher.actor, teacher.critic)]
    header = {"suite": "mujoco", "script": "ppo_teacher_mujoco", "hidden_sizes": actor}
    header |= {"activation": teacher.activation, "critic_sizes": critic}
    agent = script.MujocoAgent(box.low, box.high, obs_dim, actor, teacher.activation, critic)
    if not teacher.critic:
        agent.critic = None
    for network, theirs in ((agent.actor, teacher.actor), (agent.critic, teacher.critic)):
        for layer, (weight, bias) in zip((network or [])[::2], theirs, strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias})
    if teacher.log_std is not None:
        agent.load_state_dict({"log_std": teacher.log_std}, strict=False)
    agent.obs_clip.fill_(teacher.clip)
    if teacher.mean is not None:
        if teacher.mean.shape != (obs_dim,):
            raise UserError(f"--vecnormalize: statistics of {teacher.mean.shape}, not ({obs_dim},)")
        agent.obs_mean.copy_(torch.from_numpy(teacher.mean))
        # An agent divides by √(variance + 1e-8), others by something else.
        agent.obs_var.copy_(torch.from_numpy(teacher.scale**2 - 1e-8).clamp(min=0))
    envs = script.MujocoVectorEnv(env_id, 10, torch.get_num_threads())
    return agent, header | {"env_id": env_id.split(":")[-1]}, envs  # no module to import


def build_atari(script, teacher: Teacher, env_id: str):
    """As `build_mujoco`."""
    if not env_id.endswith("NoFrameskip-v4"):
        raise UserError(
            f"an image policy, and {env_id} no Atari id as PongNoFrameskip-v4; give one"
        )
    envs = script.AtariGames(env_id, 10, torch.get_num_threads(), 4, life_loss=False)
    actions, wanted = len(teacher.image_weights["actor.1.bias"]), int(envs.single_action_space.n)
    if actions != wanted:
        raise UserError(f"has {actions} actions, and {env_id} {wanted}; give its own id")
    agent = script.PixelAgent((4, 84, 84), actions, "nature")
    agent.load_state_dict(teacher.image_weights)
    header = {"suite": "atari", "script": "ppo_teacher_atari", "env_id": env_id, "frame_skip": 4}
    return agent, header | {"size": "nature"}, envs


def build_agent(args: Import):
    """The script that an agent belongs to, the agent, its header, environments, what was told."""
    try:
        teacher = read_teacher(args)
        if args.vecnormalize:
            read_normalizer(args.vecnormalize, teacher)
        suite, build = ("atari", build_atari) if teacher.image_weights else ("mujoco", build_mujoco)
        script = importlib.import_module(f"ppd_{suite}")
        agent, header, envs = build(script, teacher, args.env_id)
    except (LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"{args.source}: does not read as a policy: {one_line(error)}") from error
    except UserError as error:
        raise UserError(f"{args.source}: {error}") from error
    tensors = {k: v for k, v in agent.state_dict().items() if not k.startswith("action_")}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(f"{args.source}: NaN or infinite weights or statistics")
    header |= {"format": "ppd-agent-2", "trained_by": teacher.trained_by, "seed": args.seed}
    header |= {"steps": teacher.steps, "deterministic": True}
    return script, agent.eval().requires_grad_(False), header, envs, teacher.told


def import_teacher(args: Import) -> None:
    """Read a teacher, play it and write it. Raises UserError."""
    if args.episodes < 1 or not 0 <= args.seed <= 2**30:
        raise UserError("--episodes: give at least 1; --seed: 0 to 2**30")
    check_folder(args.out)
    script, agent, header, envs, told = build_agent(args)
    env_id, parameters = header["env_id"], sum(p.numel() for p in agent.actor.parameters())
    print(f"{args.source}: {header['trained_by']}, a policy of {parameters:,} parameters")
    score = script.evaluate(agent, envs, args.episodes, args.seed)
    expected, whose = told, "its last training episodes"
    if args.expect is not None:
        expected, whose = args.expect, "expected"
    beside = "" if expected is None else f"; {whose}: {expected:.1f}"
    print(f"{env_id}: {script.score_text(score)} over {args.episodes} episodes{beside}")
    if expected is not None and score["mean"] < expected - 0.2 * abs(expected):
        causes = (
            "a normaliser that was left out (--vecnormalize), another activation or environment"
        )
        print(f"WARNING: plays worse than expected: {causes}?")
    header["score"] = {k: score[k] for k in ("mean", "standard_error", "episodes")}
    script.write_file(Path(args.out), script.pack_agent(agent.state_dict(), header))
    module, colon, _ = args.env_id.rpartition(":")  # that registers the environment
    use = f"python ppd_{header['suite']}.py --env-id {module}{colon}{env_id}"
    use += f" --teacher {shlex.quote(args.out)}"
    print(f"{args.out}: written; distil it with: {use}")


# ------------------------------------------------------------------------------- Export
class Model(nn.Module):
    """An agent as one function of raw observations: what it does, and its distribution.

    One with an LSTM takes its state as well, and gives the next in the distribution's place.
    """

    def __init__(self, agent):
        super().__init__()
        self.agent = agent
        low = getattr(agent, "action_low", None)  # of a Box; without, or with integers: discrete
        self.discrete = low is None or not low.is_floating_point()
        self.inputs, lstm = ["obs"], getattr(agent.actor, "lstm", None)
        self.names = ["action", "logits"] if self.discrete else ["action", "mean", "std"]
        if lstm is not None:  # names and shapes are rsl_rl's
            self.inputs, self.names = ["obs", "h_in", "c_in"], ["actions", "h_out", "c_out"]
        self.width = lstm and lstm.hidden_size

    def start(self, batch: int) -> list[torch.Tensor]:
        """The state in which episodes begin."""
        return [torch.zeros(1, batch, self.width) for _ in self.inputs[1:]]

    def forward(self, obs: torch.Tensor, h_in=None, c_in=None) -> tuple[torch.Tensor, ...]:
        """(B, …) to the likeliest action, (B,) or (B, A), and logits, or mean and std, (B, A).

        With an LSTM (B, …), h and c (1, B, H) to action, h and c.
        """
        agent, obs, state = self.agent, self.agent.normalize(obs), None
        if hasattr(agent, "reset"):  # of ppd_mujoco_lstm.py, with an LSTM or without
            state = None if h_in is None else torch.cat([h_in, c_in])
            outputs, state = agent.actor(obs, state)
        else:
            outputs = agent.actor(obs)
        if self.discrete:
            action, distribution = outputs.argmax(-1), [outputs]
        else:
            action = outputs.clamp(agent.action_low, agent.action_high)
            distribution = [outputs, agent.log_std.exp().expand_as(outputs)]
        return action, *(distribution if state is None else state.split(1))


def read_header(path: str) -> dict:
    """What a checkpoint says of itself, and the script that wrote it. Raises UserError."""
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["header"])
        folder = Path(__file__).parent  # scripts may be copied: ppd_mine.py
        scripts = [*folder.glob("pp[do]_*.py"), *folder.glob("*_distill.py")]
        if header["script"] not in [path.stem for path in scripts]:
            raise ValueError(f"no script of this project is called {header['script']}")
        if header["suite"] not in ("mujoco", "atari", "procgen"):
            raise ValueError(f"its suite is {header['suite']}")
    except (OSError, SafetensorError, RecursionError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: no agent of this project and version: {reason}") from error
    return header


def sample_observations(agent, header: dict, count: int) -> torch.Tensor:
    """Raw observations as the normaliser knows them, or frames of noise."""
    torch.manual_seed(0)
    if header["suite"] == "mujoco":
        spread = agent.obs_var.sqrt() * torch.randn(count, len(agent.obs_mean))
        return (agent.obs_mean + spread).float()
    shape = (4, 84, 84) if header["suite"] == "atari" else (3, 64, 64)
    return torch.randint(256, (count, *shape), dtype=torch.uint8)


def play(call, obs, state) -> list[np.ndarray]:
    """What a model answers to some batches of observations, one after another: its outputs."""
    answers = []
    for batch in obs:
        answers.append(call(batch, *state))
        state = answers[-1][1:] if state else []
    return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def microseconds(call, obs, state) -> float:
    """Median time of a call with one observation."""
    times = []
    for row in obs[:300]:
        start = time.perf_counter()
        call(row[None], *state)
        times.append(time.perf_counter() - start)
    return 1e6 * float(np.median(times))


def export_student(args: Export) -> None:
    """Write a checkpoint as ONNX, compare and time it. Raises UserError."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        advice = "python -m pip install -r requirements-convert.txt"
        raise UserError(f"export: {error.name} is not installed: {advice}") from error
    check_folder(args.out)
    header = read_header(args.checkpoint)
    script, suite = importlib.import_module(header["script"]), header["suite"]
    kind = "partial" if "memory" in header else suite
    if not hasattr(script, f"load_{kind}_agent"):
        raise UserError(f"{args.checkpoint}: {header['script']}.py has no agents for {kind}")
    agent, _ = getattr(script, f"load_{kind}_agent")(args.checkpoint)
    agent.float()  # the statistics too, which are rounded before they are used
    model = Model(agent).eval()
    torch.set_num_threads(1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # misses torchvision, which is not used
    obs = sample_observations(agent, header, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = [{0: "batch"}, *({1: "batch"} for _ in model.start(2))]
        program = torch.onnx.export(
            model, (obs[:2], *model.start(2)), dynamo=True, opset_version=18, verbose=False,
            input_names=model.inputs, output_names=model.names, dynamic_shapes=sizes,
        )  # fmt: skip
    proto = program.model_proto
    for name, value in header.items():
        proto.metadata_props.add(key=name, value=json.dumps(value))
    content = proto.SerializeToString()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    run = lambda *arrays: session.run(None, dict(zip(model.inputs, arrays, strict=True)))
    arrays = lambda tensors: [tensor.numpy() for tensor in tensors]
    batches = obs.unflatten(0, (10, 100))
    with torch.no_grad():
        ours = play(model, batches, model.start(100))
        theirs = play(run, batches.numpy(), arrays(model.start(100)))
        times = [microseconds(run, obs.numpy(), arrays(model.start(1)))]
        times.append(microseconds(model, obs, model.start(1)))
    checks = []
    for name, a, b in zip(model.names, ours, theirs, strict=True):
        difference, size = abs(a - b).max(), abs(a).max()
        checks.append(f"{name} {difference:.1e} (of up to {size:.3g})")
        # Of two logits that are all but equal either may be the greater one.
        may_differ = model.discrete and name in ("action", "actions")
        if not (may_differ or difference <= 1e-5 * max(size, 1)):
            raise UserError(f"{args.checkpoint}: ONNX differs: {checks[-1]}; nothing is written")
    script.write_file(Path(args.out), content)
    names = f"{', '.join(model.inputs)} to {', '.join(model.names)}"
    print(f"{args.out}: {len(content) / 1e3:,.0f} kB; {obs.dtype} {names}")
    print(f"largest difference from the agent, {len(obs):,} observations: {', '.join(checks)}")
    print(f"one observation: onnxruntime {times[0]:.0f} µs, torch {times[1]:.0f} µs (one thread)")


def main() -> None:
    if sys.stdout:  # which may be closed
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know ± or µ
    commands = Annotated[Import, subcommand("import")] | Annotated[Export, subcommand("export")]
    args = tyro.cli(commands, description=__doc__)
    try:
        (import_teacher if isinstance(args, Import) else export_student)(args)
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__name__ != "UserError":  # scripts' own
            raise
        print(f"convert: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("convert: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
