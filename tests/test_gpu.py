"""What a GPU does or would do: the real one if there is one, and a pretended device anywhere.

The pretended one is CPU memory, and torch.compile's backends count graphs, or do with memory what
CUDA graphs do.
"""

import re
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from helpers import (
    PPD_SCRIPTS,
    TEACHERS,
    args_class,
    assert_same_weights,
    load,
    make_args,
    mutant,
    no_score,
)
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.mutation_guard import GenerationTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

BASELINE_RUNS = ["student_distill procgen", "student_distill atari", "teacher_distill mujoco"]
GPU = torch.device("cuda:0")  # with its number, or torch looks for the driver


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU; its numbers are in `here`, in this machine's memory."""

    @staticmethod
    def __new__(cls, here: torch.Tensor):
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        kind = {"dtype": here.dtype, "device": "meta"}  # autograd knows meta on any machine
        tensor = cls._make_wrapper_subclass(cls, here.shape, **layout, **kind)
        tensor.here = here
        return tensor

    device = property(lambda self: GPU)
    is_meta = False

    def __reduce_ex__(self, protocol):
        return self.here.__reduce_ex__(protocol)

    def __torch_dispatch__(self, *_):
        raise AssertionError("a tensor of the pretended GPU is used outside of it")


class PretendedGPU(TorchDispatchMode):
    """Carries out all operations on the CPU; fails where tensors of both devices meet."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        name, tensors = function.overloadpacket.__name__, tree_leaves((arguments, options))
        if name.startswith(("index", "_index")) and isinstance(arguments[0], OnGPU):
            tensors = [*arguments[:1], *arguments[2:]]  # a mask or indices may be the CPU's
        tensors = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
        gpu = [tensor for tensor in tensors if isinstance(tensor, OnGPU)]
        least = 0 if name in ("stack", "cat", "_fused_adam_") else 1  # others take a CPU's number
        cpu = [tensor for tensor in tensors if not isinstance(tensor, OnGPU)]
        cpu = [tensor for tensor in cpu if tensor.ndim >= least]
        if gpu and cpu and name not in ("copy_", "_to_copy"):
            raise AssertionError(f"{name}: a tensor of the CPU meets one of the GPU")
        to_gpu = bool(gpu)
        if options.get("device") is not None:
            to_gpu = torch.device(options["device"]).type != "cpu"
            options["device"] = "cpu"
        here = {id(t.here): t for t in gpu}
        plain = lambda x: x.here if isinstance(x, OnGPU) else x
        result = function(*tree_map(plain, arguments), **tree_map(plain, options))
        if name == "copy_":  # from one device to the other: the answer is where it was
            to_gpu = id(result) in here

        def place(x):
            is_new = to_gpu and isinstance(x, torch.Tensor)
            return here[id(x)] if id(x) in here else OnGPU(x) if is_new else x

        return tree_map(place, result)


@pytest.fixture
def pretended_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    with PretendedGPU():
        yield


@pytest.fixture(params=["pretended", "real"])
def gpu(request):
    if request.param == "pretended":
        request.getfixturevalue("pretended_gpu")
    elif not torch.cuda.is_available():
        pytest.skip("no GPU here")


def test_pretended_gpu_sees_what_a_gpu_would_refuse(pretended_gpu):
    ours, theirs = torch.ones(3, device=GPU), torch.ones(3)
    assert torch.equal((ours.to("cpu") + theirs), 2 * theirs) and (2 * ours).device == GPU
    assert ours[theirs > 0].sum().item() == 3 and (ours * torch.tensor(2.0)).device == GPU
    for refused in (
        lambda: ours + theirs,
        lambda: theirs[ours > 0],
        lambda: torch.stack([ours.sum(), theirs.sum()]),
    ):
        with pytest.raises(AssertionError, match="meets one of the GPU"):
            refused()
    with pytest.raises((TypeError, RuntimeError)):
        ours.numpy()


def act_once(agent, envs, episodes, seed, deterministic=True) -> dict:
    """Stands for `evaluate`: a whole game would take minutes here."""
    obs = envs.obs if hasattr(envs, "obs") else envs.reset(seed=seed)[0]
    actions = agent.act(obs, deterministic)
    assert isinstance(actions, np.ndarray) and len(actions) == envs.num_envs
    return no_score(agent, envs, episodes, seed)


def small_run(name: str, tmp_path, monkeypatch, **options):
    """Script and arguments of a few short updates, scored by a single step.

    The suite is in the script's name, or behind it.
    """
    name, *suite = name.split()
    script, (suite,) = load(name), suite or re.findall("mujoco|atari|procgen", name)
    monkeypatch.setattr(script, "evaluate", act_once)
    values = {"num_envs": 3, "num_steps": 4, "minibatch_size": 5, "update_epochs": 1}
    values |= {"total_timesteps": 24, "eval_every": 12, "log_every": 12} | options
    names = vars(args_class(script, suite)()).keys() & values.keys()
    values = {name: values[name] for name in names}  # a baseline has no minibatches
    return script, make_args(script, suite, tmp_path / "run", **values)


@pytest.mark.parametrize("name", [*PPD_SCRIPTS, *TEACHERS, "ppd_mujoco_lstm", *BASELINE_RUNS])
@pytest.mark.filterwarnings("default")  # a real one's are not ours
def test_one_device_in_every_operation(name, tmp_path, monkeypatch, gpu):
    script, args = small_run(name, tmp_path, monkeypatch, device="cuda:0", save_every=0)
    train_in_two_parts(script, args, monkeypatch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("switches", [("bfloat16",), ("compile",), ("bfloat16", "compile")])
@pytest.mark.parametrize("name", ["ppd_atari", "ppd_procgen", "ppo_teacher_procgen"])
def test_switches_of_a_real_gpu(name, switches, tmp_path, monkeypatch):
    options = dict.fromkeys(switches, True) | {"device": "cuda:0", "save_every": 0}
    script, args = small_run(name, tmp_path, monkeypatch, **options)
    train_in_two_parts(script, args, monkeypatch)


def train_in_two_parts(script, args, monkeypatch):
    """Stop a run after one rollout, and go on with it."""
    save = script.Run.save

    def save_and_stop(run):
        save(run)
        if run.step == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script.Run, "save", save_and_stop)
        script.train(args)
    assert script.train(type(args)(resume=args.run_dir))["steps"] == 24


@pytest.mark.parametrize(
    "name", [name for name in [*PPD_SCRIPTS, *TEACHERS] if "mujoco" not in name]
)
def test_a_gpu_that_is_full_is_no_traceback(name, monkeypatch, refused):
    def fill(args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(load(name), "train", fill)
    refused(load(name), [], "allocate 2 GiB")


def test_a_gpus_random_numbers_go_on(tmp_path, monkeypatch):
    """After a stop, and after an evaluation. Of its generator a count is left: one a rollout."""
    script, drawn, stop_at = load("ppd_mujoco"), torch.tensor([0]), None
    log, learn = script.Run.log, script.learn

    def draw(run, *arguments):
        if run.step == stop_at:
            raise KeyboardInterrupt
        drawn.add_(1)
        log(run, *arguments)

    monkeypatch.setattr(script.Run, "log", draw)
    # The run is on a GPU, its networks are not.
    monkeypatch.setattr(script, "learn", lambda args, run: learn(replace(args, device="cpu"), run))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", drawn.fill_)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *device: drawn.clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, *device: drawn.copy_(state))
    options = {"device": "cuda", "save_every": 0, "eval_every": 64}
    args = make_args(script, "mujoco", tmp_path / "run", **options)
    stop_at = args.total_timesteps
    with pytest.raises(KeyboardInterrupt):
        script.train(args)
    assert drawn == args.seed + 2
    drawn.zero_()
    stop_at = None
    script.train(type(args)(resume=args.run_dir))
    assert drawn == args.seed + 3


@pytest.mark.parametrize(("size", "convolutions"), [("smaller", 3), ("same", 15)])
@pytest.mark.parametrize("name", ["ppd_atari", "ppd_procgen"])
def test_one_graph_for_each_shape(name, size, convolutions, tmp_path, monkeypatch):
    """Policy: acting, minibatch, an epoch's last; critic: also both in advance. And none later."""
    options = {"compile": True, "student_size": size, "total_timesteps": 36}
    script, args = small_run(name, tmp_path, monkeypatch, **options)
    graphs, counts, log = [], [], script.Run.log

    def keep(graph, inputs, **_):
        graphs.append(sum(node.target is torch.conv2d for node in graph.graph.nodes))
        return graph

    def step_to_time_limits(envs, actions):
        obs, rewards, terminations, truncations, infos = step(envs, actions)
        truncations[: len(counts)] = True  # more and more final observations
        return obs, rewards, terminations, truncations, infos

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    monkeypatch.setattr(script.Run, "log", lambda *a: (counts.append(len(graphs)), log(*a)))
    if name == "ppd_atari":
        step = script.AtariGames.step
        monkeypatch.setattr(script.AtariGames, "step", step_to_time_limits)
    script.train(args)
    assert counts == [8, 8, 8] and set(graphs) == {convolutions}


