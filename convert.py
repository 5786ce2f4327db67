"""Import a teacher from another library, export a student to ONNX. No code of a file is ever run.

    python convert.py import model.zip --vecnormalize vecnormalize.pkl \\
        --env-id Hopper-v4 --out hopper.safetensors
    python ppd_mujoco.py --env-id Hopper-v4 --teacher hopper.safetensors --student-size smaller
    python convert.py export runs/<run>/agent.safetensors --out student.onnx

`import` reads policies of Stable-Baselines3 (.zip; PPO and A2C), CleanRL (.cleanrl_model) and
rsl_rl (.pt), and writes an agent of this project with the same actions, distributions and values.
It also plays some episodes, because a policy without its observation statistics looks like a
working file, but plays badly. `export` writes ONNX, with observation statistics and action bounds
inside, and compares it with the agent (docs/bring_your_teacher.md).
D numbers are observed, A acted. A layer is its weight (outputs, inputs) and its bias.
"""

import base64
import importlib
import io
import itertools
import json
import logging
import pickle
import pickletools
import re
import shlex
import sys
import time
import warnings
import zipfile
import zlib
from collections import deque
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
from tyro.conf import Positional, subcommand

from evaluate import UserError, load, refuse_empty_values


@dataclass
class Import:
    source: Positional[str]  # SB3's .zip, CleanRL's .cleanrl_model or rsl_rl's .pt
    env_id: str  # environment to play in, also module:Id; a removed version is played as the next
    out: str  # file to write, .safetensors
    vecnormalize: str | None = None  # file of VecNormalize.save(), or an .npz with mean and var
    activation: Literal["relu", "tanh", "elu"] | None = None  # default: CleanRL tanh, rsl_rl elu
    episodes: int = 10  # episodes to play
    expect: float | None = None  # their expected return; default: that of SB3's last training
    seed: int = 0  # the episodes start from 10,000 above it


@dataclass
class Export:
    checkpoint: Positional[str]  # an agent.safetensors of any script
    out: str  # file to write, .onnx


@dataclass
class Teacher:
    """The policy in a file of another library."""

    trained_by: str
    image_weights: dict = field(default_factory=dict)  # of an image policy, named as `PixelAgent`
    actor: list[tuple] = field(default_factory=list)  # layers of an MLP policy
    critic: list[tuple] = field(default_factory=list)  # empty: it observes something else
    activation: str = "tanh"
    log_std: torch.Tensor | None = None  # of Gaussian actions (A,); None: discrete actions
    mean: np.ndarray | None = None  # observation statistics (D,), if the file has them
    scale: np.ndarray | None = None  # what centred observations are divided by
    clip: float = float(torch.finfo(torch.float32).max)  # limit of normalised observations
    missing: str = ""  # warning that its observation statistics are missing
    steps: int = 0  # of its training; 0: unknown
    last_return: float | None = None  # mean return of the last training episodes


# ------------------------------------------------------------------------------- Reading pickles
class Record:
    """Stands for any object in a pickle: what it was made from, and its state."""

    state: object = None

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state


class RecordUnpickler(pickle.Unpickler):
    """Reads data without importing or calling anything that a file names.

    NumPy's own functions are not called either: its `dtype` takes flags from the file, with which
    an array of numbers becomes an array of pointers.
    """

    def find_class(self, module: str, name: str):
        """A class of records, or deque. Raises UserError for names that no statistics need."""
        array_parts = ("_reconstruct", "scalar", "_frombuffer", "ndarray", "dtype")
        numpy_modules = ("numpy", "numpy.core.multiarray", "numpy.core.numeric")
        is_array = module.replace("_core", "core") in numpy_modules and name in array_parts
        libraries = ("gym", "gymnasium", "stable_baselines3")
        if (module, name) == ("collections", "deque"):
            return deque
        if is_array or module.startswith("numpy.random.") or module.split(".")[0] in libraries:
            return type(name, (Record,), {})
        raise UserError(f"asks for {module}.{name}, which is neither numbers nor VecNormalize's")


