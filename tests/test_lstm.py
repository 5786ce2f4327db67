"""ppd_mujoco_lstm.py: what memory and a hidden part of the observation add to ppd_mujoco.py."""

import signal
import subprocess
import time

import gymnasium as gym
import numpy as np
import oracle
import pytest
import torch
from helpers import (
    FakeEnvs,
    NoWriter,
    assert_same_weights,
    command,
    make_args,
    make_teacher,
    mutant,
    read,
    read_result,
    run_main,
    save_agent,
    use_fake_envs,
)
from test_copies import drift, globals_read
from test_losses import check_against_oracle

import evaluate
import ppd_mujoco_lstm as script

NAME = "ppd_mujoco_lstm"


def test_it_is_ppd_mujoco_with_memory():
    """What the two share is the same text; so the losses are those of test_losses.py."""
    found = drift({"ppd_mujoco": read("ppd_mujoco"), NAME: read(NAME)})
    assert not found, "\n".join(found)
    assert not globals_read(read(NAME))
    check_against_oracle(script, oracle.Gaussian)


# ------------------------------------------------------------------------------- Networks
def random_network(memory="lstm"):
    torch.manual_seed(1)
    return script.PartialNetwork([0, 2], (6, 5), 3, 1.0, memory)


def random_sequence(steps=20, envs=4):
    torch.manual_seed(2)
    ended = torch.rand(steps, envs) < 0.15
    ended[-1] = torch.tensor([True, False, False, True])
    return torch.randn(steps, envs, 4), torch.randn(2, envs, 5), ended


@pytest.mark.parametrize("memory", ["lstm", "none"])
def test_a_sequence_at_once_is_step_after_step(memory):
    network, (obs, state, ended) = random_network(memory), random_sequence()
    assert ended[:-1].any(1).sum() > 5 and ended[-1].any()
    whole = network.sequences(obs, state, ended)
    for t in range(len(obs)):
        output, state = network(obs[t], state)
        state[:, ended[t]] = 0
        torch.testing.assert_close(output, whole[t], rtol=0, atol=1e-5)


def test_nothing_is_remembered_beyond_an_end():
    network, (obs, state, ended) = random_network(), random_sequence()
    ended[:] = False
    ended[9, 1] = True
    outputs = network.sequences(obs.requires_grad_(), state, ended)
    (slopes,) = torch.autograd.grad(outputs[15].sum(), obs)
    before = slopes[:10, :, [0, 2]].abs().amax((0, 2))
    assert before[1] == 0 and (before[[0, 2, 3]] > 0).all()
    assert (slopes[10:16, :, [0, 2]] != 0).all()


@pytest.mark.parametrize("memory", ["lstm", "none"])
@pytest.mark.parametrize("critic", ["full", "student"])
def test_what_is_hidden_cannot_reach_the_student(memory, critic):
    """No gradient leads there, and no value there, not even NaN, changes what the student does."""
    torch.manual_seed(3)
    bounds = -torch.ones(3), torch.ones(3)
    agent = script.PartialAgent(*bounds, 4, [0, 2], (6, 5), memory, critic)
    obs, _, ended = random_sequence()
    obs, states = obs.requires_grad_(), torch.zeros(2, 2, 4, 5)
    means, values = agent.sequences(obs, states, ended)
    for outputs, sees in ((means, False), (values, critic == "full")):
        (slopes,) = torch.autograd.grad(outputs.square().sum(), obs, retain_graph=True)
        assert (slopes[:, :, [0, 2]] != 0).any()
        assert (slopes[:, :, [1, 3]] != 0).any() == sees
    other = obs.detach().clone()
    other[:, :, [1, 3]] = np.nan
    torch.testing.assert_close(agent.sequences(other, states, ended)[0], means, rtol=0, atol=0)
    acted = [agent.act(o.numpy()) for o in obs.detach()]
    agent.reset()
    for blind, action in zip(other, acted, strict=True):
        np.testing.assert_array_equal(agent.act(blind.numpy()), action)


@pytest.mark.parametrize("env_id", ["Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Humanoid-v4"])
@pytest.mark.parametrize("version", ["-v4", "-v5"])
def test_positions_are_the_simulators(env_id, version):
    check_positions(env_id.replace("-v4", version))


@pytest.mark.parametrize("env_id", ["Swimmer-v4", "Swimmer-v5", "Walker2d-v4", "Walker2d-v5"])
def test_positions_are_the_simulators_here_too(env_id):
    check_positions(env_id)