class SharedMemory:
    """A backend of torch.compile that writes over its outputs where CUDA graphs would.

    Graphs share one memory: when the first of a new generation of calls begins, and no backward is
    outstanding, what the generation before has returned is no more. Here it becomes NaN.
    """

    def __init__(self):
        self.generation, self.is_pending, self.returned, self.overwritten = -1, False, [], 0
        kinds = {f"{kind}_compiler": partial(self.compile, kind) for kind in ("fw", "bw")}
        self.backend = aot_autograd(**kinds, inference_compiler=partial(self.compile, "inference"))

    def compile(self, kind, graph, inputs, **_):
        return make_boxed_func(partial(self.call, kind, graph))

    @torch.no_grad()
    def call(self, kind, graph, *inputs):
        if self.generation != GenerationTracker.generation and not self.is_pending:
            for storage in self.returned:
                torch.tensor([], dtype=torch.uint8).set_(storage).fill_(255)  # in any float, NaN
            self.overwritten += len(self.returned)
            self.returned = []
        outputs = graph(*inputs)
        tensors = [x for x in outputs if isinstance(x, torch.Tensor)]
        given = {x.untyped_storage().data_ptr() for x in inputs if isinstance(x, torch.Tensor)}
        storages = [tensor.untyped_storage() for tensor in tensors]
        self.returned += [storage for storage in storages if storage.data_ptr() not in given]
        self.generation = GenerationTracker.generation
        self.is_pending = kind == "fw" or self.is_pending and kind != "bw"
        return outputs


@pytest.mark.parametrize("keep", [False, True])
def test_graphs_may_write_over_their_outputs(keep, tmp_path, monkeypatch):
    """Nothing is read of them later: the same weights, bit for bit; NaN if `run` did not copy."""
    script, args = small_run("ppd_procgen", tmp_path, monkeypatch, total_timesteps=36)
    if keep:
        script = mutant("ppd_procgen", "PixelAgent", ", copy=True)", ")")
        script.evaluate = act_once
    memory = SharedMemory()
    compile = partial(torch.compile, backend=memory.backend)
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda f, mode, **options: compile(f, **options))
    with pytest.raises(script.UserError, match="NaN") if keep else nullcontext():
        script.train(replace(args, run_dir=str(tmp_path / "compiled"), compile=True))
        script.train(args)
        assert_same_weights(tmp_path / "compiled", args.run_dir)
    assert memory.overwritten > 50