def check_pickle(file) -> None:
    """Raises UserError for a pickle that can crash the process, before anything unpickles it.

    Deeply nested tuples overflow the stack when they are hashed; large memo indices fill memory.
    """
    tuples = 0
    for opcode, value, _ in pickletools.genops(file):
        tuples += opcode.name.startswith("TUPLE")
        if tuples > 20_000 or "PUT" in opcode.name and value > 1_000_000:
            raise UserError("not a policy: its pickle is nested too deep")


def read_pickle(content: bytes):
    """What a pickle describes: plain data, and a Record for each object. Raises UserError."""
    check_pickle(io.BytesIO(content))
    return RecordUnpickler(io.BytesIO(content)).load()


def to_array(value) -> np.ndarray:
    """An array or a number from its record. Only plain numbers: bool, int, unsigned int, float."""
    kind = type(value).__name__
    if kind == "_reconstruct":
        _, shape, dtype, fortran_order, content = value.state
    elif kind == "_frombuffer":
        content, dtype, shape, order = value.args
        fortran_order = order == "F"
    elif kind == "scalar":
        (dtype, content), shape, fortran_order = value.args, (), False
    else:
        return np.asarray(float(value))
    name, byte_order = dtype.args[0], dtype.state[1]
    if not re.fullmatch("b1|[iu][1248]|f[248]", name):
        raise ValueError(f"an array of {name}, not of plain numbers")
    plain_dtype = np.dtype(name).newbyteorder(byte_order)
    order = "F" if fortran_order else "C"
    return np.frombuffer(content, plain_dtype).reshape(shape, order=order)