def check_positions(env_id):
    env = script.make_mujoco_env(env_id)
    obs, data = env.reset(seed=1)[0], env.unwrapped.data
    seen = script.find_observed("positions", env_id, len(obs))
    np.testing.assert_array_equal(obs[seen], data.qpos[-len(seen) :])
    assert len(data.qpos) - len(seen) in (1, 2)  # x, or x and y, are in no observation
    rest = script.find_observed("velocities", env_id, len(obs))
    np.testing.assert_allclose(obs[rest[: len(data.qvel)]], data.qvel.clip(-10, 10))
    assert script.find_observed("all", env_id, len(obs)) == sorted(seen + rest)


# ------------------------------------------------------------------------------- Training
T, N = 9, 5


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def walk(weights, net, obs, state, ended):
    """A network of the agent, step after step, in NumPy: outputs, states after each step, state."""
    w = {name[len(net) + 1 :]: array for name, array in weights.items() if name.startswith(net)}
    outputs, after = [], []
    for x, end in zip(obs, ended, strict=True):
        x = np.maximum(x @ w["encoder.0.weight"].T + w["encoder.0.bias"], 0)
        if "lstm.weight_hh_l0" in w:
            gates = x @ w["lstm.weight_ih_l0"].T + w["lstm.bias_ih_l0"] + w["lstm.bias_hh_l0"]
            i, f, g, o = np.split(gates + state[0] @ w["lstm.weight_hh_l0"].T, 4, axis=1)
            cell = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
            x = sigmoid(o) * np.tanh(cell)
            state = np.stack([x, cell])
        else:
            x = np.maximum(x @ w["encoder.2.weight"].T + w["encoder.2.bias"], 0)
        outputs.append(x @ w["head.weight"].T + w["head.bias"])
        after.append(state)
        state = np.where(end[:, None], 0, state)
    return np.array(outputs), after, state


def check_training(script, monkeypatch, tmp_path, **changes):
    """Two rollouts of `train`: every gradient that Adam got is what the formulas say."""
    use_fake_envs(script, monkeypatch)
    monkeypatch.setattr(script.PartialAgent, "env_actions", script.MujocoAgent.env_actions)
    monkeypatch.setattr(script, "SummaryWriter", NoWriter)
    steps, orders, ratios = [], [], []
    adam_step, randperm, clip = torch.optim.Adam.step, torch.randperm, script.clipped_surrogate_loss

    def record_step(self, closure=None):
        group = self.param_groups[0]["params"]
        steps.append([(p.detach().double().numpy().copy(), p.grad.numpy().copy()) for p in group])
        return adam_step(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", record_step)
    monkeypatch.setattr(
        torch, "randperm", lambda *a, **k: orders.append(randperm(*a, **k)) or orders[-1]
    )
    monkeypatch.setattr(
        script, "clipped_surrogate_loss", lambda r, *rest: ratios.append(r) or clip(r, *rest)
    )
    teacher = make_teacher("mujoco", tmp_path / "teacher.safetensors", sizes=(3, 2)).double()
    values = {"num_envs": N, "num_steps": T, "total_timesteps": 2 * T * N, "minibatch_size": 20}
    values |= {"hidden_sizes": (4, 3), "learning_rate": 0.03, "gamma": 0.8, "ent_coef": 0.1}
    values |= {"pg_coef": 0.7, "distill_lambda": 1.5, "observe": "0,2", "max_grad_norm": 1e9}
    args = make_args(script, "mujoco", tmp_path / "run", **values | changes)
    script.train(args)

    sizes = ([0, 2], args.hidden_sizes, args.memory, args.critic)
    bounds = -torch.ones(2), torch.ones(2)
    names = [name for name, _ in script.PartialAgent(*bounds, 3, *sizes).named_parameters()]
    mean, var = teacher.obs_mean.numpy(), teacher.obs_var.numpy()
    normalize = lambda obs: ((obs - mean) / np.sqrt(var + 1e-8)).clip(-10, 10)
    seen = {"actor": [0, 2], "critic": [0, 1, 2] if args.critic == "full" else [0, 2]}
    states = {net: np.zeros((2, N, 3)) for net in seen}
    scale, played = oracle.RewardScale(N), FakeEnvs.made[0].steps
    steps, orders = iter(steps), iter(orders)
    upcoming = next(steps)
    for k in range(2):
        rollout = {
            name: np.array([s[name] for s in played[k * T : k * T + T]]) for name in played[0]
        }
        ended = rollout["terminations"] | rollout["truncations"]
        obs, reached = normalize(rollout["obs"]), normalize(rollout["reached"])
        first, states = states, {}
        policy = dict(zip(names, [value for value, _ in upcoming], strict=True))
        means, _, states["actor"] = walk(policy, "actor", obs[..., [0, 2]], first["actor"], ended)
        critic = lambda x, state, end, w=policy: walk(
            w, "critic", x[..., seen["critic"]], state, end
        )
        values, after, states["critic"] = critic(obs, first["critic"], ended)
        values = values[..., 0]
        # V of what each step led to: the next observation, or where an episode ended, its final one
        next_values = [critic(reached[None, t], after[t], ended[:1])[0][0, :, 0] for t in range(T)]
        rewards = np.array([scale(*row) for row in zip(rollout["rewards"], ended, strict=True)])
        ends = rollout["terminations"], ended
        advantages = oracle.gae(rewards, values, np.array(next_values), *ends, 0.8, 0.9)
        logprobs = oracle.Gaussian.log_prob(means, policy["log_std"], rollout["actions"])
        flat = torch.from_numpy(obs).flatten(0, 1)
        teacher_means = teacher.actor(flat).detach().numpy().reshape(T, N, 2)
        batch = {"actions": rollout["actions"], "logprobs": logprobs, "advantages": advantages}
        batch |= {"returns": advantages + values, "teacher_outputs": teacher_means}
        np.testing.assert_allclose(ratios[6 * k].detach(), 1, rtol=0, atol=1e-5)
        for _ in range(args.update_epochs):
            for rows in map(np.array, next(orders).split(2)):
                mb = {
                    name: array[:, rows].reshape(-1, *array.shape[2:])
                    for name, array in batch.items()
                }
                mb["teacher_log_std"] = teacher.log_std.detach().numpy()

                def loss(*arrays, mb=mb, rows=rows, first=first, obs=obs, ended=ended):
                    w, outputs = dict(zip(names, arrays, strict=True)), {}
                    for net, places in seen.items():
                        start = first[net][:, rows], ended[:, rows]
                        outputs[net] = walk(w, net, obs[:, rows][..., places], *start)[0]
                    mb_outputs = (
                        outputs["actor"].reshape(-1, 2),
                        w["log_std"],
                        outputs["critic"].ravel(),
                    )
                    terms = oracle.losses(oracle.Gaussian, mb, vars(args), *mb_outputs)
                    return {"loss": terms["loss"] + (args.pg_coef - 1) * terms["pg_loss"]}

                arrays = [value for value, _ in upcoming]
                slopes = oracle.gradients(loss, arrays)["loss"]
                for name, slope, (_, gradient) in zip(names, slopes, upcoming, strict=True):
                    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=2e-5, err_msg=name)
                upcoming = next(steps, None)
    assert upcoming is None