# ------------------------------------------------------------------------------- Reading weights
def read_weights(content: bytes) -> dict:
    """Tensors by name from a torch file. Raises UserError for anything else."""
    try:
        check_torch_file(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles, which are refused below
            weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch.load raises many types
        asked = re.search(r"GLOBAL ([\w.]+)|Unsupported operand", str(error))
        if asked is None:
            raise UserError("not SB3's zip, and not a whole torch file of weights") from error
        name = asked[1] or "objects"
        if name.startswith(("gym.", "gymnasium.")):
            advice = "SB3's policy.save() wrote it; give the zip of model.save() instead"
        else:
            advice = "not loaded, as it could run code; save the policy's state_dict() alone"
        raise UserError(f"its pickle asks for {name}: {advice}") from error
    if isinstance(weights, tuple | list):
        raise UserError("several networks, as CleanRL's DDPG, TD3 and SAC save; PPO's is read")
    if not isinstance(weights, dict):
        raise UserError(f"a {type(weights).__name__}, not weights by name; save a state_dict()")
    return strip_wrappers(weights)


def check_torch_file(content: bytes) -> None:
    """Raises UserError as `check_pickle`, for each pickle in a torch file."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                if member.filename.endswith("data.pkl"):
                    check_pickle(io.BytesIO(archive.read(member)))
    else:  # before torch 1.6: five pickles, then numbers
        file = io.BytesIO(content)
        for _ in range(5):
            if file.tell() < len(content):
                check_pickle(file)


def strip_wrappers(weights: dict) -> dict:
    """Weights by name without the parts that torch.compile and DataParallel add to names."""
    plain = {}
    for name, value in weights.items():
        parts = [part for part in str(name).split(".") if part not in ("_orig_mod", "module")]
        plain[".".join(parts)] = strip_wrappers(value) if isinstance(value, dict) else value
    return plain


def layers(weights: dict, prefix: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The linear layers `prefix`.0, `prefix`.2, …; there is an activation between two of them."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight")
    numbers = sorted(int(match[1]) for match in map(pattern.fullmatch, weights) if match)
    found = [(weights[f"{prefix}.{n}.weight"], weights[f"{prefix}.{n}.bias"]) for n in numbers]
    if numbers != list(range(0, 2 * len(numbers), 2)) or any(w.ndim != 2 for w, _ in found):
        raise UserError(f"{prefix} is not a plain MLP: it has layers {numbers}; only MLPs are read")
    return found


def nature_cnn(weights: dict, actor: list[str], critic: list[str]) -> dict[str, torch.Tensor]:
    """Weights of two networks, each 3 convolutions, a linear layer, a head, as in `PixelAgent`."""
    ours = ("0.0.0", "0.0.2", "0.0.4", "0.1", "1")
    names = {f"actor.{our}": their for our, their in zip(ours, actor, strict=True)}
    names |= {f"critic.{our}": their for our, their in zip(ours, critic, strict=True)}
    pairs = itertools.product(names.items(), ("weight", "bias"))
    return {f"{our}.{kind}": weights[f"{their}.{kind}"] for (our, their), kind in pairs}


# ------------------------------------------------------------------------------- Other libraries
def read_teacher(args: Import) -> Teacher:
    """The policy in a file, which is known by its content. Raises UserError."""
    content = Path(args.source).read_bytes()
    if content[8:9] == b"{":  # safetensors
        raise UserError("a safetensors file; an agent of this project is given as --teacher")
    if content[:1] == b"\x80" and b"VecNormalize" in content[:200]:
        raise UserError("VecNormalize's statistics, not a policy; give them as --vecnormalize")
    if zipfile.is_zipfile(io.BytesIO(content)):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            if "data" in names and "policy.pth" in names:
                return read_sb3(archive, args)
            if any("/code/" in name for name in names):
                raise UserError("TorchScript, which is code; give the checkpoint it was made from")
            if any(name.endswith(".npy") for name in names):
                raise UserError("NumPy arrays, not a policy; give statistics as --vecnormalize")
            if not any(name.endswith("/data.pkl") for name in names):
                raise UserError("a zip without data and policy.pth; SB3's model.save() writes both")
    weights = read_weights(content)
    if "action_net.weight" in weights:
        raise UserError("the weights of SB3's policy alone; give the zip of model.save() instead")
    names = [*weights, *weights.get("model_state_dict", {})]
    if any(name.startswith(("student_state_dict", "student.")) for name in names):
        raise UserError("a student of rsl_rl's distillation; give a checkpoint of rsl_rl's PPO")
    if {"model_state_dict", "actor_state_dict"} & weights.keys():
        return read_rsl_rl(weights, args.activation or "elu")
    return read_cleanrl(weights, args)


def read_sb3(archive: zipfile.ZipFile, args: Import) -> Teacher:
    """PPO or A2C of Stable-Baselines3, any version. Raises UserError."""
    try:
        data = json.loads(archive.read("data"))
        policy = archive.read("policy.pth")
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"SB3's zip is damaged: {error}") from error
    weights = read_weights(policy)
    # SB3 writes a pickle of each of these, and next to it a readable text, which is read here.
    options, kind = data["policy_kwargs"], data["action_space"][":type:"]
    module = data["policy_class"]["__module__"]
    if not re.fullmatch(r"stable_baselines3\.(common|ppo|a2c)\.policies", module):
        raise UserError(f"a policy of {module}; PPO's and A2C's of stable_baselines3 are read")
    if any(name.startswith("features_extractor.extractors") for name in weights):
        raise UserError("a policy for Dict observations; MlpPolicy and CnnPolicy are read")
    if data["use_sde"]:
        raise UserError("gSDE: its σ depends on the state, which an agent's here does not")
    if not re.search(r"box\.Box'|discrete\.Discrete'", kind):
        raise UserError(f"its actions are {kind}; Box and Discrete are read")
    is_image_policy = any(".cnn." in name for name in weights)
    for name, wanted in (("squash_output", False), ("normalize_images", True)):
        differs = str(options.get(name, wanted)) != str(wanted)
        if differs and (is_image_policy or name != "normalize_images"):
            raise UserError(f"trained with {name}={options[name]}, which no agent here has")
    if args.activation:
        raise UserError("--activation: SB3's file names its own; leave it out")

    teacher = Teacher("stable-baselines3", steps=data["num_timesteps"])
    if data.get("_last_original_obs"):
        teacher.missing = "trained with VecNormalize; give the file of its save() as --vecnormalize"
    with suppress(Exception):  # the score is only compared with it; old formats have none
        episodes = read_pickle(base64.b64decode(data["ep_info_buffer"][":serialized:"]))
        teacher.last_return = fmean(float(to_array(episode["r"])) for episode in episodes)
    if is_image_policy:
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
        raise UserError("a custom features extractor; MlpPolicy and CnnPolicy are read")
    activation = str(options.get("activation_fn", "<class 'Tanh'>"))
    found = re.search(r"(\w+)'>$", activation)
    teacher.activation = found[1].lower() if found else activation
    shared = layers(weights, "mlp_extractor.shared_net")  # old versions: both networks start so
    heads = [(weights[f"{h}_net.weight"], weights[f"{h}_net.bias"]) for h in ("action", "value")]
    teacher.actor = [*shared, *layers(weights, "mlp_extractor.policy_net"), heads[0]]
    teacher.critic = [*shared, *layers(weights, "mlp_extractor.value_net"), heads[1]]
    teacher.log_std = weights.get("log_std")
    return teacher


def read_cleanrl(weights: dict, args: Import) -> Teacher:
    """A state_dict of CleanRL's ppo.py, ppo_continuous_action.py or ppo_atari.py."""
    if "network.0.weight" in weights and "actor.weight" in weights:
        cnn = ["network.0", "network.2", "network.4", "network.7"]
        return Teacher("cleanrl", nature_cnn(weights, [*cnn, "actor"], [*cnn, "critic"]))
    actor = layers(weights, "actor_mean") or layers(weights, "actor")
    if not actor or any(name.startswith("lstm") for name in weights):
        raise UserError("a torch file, but neither CleanRL's PPO nor rsl_rl's")
    critic, log_std = layers(weights, "critic"), weights.get("actor_logstd")
    log_std = None if log_std is None else log_std.flatten()
    teacher = Teacher("cleanrl", {}, actor, critic, args.activation or "tanh", log_std)
    if log_std is not None:
        teacher.missing = (
            "CleanRL normalises observations and does not save the statistics. At the end of its "
            'script, add `rms = envs.envs[0].get_wrapper_attr("obs_rms"); '
            'np.savez("stats.npz", mean=rms.mean, var=rms.var)`; give --vecnormalize stats.npz'
        )
    return teacher


def read_rsl_rl(content: dict, activation: str) -> Teacher:
    """A checkpoint of rsl_rl's PPO, versions 1 to 5. Raises UserError."""
    if "actor_state_dict" in content:  # from version 4 on
        parts = {"actor": content["actor_state_dict"], "critic": content["critic_state_dict"]}
        weights = {f"{p}.{name}": v for p, part in parts.items() for name, v in part.items()}
        actor, critic = "actor.mlp", "critic.mlp"
        normalizers = {"actor": "actor.obs_normalizer", "critic": "critic.obs_normalizer"}
    else:
        weights, actor, critic = content["model_state_dict"], "actor", "critic"
        normalizers = {"actor": "actor_obs_normalizer", "critic": "critic_obs_normalizer"}
        keys = {"obs_norm": "actor", "critic_obs_norm": "critic", "privileged_obs_norm": "critic"}
        for key, network in keys.items():  # up to version 2, not in the weights
            statistics = content.get(f"{key}_state_dict", {})
            weights |= {f"{normalizers[network]}.{name}": v for name, v in statistics.items()}
    if any(re.search(r"memory|rnn\.|cnns?\.", name) for name in weights):
        raise UserError("a recurrent or image policy of rsl_rl; its MLPs are read")
    # std, log_std, actor.std, actor.log_std, actor.distribution.(std|log_std)_param
    found = {n: v for n, v in weights.items() if re.search(r"(^|\.)(log_)?std(_param)?$", n)}
    if len(found) != 1:
        raise UserError("no σ that is the same in each state, which an agent here has")
    [(name, std)] = found.items()
    log_std = std if "log_std" in name else std.clamp(min=1e-6).log()
    actor, critic = layers(weights, actor), layers(weights, critic)
    if not actor or not critic:
        raise UserError("a checkpoint without an MLP actor and critic, as rsl_rl's PPO has")
    teacher = Teacher("rsl_rl", {}, actor, critic, activation, log_std)

    observed, critic_observes = (len(network[0][0].T) for network in (actor, critic))
    statistics = {}
    for network, prefix in normalizers.items():  # divides by σ + 0.01 and does not clip
        if f"{prefix}._mean" in weights:
            mean, std = (weights[f"{prefix}.{k}"].flatten().double() for k in ("_mean", "_std"))
            statistics[network] = mean, std + 0.01
    if "actor" in statistics:
        teacher.mean, teacher.scale = (value.numpy() for value in statistics["actor"])
    if critic_observes != observed:
        sizes = f"the critic observes {critic_observes} numbers, the policy {observed}"
        print(f"{sizes}: the critic is left out")
        teacher.critic = []
    elif statistics:  # an agent has one normaliser; put the critic's into its first layer
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
        raise UserError("--vecnormalize: the policy scales its observations itself; leave it out")
    content = Path(path).read_bytes()
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            arrays = np.load(io.BytesIO(content), allow_pickle=False)
            if not {"mean", "var"} <= {*arrays.files}:
                raise UserError(f"no mean and var in it, but {', '.join(arrays.files[:3])}")
            found = {"clip": 10.0, "epsilon": 1e-8, **arrays}
        else:
            saved = read_pickle(content)
            if type(saved).__name__ != "VecNormalize":
                raise UserError(f"holds a {type(saved).__name__}")
            if not saved.state["norm_obs"]:
                return
            found = saved.state["obs_rms"].state
            found = {"mean": to_array(found["mean"]), "var": to_array(found["var"])}
            found["clip"] = to_array(saved.state["clip_obs"])
            found["epsilon"] = to_array(saved.state["epsilon"])
        teacher.mean = np.array(found["mean"], np.float64)
        var = np.asarray(found["var"], np.float64) + float(found["epsilon"])
        if not (var > 0).all():
            raise ValueError("a variance is NaN or below 0")
        teacher.scale = np.sqrt(var)
        teacher.clip = min(float(found["clip"]), teacher.clip)
    except Exception as error:  # a file from elsewhere can be wrong in any way
        advice = "give the file of VecNormalize.save(), or an .npz with mean and var"
        raise UserError(f"--vecnormalize {path}: {error}; {advice}") from error


# ------------------------------------------------------------------------------- Import
def find_env_id(env_id: str, make_env) -> tuple[str, gym.Env]:
    """An id that can be played, and its environment: the version asked for, or the next one."""
    name, _, version = env_id.rpartition("-v")
    versions = [spec.version or 0 for spec in gym.registry.values() if spec.name == name]
    newer = sorted(v for v in versions if version.isdigit() and v > int(version))
    failures = []
    for found in (env_id, *(f"{name}-v{v}" for v in newer)):
        try:
            env = make_env(found)
        except Exception as error:  # the script's own UserError
            failures.append(error)
        else:
            if found != env_id:
                print(f"{env_id} is not installed; playing {found} instead")
            return found, env
    raise failures[-1]


def check_sizes(teacher: Teacher, env: gym.Env, env_id: str, found: str) -> None:
    """Raises UserError if the environment `found` has other sizes than the policy."""
    box, obs_dim = env.action_space, env.observation_space.shape[0]
    observed, acted = teacher.actor[0][0].shape[1], len(teacher.actor[-1][1])
    if observed != obs_dim:
        instead = "" if found == env_id else f", which replaces {env_id},"
        sizes = f"observes {observed} numbers, and {found}{instead} has {obs_dim}"
        advice = "give an environment of your own with these observations, --env-id your_module:Id"
        if observed == obs_dim + 1:
            sizes += ": one more, as of a time feature"
        elif observed % obs_dim == 0:
            sizes += f": {observed // obs_dim} stacked observations"
        elif found == env_id:
            advice = f"give the id that it was trained on, or {advice.removeprefix('give ')}"
        raise UserError(f"{sizes}; {advice} (docs/bring_your_teacher.md)")
    kind = "discrete" if box.dtype == np.int8 else "continuous"
    if (teacher.log_std is None) != (kind == "discrete") or acted != len(box.low):
        its_kind = "discrete" if teacher.log_std is None else "continuous"
        raise UserError(
            f"has {acted} {its_kind} actions, and {found} {len(box.low)} {kind} ones; "
            "give the id that it was trained on"
        )


def build_mujoco(script, teacher: Teacher, env_id: str):
    """The agent, its header and environments to play in. Raises UserError for other sizes."""
    found, env = find_env_id(env_id, script.make_mujoco_env)
    check_sizes(teacher, env, env_id, found)
    if teacher.activation not in ("relu", "tanh", "elu"):
        raise UserError(f"its activation is {teacher.activation}; relu, tanh and elu are read")
    box, obs_dim = env.action_space, env.observation_space.shape[0]
    actor, critic = [[len(bias) for _, bias in n[:-1]] for n in (teacher.actor, teacher.critic)]
    header = {"suite": "mujoco", "script": "ppo_teacher_mujoco", "hidden_sizes": actor}
    header |= {"activation": teacher.activation, "critic_sizes": critic}
    agent = script.MujocoAgent(box.low, box.high, obs_dim, actor, teacher.activation, critic)
    if not teacher.critic:
        agent.critic = None
    for network, its_layers in ((agent.actor, teacher.actor), (agent.critic, teacher.critic)):
        for layer, (weight, bias) in zip((network or [])[::2], its_layers, strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias})
    if teacher.log_std is not None:
        agent.load_state_dict({"log_std": teacher.log_std}, strict=False)
    agent.obs_clip.fill_(teacher.clip)
    if teacher.mean is not None:
        if teacher.mean.shape != (obs_dim,):
            raise UserError(f"--vecnormalize: statistics of {teacher.mean.shape}, not ({obs_dim},)")
        agent.obs_mean.copy_(torch.from_numpy(teacher.mean))
        # An agent divides by √(variance + 1e-8), other libraries by something else.
        agent.obs_var.copy_(torch.from_numpy(teacher.scale**2 - 1e-8).clamp(min=0))
    envs = script.MujocoVectorEnv(found, 10, torch.get_num_threads())
    return agent, header | {"env_id": found.split(":")[-1]}, envs  # a file names no module


def build_atari(script, teacher: Teacher, env_id: str):
    """As `build_mujoco`, for an image policy."""
    game = re.sub(r"^ALE/|(NoFrameskip|Deterministic|-ram)?-v\d+$", "", env_id)
    if env_id != f"{game}NoFrameskip-v4":
        try:
            script.find_rom(f"{game}NoFrameskip-v4")
        except script.UserError:
            game = "Pong"
        advice = f"give an Atari id like {game}NoFrameskip-v4"
        raise UserError(f"an image policy, which is played in other ids than {env_id}; {advice}")
    envs = script.AtariGames(env_id, 10, torch.get_num_threads(), 4, life_loss=False)
    actions, wanted = len(teacher.image_weights["actor.1.bias"]), int(envs.single_action_space.n)
    if actions != wanted:
        raise UserError(
            f"has {actions} actions, and {env_id} {wanted}; give the id that it was trained on"
        )
    agent = script.PixelAgent((4, 84, 84), actions, "nature")
    agent.load_state_dict(teacher.image_weights)
    header = {"suite": "atari", "script": "ppo_teacher_atari", "env_id": env_id, "frame_skip": 4}
    return agent, header | {"size": "nature"}, envs


def build_agent(args: Import):
    """The script an agent belongs to, the agent, its header, environments, and what was read."""
    try:
        teacher = read_teacher(args)
        if args.vecnormalize is not None:
            read_normalizer(args.vecnormalize, teacher)
            teacher.missing = ""
        suite, build = ("atari", build_atari) if teacher.image_weights else ("mujoco", build_mujoco)
        script = importlib.import_module(f"ppd_{suite}")
        agent, header, envs = build(script, teacher, args.env_id)
    except KeyError as error:
        raise UserError(f"{args.source}: does not read as a policy: no {error} in it") from error
    except (LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"{args.source}: does not read as a policy: {error}") from error
    except UserError as error:
        raise UserError(f"{args.source}: {error}") from error
    tensors = {k: v for k, v in agent.state_dict().items() if not k.startswith("action_")}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(f"{args.source}: NaN or infinite weights or statistics")
    header |= {"format": "ppd-agent-2", "trained_by": teacher.trained_by, "seed": args.seed}
    header |= {"steps": teacher.steps, "deterministic": True}
    return script, agent.eval().requires_grad_(False), header, envs, teacher