@pytest.mark.parametrize("changes", [{"critic": "student"}, {}, {"memory": "none"}], ids=str)
def test_every_gradient_is_the_formulas(changes, monkeypatch, tmp_path):
    check_training(script, monkeypatch, tmp_path, **changes)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("terminations[t] | truncations[t]] = 0", "terminations[t]] = 0"),
        ("memory.states[:, :, rows])[1]", "0 * memory.states[:, :, rows])[1]"),
        ("first_states[:, :, mb]", "0 * first_states[:, :, mb]"),
        ("ends[1][:, mb]", "ends[0][:, mb]"),
        ("args.pg_coef * pg_loss", "pg_loss"),
    ],
)
def test_a_slip_is_seen(old, new, monkeypatch, tmp_path):
    broken = mutant(NAME, "train", old, new)
    with pytest.raises(AssertionError):
        check_training(broken, monkeypatch, tmp_path, critic="student", update_epochs=1)


def test_killed_and_resumed(tmp_path):
    """Bit for bit the run that never stopped: what the LSTMs remember is in the checkpoint."""
    options = {"total_timesteps": 64 * 60, "save_every": 0, "critic": "student"}
    whole, stopped = (
        make_args(script, "mujoco", tmp_path / n, **options) for n in ("whole", "stop")
    )
    script.train(whole)
    state = tmp_path / "stop" / "training_state.pt"
    with subprocess.Popen(command(script, "mujoco", stopped), cwd=tmp_path) as process:
        deadline, seen = time.monotonic() + 100, set()
        while len(seen) < 5 and process.poll() is None and time.monotonic() < deadline:
            if state.exists():
                seen.add(state.stat().st_mtime_ns)
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    saved = torch.load(state, weights_only=True)
    assert 0 < saved["history"]["steps"] < 64 * 60 and saved["memory"]["states"].abs().sum() > 0
    script.train(script.Args(resume=str(tmp_path / "stop")))
    assert_same_weights(tmp_path / "whole", tmp_path / "stop")
    a, b = (read_result(tmp_path / name) for name in ("whole", "stop"))
    assert all(a[name] == b[name] for name in ("score", "teacher_score", "curve", "steps"))