def distil_flags(teacher: Teacher) -> str:
    """Flags for a student of this teacher; prints σ, on which they depend.

    With the paper's loss, students of imported teachers with σ of 0.05 to 0.15 learned slowly: the
    gradient through the ratio r is noise that grows with the KL. σ alone does not tell how slowly.
    """
    if teacher.log_std is None or teacher.image_weights:
        return ""
    std = teacher.log_std.exp()
    low, high = f"{std.min():.2g}", f"{std.max():.2g}"
    print(f"σ of its actions: {low if low == high else f'{low} to {high}'}")
    if std.median() >= 0.2:
        return ""
    print("The paper's loss can be slow with a σ this small; hence --no-ratio-gradient below.")
    return " --no-ratio-gradient"


def import_teacher(args: Import) -> None:
    """Read a teacher, play it and write it. Raises UserError."""
    if args.episodes < 1 or not 0 <= args.seed <= 2**30:
        raise UserError("--episodes: give at least 1; --seed: 0 to 2**30")
    check_folder(args.out)
    script, agent, header, envs, teacher = build_agent(args)
    env_id, parameters = header["env_id"], sum(p.numel() for p in agent.actor.parameters())
    print(f"{args.source}: {header['trained_by']}, a policy of {parameters:,} parameters")
    with closing(envs):
        score = script.evaluate(agent, envs, args.episodes, args.seed)
    expected, whose = teacher.last_return, "its last training episodes"
    if args.expect is not None:
        expected, whose = args.expect, "expected"
    comparison = "" if expected is None else f"; {whose}: {expected:.1f}"
    print(f"{env_id}: {script.score_text(score)} over {args.episodes} episodes{comparison}")
    advice = ""
    if teacher.missing:
        print(f"WARNING: {teacher.missing}")
        advice = "Import it again with --vecnormalize"
    if expected is not None and score["mean"] < expected - 0.2 * abs(expected):
        causes = "missing statistics (--vecnormalize), another activation or environment"
        print(f"WARNING: it plays worse than expected. Possible causes: {causes}")
        advice = advice or "Find out why it plays worse"
    header["score"] = {k: score[k] for k in ("mean", "standard_error", "episodes")}
    script.write_file(Path(args.out), script.pack_agent(agent.state_dict(), header))
    flags = distil_flags(teacher)
    module, colon, _ = args.env_id.rpartition(":")  # that registers the environment
    use = f"python ppd_{header['suite']}.py --env-id {module}{colon}{env_id}"
    use += f" --teacher {shlex.quote(args.out)}{flags}"
    if advice:
        print(f"{args.out}: written. {advice}; only if it is right as it is, distil it with: {use}")
    else:
        print(f"{args.out}: written; distil it with: {use}")


def check_folder(path: str) -> None:
    """Raises UserError, before any work, if the file could not be written."""
    if Path(path).is_dir():
        raise UserError(f"--out {path}: a folder; name a file in it")
    if not Path(path).parent.is_dir():
        raise UserError(f"--out {path}: its folder does not exist; make it first")


# ------------------------------------------------------------------------------- Export
class Model(nn.Module):
    """An agent as one function: raw observations to its action and its distribution.

    With an LSTM it takes the state as well, and returns the next state, not the distribution.
    """

    def __init__(self, agent):
        super().__init__()
        self.agent = agent
        low = getattr(agent, "action_low", None)  # none, or integers: discrete actions
        self.discrete = low is None or not low.is_floating_point()
        self.inputs, lstm = ["obs"], getattr(agent.actor, "lstm", None)
        self.names = ["action", "logits"] if self.discrete else ["action", "mean", "std"]
        if lstm is not None:  # names and shapes are rsl_rl's
            self.inputs, self.names = ["obs", "h_in", "c_in"], ["actions", "h_out", "c_out"]
        self.width = lstm and lstm.hidden_size

    def start(self, batch: int) -> list[torch.Tensor]:
        """The LSTM's state at the beginning of episodes."""
        return [torch.zeros(1, batch, self.width) for _ in self.inputs[1:]]

    def forward(self, obs: torch.Tensor, h_in=None, c_in=None) -> tuple[torch.Tensor, ...]:
        """Observations (B, …) to deterministic actions, and logits or mean and std (B, A).

        Actions are (B, A), or (B,) if they are discrete. With an LSTM: observations, h and c
        (1, B, H) to actions, h and c.
        """
        agent, obs, state = self.agent, self.agent.normalize(obs), None
        if hasattr(agent, "reset"):  # an agent of ppd_mujoco_lstm.py
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