class Recall(gym.Env):
    """Repeat the number of three steps ago. It is observed as well, but hidden from the student."""

    observation_space, action_space = (gym.spaces.Box(-1, 1, (size,)) for size in (2, 1))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = [0, 0, 0]
        return self.look(), {}

    def look(self):
        self.seen.append(self.np_random.uniform(-1, 1))
        return np.array([self.seen[-1], self.seen[-4]])

    def step(self, action):
        reward = 1 - abs(action[0] - self.seen[-4])
        return self.look(), reward, False, len(self.seen) == 28, {}


@pytest.fixture(scope="module")
def recall(tmp_path_factory):
    """Runs on it, from a teacher that reads off the answer and scores 24; their folders."""
    folder, header = tmp_path_factory.mktemp("recall"), {"env_id": "Recall-v0", "hidden_sizes": [2]}
    gym.register("Recall-v0", Recall)
    path = folder / "teacher.safetensors"
    teacher = make_teacher("mujoco", path, sizes=(2, 1), **header)
    for tensor, value in {
        teacher.actor[0].weight: [[0.0, 1], [0, -1]],  # x = relu(x) − relu(−x)
        teacher.actor[0].bias: [0.0, 0],
        teacher.actor[2].weight: [[1.0, -1]],
        teacher.actor[2].bias: [0.0],
        teacher.log_std: [-1.0],
        teacher.obs_mean: [0.0, 0],
        teacher.obs_var: [1.0, 1],
    }.items():
        tensor.data.copy_(torch.tensor(value))
    _, header = script.load_mujoco_agent(path)
    save_agent(teacher, path, header)
    options = {"env_id": "Recall-v0", "observe": "0", "num_envs": 16, "num_steps": 32, "gamma": 0.5}
    options |= {"minibatch_size": 128, "update_epochs": 4, "hidden_sizes": (32, 32)}
    options |= {"learning_rate": 3e-3, "total_timesteps": 20_000, "episodes": 20}

    def run(name, **changes):
        script.train(make_args(script, "mujoco", folder / name, **options | changes))
        return folder / name

    yield run
    gym.registry.pop("Recall-v0")


@pytest.mark.parametrize("changes", [{}, {"pg_coef": 0.0}, {"distill_lambda": 0.0}], ids=str)
def test_memory_is_used(changes, recall, monkeypatch, capsys):
    """By PPD, distillation alone and PPO; without memory, zero is the best answer and scores 13."""
    monkeypatch.setattr(script, "SummaryWriter", NoWriter)
    run = recall(str(changes), **changes)
    score = read_result(run)["score"]
    assert score["mean"] > 0.9 * 24
    if not changes:
        forgetful = recall("none", memory="none")
        assert 11 < read_result(forgetful)["score"]["mean"] < 15
        for folder in (run, forgetful):
            check_evaluation(folder, monkeypatch, capsys)


def check_evaluation(run, monkeypatch, capsys):
    """evaluate.py repeats the run's final score: it too forgets where an episode ends."""
    score = script.score_text(read_result(run)["score"])
    monkeypatch.setattr(
        "sys.argv", ["evaluate.py", str(run / "agent.safetensors"), "--episodes", "20"]
    )
    evaluate.main()
    assert f"| {score} |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--observe", "5,x"], "--observe 5,x: give positions, velocities, all, or places from 0"),
        (
            ["--observe", "0,11"],
            "--observe 0,11: give positions, velocities, all, or places from 0",
        ),
        (["--env-id", "Pusher-v5"], "--observe positions: unknown for Pusher-v5; give places"),
    ],
)
def test_wrong_inputs(flags, words, monkeypatch, capsys, tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    make_teacher("mujoco", teacher, sizes=(23, 7) if "--env-id" in flags else (11, 3))
    flags += ["--teacher", teacher, "--run-dir", tmp_path / "run"]
    assert run_main(script, flags, monkeypatch) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and words in errors[0] and not (tmp_path / "run").exists()


def test_a_file_that_is_no_student_is_refused(tmp_path):
    make_teacher("mujoco", tmp_path / "teacher.safetensors")
    with pytest.raises(script.UserError, match="no student of this script"):
        script.load_partial_agent(tmp_path / "teacher.safetensors")