def sample_observations(agent, suite: str, count: int) -> torch.Tensor:
    """Raw observations with the agent's statistics, or images of noise."""
    random = torch.Generator().manual_seed(0)
    if suite == "mujoco":
        spread = agent.obs_var.sqrt() * torch.randn(count, len(agent.obs_mean), generator=random)
        return (agent.obs_mean + spread).float()
    shape = (4, 84, 84) if suite == "atari" else (3, 64, 64)
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=random)


def play(call, obs, state) -> list[np.ndarray]:
    """The outputs of a model for batches of observations in a row, an LSTM's state passed on."""
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


def to_onnx(model: Model, obs: torch.Tensor, header: dict) -> bytes:
    """The content of an ONNX file, any batch size, with the header as its metadata."""
    logger = logging.getLogger("torch.onnx")
    level, batch = logger.level, [{0: "batch"}, *({1: "batch"} for _ in model.inputs[1:])]
    logger.setLevel(logging.ERROR)  # it warns that torchvision is missing, which is not needed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, (obs[:2], *model.start(2)), dynamo=True, opset_version=18, verbose=False,
                input_names=model.inputs, output_names=model.names, dynamic_shapes=batch,
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    proto = program.model_proto
    # Opset 18 came with file version 8, which older runtimes load too. The exporter writes version
    # 10 for its notes at each node: Python names, and paths of this machine. They are left out.
    proto.ir_version, graph = 8, proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
    for name, value in header.items():
        proto.metadata_props.add(key=name, value=json.dumps(value))
    return proto.SerializeToString()


def export_student(args: Export) -> None:
    """Write a checkpoint as ONNX, compare and time it. Raises UserError."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        advice = "python -m pip install -r requirements-convert.txt"
        raise UserError(f"export: {error.name} is not installed: {advice}") from error
    check_folder(args.out)
    script, agent, header = load(args.checkpoint)
    agent.float()  # also the statistics, which the agent rounds to float32 before use
    model = Model(agent).eval()
    obs = sample_observations(agent, header["suite"], 1000)
    content = to_onnx(model, obs, header)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    run = lambda *arrays: session.run(None, dict(zip(model.inputs, arrays, strict=True)))
    arrays = lambda tensors: [tensor.numpy() for tensor in tensors]
    batches, threads = obs.unflatten(0, (10, 100)), torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        ours = play(model, batches, model.start(100))
        theirs = play(run, batches.numpy(), arrays(model.start(100)))
        times = [microseconds(run, obs.numpy(), arrays(model.start(1)))]
        times.append(microseconds(model, obs, model.start(1)))
    torch.set_num_threads(threads)
    checks = []
    for name, a, b in zip(model.names, ours, theirs, strict=True):
        difference, size = abs(a - b).max(), abs(a).max()
        checks.append(f"{name} {difference:.1e} (of up to {size:.3g})")
        # Of two almost equal logits either may be the greater one after rounding.
        may_differ = model.discrete and name in ("action", "actions")
        if not (may_differ or difference <= 1e-5 * max(size, 1)):
            raise UserError(f"{args.checkpoint}: ONNX differs: {checks[-1]}; nothing is written")
    script.write_file(Path(args.out), content)
    names = f"{', '.join(model.inputs)} to {', '.join(model.names)}"
    print(f"{args.out}: {len(content) / 1e3:,.0f} kB; {obs.dtype} {names}")
    print(f"largest difference from the agent, {len(obs):,} observations: {', '.join(checks)}")
    print(f"one observation: onnxruntime {times[0]:.0f} µs, torch {times[1]:.0f} µs (one thread)")


def main() -> None:
    commands = Annotated[Import, subcommand("import")] | Annotated[Export, subcommand("export")]
    args = tyro.cli(commands, description=__doc__)
    try:
        refuse_empty_values(args)
        (import_teacher if isinstance(args, Import) else export_student)(args)
    except Exception as error:
        # Each script has its own UserError. OSError and ImportError explain themselves.
        if type(error).__name__ != "UserError" and not isinstance(error, (OSError, ImportError)):
            raise
        message = " ".join(str(error).split())  # one line
        print(f"convert: error: {message}", file=sys.stderr)
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
#     "onnx==1.23.2",
#     "onnxscript==0.7.2",
#     "onnxruntime==1.32.0; python_version >= '3.11'",
#     "onnxruntime==1.23.2; python_version < '3.11'",
# ]
# ///
