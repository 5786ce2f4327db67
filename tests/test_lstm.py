"""ppd_mujoco_lstm.py: what memory and a hidden part of the observation add to ppd_mujoco.py."""

import time

import gymnasium as gym
import helpers
import numpy as np
import oracle
import pytest
import torch
from helpers import FakeEnvs, make_args, make_teacher, read_result

import convert
import evaluate
import ppd_mujoco_lstm as script

NAME, T, N = "ppd_mujoco_lstm", 9, 5
BOUNDS = -torch.ones(2), torch.ones(2)


def random_sequence(steps=20, envs=4):
    """Observations, a state, and where episodes end: at the last step too."""
    torch.manual_seed(2)
    ended = torch.rand(steps, envs) < 0.15
    ended[-1] = torch.tensor([True, False, False, True])
    assert ended[:-1].any(1).sum() > 5
    return torch.randn(steps, envs, 4), torch.randn(2, envs, 5), ended


@pytest.mark.parametrize("memory", ["lstm", "none"])
def test_a_sequence_at_once_is_step_after_step(memory):
    network = script.PartialNetwork([0, 2], (6, 5), 3, 1.0, memory)
    obs, state, ended = random_sequence()
    whole = network.sequences(obs, state, ended)
    for t in range(len(obs)):
        output, state = network(obs[t], state)
        state[:, ended[t]] = 0
        torch.testing.assert_close(output, whole[t], rtol=0, atol=1e-5)


def test_nothing_is_remembered_beyond_an_end():
    network = script.PartialNetwork([0, 2], (6, 5), 3, 1.0, "lstm")
    obs, state, ended = random_sequence()
    ended[:] = False
    ended[9, 1] = True
    outputs = network.sequences(obs.requires_grad_(), state, ended)
    (slopes,) = torch.autograd.grad(outputs[15].sum(), obs)
    before = slopes[:10].abs().amax((0, 2))
    assert before[1] == 0 and (before[[0, 2, 3]] > 0).all()
    assert (slopes[10:16, :, [0, 2]] != 0).any(2).all()


@pytest.mark.parametrize("memory", ["lstm", "none"])
@pytest.mark.parametrize("critic", ["full", "student"])
def test_what_is_hidden_cannot_reach_the_student(memory, critic):
    """No gradient leads there, and no value there, not even NaN, changes what the student does."""
    agent = script.PartialAgent(*BOUNDS, 4, [0, 2], (6, 5), memory, critic)
    obs, _, ended = random_sequence()
    rest = torch.zeros(2, 4, 5), ended
    means = agent.actor.sequences(obs.requires_grad_(), *rest)
    values = agent.critic.sequences(obs, *rest)
    for outputs, sees in ((means, False), (values, critic == "full")):
        (slopes,) = torch.autograd.grad(outputs.square().sum(), obs, retain_graph=True)
        assert (slopes[:, :, [0, 2]] != 0).any()
        assert (slopes[:, :, [1, 3]] != 0).any() == sees
    other = obs.detach().clone()
    other[:, :, [1, 3]] = np.nan
    assert torch.equal(agent.actor.sequences(other, *rest), means)
    agent.reset(ended[0])  # before any state is there
    acted = [agent.act(o.numpy()) for o in obs.detach()]
    agent.reset()
    np.testing.assert_array_equal([agent.act(o.numpy()) for o in other], acted)


@pytest.mark.parametrize(
    "robot", ["Ant", "HalfCheetah", "Hopper", "Humanoid", "Swimmer", "Walker2d"]
)
@pytest.mark.parametrize("version", ["v4", "v5"])
def test_positions_are_the_simulators(robot, version):
    env = script.make_mujoco_env(f"{robot}-{version}")
    obs, data = env.reset(seed=1)[0], env.unwrapped.data
    seen, rest, whole = (
        script.find_observed(name, env.spec.id, len(obs))
        for name in ("positions", "velocities", "all")
    )
    np.testing.assert_array_equal(obs[seen], data.qpos[-len(seen) :])
    assert len(data.qpos) - len(seen) in (1, 2)  # x, or x and y, are in no observation
    np.testing.assert_allclose(obs[rest[: len(data.qvel)]], data.qvel.clip(-10, 10))
    assert whole == seen + rest == list(range(len(obs)))
    with pytest.raises(script.UserError, match="give all, or indices"):  # of unknown order
        script.find_observed("positions", f"{robot}-Tall-{version}", len(obs))


def walk(weights, net, obs, state, ended):
    """A network of the agent, step after step, in NumPy: outputs, states after each step, state."""
    w = {name[len(net) + 1 :]: array for name, array in weights.items() if name.startswith(net)}
    sigmoid, outputs, after = lambda x: 1 / (1 + np.exp(-x)), [], []
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
    helpers.use_fake_envs(script, monkeypatch)
    monkeypatch.setattr(script, "SummaryWriter", helpers.NoWriter)
    steps, orders, ratios, adam_step, randperm = [], [], [], torch.optim.Adam.step, torch.randperm
    surrogate = script.clipped_surrogate_loss

    def record_step(self):
        group = self.param_groups[0]["params"]
        steps.append([(p.detach().double().numpy().copy(), p.grad.numpy().copy()) for p in group])
        return adam_step(self)

    record_order = lambda *a, **k: orders.append(randperm(*a, **k)) or orders[-1]
    record_ratio = lambda ratio, *rest: ratios.append(ratio.detach()) or surrogate(ratio, *rest)
    monkeypatch.setattr(torch.optim.Adam, "step", record_step)
    monkeypatch.setattr(torch, "randperm", record_order)
    monkeypatch.setattr(script, "clipped_surrogate_loss", record_ratio)
    teacher = make_teacher("mujoco", tmp_path / "teacher.safetensors", sizes=(3, 2)).double()
    values = {"num_envs": N, "num_steps": T, "total_timesteps": 2 * T * N, "minibatch_size": 20}
    # Of four units a sample may wake none: all that follows is then 0, where ReLU has no slope.
    values |= {"hidden_sizes": (6, 3), "learning_rate": 0.03, "gamma": 0.8, "ent_coef": 0.1}
    values |= {"pg_coef": 0.7, "distill_lambda": 1.5, "observe": "0,2", "max_grad_norm": 1e9}
    args = make_args(script, "mujoco", tmp_path / "run", **values | changes)
    script.train(args)

    sizes = [0, 2], args.hidden_sizes, args.memory, args.critic
    names = [name for name, _ in script.PartialAgent(*BOUNDS, 3, *sizes).named_parameters()]
    normalize = lambda obs: teacher.normalize(obs).double().numpy()
    seen = {"actor": [0, 2], "critic": [0, 1, 2] if args.critic == "full" else [0, 2]}
    run_net = lambda w, net, obs, *rest: walk(w, net, obs[..., seen[net]], *rest)
    states, scale, played = (
        dict.fromkeys(seen, np.zeros((2, N, 3))),
        oracle.RewardScale(N),
        FakeEnvs.made,
    )
    assert len(steps) == len(ratios) == 12
    for k in range(2):
        rollout = played[0].steps[k * T : k * T + T]
        obs, reached, actions, raw, *ends = (
            np.array([step[name] for step in rollout])
            for name in ("obs", "reached", "actions", "rewards", "terminations", "truncations")
        )
        obs, reached, ended = normalize(obs), normalize(reached), ends[0] | ends[1]
        first, policy = states, dict(zip(names, [value for value, _ in steps[6 * k]], strict=True))
        walked = {net: run_net(policy, net, obs, first[net], ended) for net in seen}
        (means, _, actor_state), (values, after, critic_state) = walked.values()
        values, states = values[..., 0], {"actor": actor_state, "critic": critic_state}
        # V of what each step led to: the next observation, or an episode's final one.
        led_to = [
            run_net(policy, "critic", reached[None, t], after[t], ended[:1]) for t in range(T)
        ]
        next_values = np.array([outputs[0, :, 0] for outputs, *_ in led_to])
        rewards = np.array([scale(*row) for row in zip(raw, ended, strict=True)])
        advantages = oracle.gae(rewards, values, next_values, ends[0], ended, 0.8, 0.9)
        logprobs = oracle.Gaussian.log_prob(means, policy["log_std"], actions)
        batch = {"actions": actions, "logprobs": logprobs, "advantages": advantages}
        batch |= {"teacher_outputs": teacher.actor(torch.tensor(obs)).detach().numpy()}
        batch["returns"] = advantages + values
        np.testing.assert_allclose(ratios[6 * k], 1, rtol=0, atol=1e-5)
        minibatches = [mb for order in orders[2 * k : 2 * k + 2] for mb in order.split(2)]
        for mb, step in zip(map(np.array, minibatches), steps[6 * k : 6 * k + 6], strict=True):
            samples = {key: x[:, mb].reshape(-1, *x.shape[2:]) for key, x in batch.items()}
            samples["teacher_log_std"] = teacher.log_std.detach().numpy()

            def loss(*arrays, mb=mb, samples=samples, first=first, obs=obs, ended=ended):
                w = dict(zip(names, arrays, strict=True))
                outputs = [
                    run_net(w, n, obs[:, mb], first[n][:, mb], ended[:, mb])[0] for n in seen
                ]
                outputs = outputs[0].reshape(-1, 2), w["log_std"], outputs[1].ravel()
                terms = oracle.losses(oracle.Gaussian, samples, vars(args), *outputs)
                return {"loss": terms["loss"] + (args.pg_coef - 1) * terms["pg_loss"]}

            arrays, gradients = zip(*step, strict=True)
            slopes = oracle.gradients(loss, arrays)["loss"]
            for name, slope, gradient in zip(names, slopes, gradients, strict=True):
                np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=3e-5, err_msg=name)


@pytest.mark.parametrize("changes", [{"critic": "student"}, {}, {"memory": "none"}], ids=str)
def test_every_gradient_is_the_formulas(changes, monkeypatch, tmp_path):
    check_training(script, monkeypatch, tmp_path, **changes)


SLIPS = [("terminations[t] | truncations[t]] = 0", "terminations[t]] = 0")]
SLIPS += [(states, f"0 * {states}") for states in
          ("memory.states[1][:, truncated]", "first_states[:, :, mb]")]  # fmt: skip
SLIPS += [("ended.to(args.device)", "torch.zeros_like(ended)")]
SLIPS += [("state=mb_states[1]", "state=mb_states[0]"), ("args.pg_coef * pg_loss", "pg_loss")]


@pytest.mark.parametrize(("old", "new"), SLIPS)
def test_a_slip_is_seen(old, new, monkeypatch, tmp_path):
    changed = helpers.mutant(NAME, "learn", old, new)
    with pytest.raises(AssertionError):
        check_training(changed, monkeypatch, tmp_path, critic="student")


SHARED = [("adam = {", "memory ="), ("metrics, distill_lambda =", "for mb in")]
SHARED += [("entropy = ", "torch.set_num_threads(1)")]


@pytest.mark.parametrize(("first", "last"), SHARED)
def test_the_rest_of_the_loop_is_that_of_ppd_mujoco(first, last):
    """Adam, λ's schedule, entropy, KL, clips: held there, gradient by gradient."""
    parts = []
    for name in (NAME, "ppd_mujoco"):
        loop = helpers.definitions(helpers.read(name))["learn"].replace("header =", "memory =")
        start = loop.index(first)
        parts.append(loop[start : loop.index(last, start)])
    assert parts[0] == parts[1] and len(parts[0]) > 100


@pytest.mark.parametrize(("vf_coef", "blind"), [(0.0, True), (0.5, False)])
def test_distillation_alone_is_blind_to_reward(vf_coef, blind, monkeypatch, tmp_path):
    """But for the critic's share in the clip of the gradient's norm."""
    helpers.use_fake_envs(script, monkeypatch)
    teacher = tmp_path / "teacher.safetensors"
    make_teacher("mujoco", teacher, sizes=(3, 2))
    values = {"num_envs": N, "num_steps": T, "total_timesteps": 2 * T * N, "minibatch_size": 20}
    values |= {"hidden_sizes": (6, 3), "pg_coef": 0.0, "vf_coef": vf_coef, "observe": "0,2"}
    students = []
    for scale in (1, 100):
        monkeypatch.setattr(script.RewardNormalizer, "__call__", lambda self, r, _, s=scale: s * r)
        script.train(make_args(script, "mujoco", tmp_path / f"times-{scale}", **values))
        agent, _ = script.load_partial_agent(tmp_path / f"times-{scale}" / "agent.safetensors")
        students.append(torch.cat([p.flatten() for p in agent.actor.parameters()]))
    assert torch.equal(*students) == blind


def test_one_of_two_actions(tmp_path):
    """CartPole: actions are one-hot rows, as the teacher's are."""
    path, box = tmp_path / "teacher.safetensors", script.make_mujoco_env("CartPole-v1").action_space
    make_teacher("mujoco", path)
    header = script.load_mujoco_agent(path)[1] | {"env_id": "CartPole-v1", "hidden_sizes": [8]}
    teacher = script.MujocoAgent(box.low, box.high, 4, [8])
    helpers.save_agent(teacher, path, header)
    options = {"env_id": "CartPole-v1", "observe": "0,2", "total_timesteps": 64 * 10}
    result = script.train(make_args(script, "mujoco", tmp_path / "run", **options))
    assert all(8 <= score <= 500 for score in result["score"]["returns"])
    agent, _ = script.load_partial_agent(tmp_path / "run" / "agent.safetensors")
    actions = agent.act(np.zeros((3, 4)), deterministic=False)
    assert actions.shape == (3, 2) and (actions.sum(1) == 1).all() and (actions.max(1) == 1).all()
    assert agent.to(torch.bfloat16).state.dtype == torch.bfloat16  # memory moves with its agent
    assert "state" not in agent.state_dict()


def test_killed_and_resumed(tmp_path):
    """Bit for bit the run that never stopped: what the LSTMs remember is in the checkpoint."""
    options = {"total_timesteps": 64 * 30, "save_every": 0, "critic": "student"}
    whole = make_args(script, "mujoco", tmp_path / "whole", **options)
    stopped = make_args(script, "mujoco", tmp_path / "stopped", **options)
    script.train(whole)
    state, seen, deadline = (
        tmp_path / "stopped" / "training_state.pt",
        set(),
        time.monotonic() + 100,
    )
    with helpers.Process(helpers.command(script, "mujoco", stopped), cwd=tmp_path) as process:
        while len(seen) < 5 and process.poll() is None and time.monotonic() < deadline:
            if state.exists():
                seen.add(state.stat().st_mtime_ns)
            time.sleep(0.002)
        process.kill()
    assert len(seen) == 5 and not (tmp_path / "stopped" / "result.json").exists()
    assert torch.load(state, weights_only=True)["memory"]["states"].any()
    script.train(script.Args(resume=str(tmp_path / "stopped")))
    helpers.assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    a, b = read_result(tmp_path / "whole"), read_result(tmp_path / "stopped")
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


@pytest.mark.parametrize(
    ("changes", "low", "high"),
    [({}, 21.6, 24), ({"pg_coef": 0.0}, 21.6, 24), ({"distill_lambda": 0.0}, 21.6, 24)]
    + [({"memory": "none"}, 11, 15)],
    ids=str,
)
def test_memory_is_used(changes, low, high, monkeypatch, capsys, tmp_path):
    """By PPD, distillation alone and PPO; without it, 0 is the best answer, and scores about 13.

    evaluate.py repeats the final score: it too forgets where an episode ends.
    """
    monkeypatch.setitem(
        gym.registry, "Recall-v0", gym.envs.registration.EnvSpec("Recall-v0", Recall)
    )
    path = tmp_path / "teacher.safetensors"
    teacher = make_teacher("mujoco", path, sizes=(2, 1), env_id="Recall-v0", hidden_sizes=[2])
    answer = {"actor.0.weight": [[0, 1], [0, -1]], "actor.2.weight": [[1, -1]], "log_std": [-1]}
    answer |= {"actor.0.bias": [0, 0], "actor.2.bias": [0], "obs_mean": [0, 0], "obs_var": [1, 1]}
    state = teacher.state_dict() | {name: torch.tensor(x) for name, x in answer.items()}
    teacher.load_state_dict(state)  # x = relu(x) − relu(−x)
    helpers.save_agent(teacher, path, script.load_mujoco_agent(path)[1])
    options = {"env_id": "Recall-v0", "observe": "0", "num_envs": 16, "num_steps": 32, "gamma": 0.5}
    options |= {"minibatch_size": 128, "update_epochs": 4, "hidden_sizes": (32, 32), "episodes": 20}
    options |= {"learning_rate": 3e-3, "total_timesteps": 20_000}
    result = script.train(make_args(script, "mujoco", tmp_path / "run", **options | changes))
    assert result["teacher_score"]["mean"] > 23.99 and low < result["score"]["mean"] < high
    words = ["evaluate.py", str(tmp_path / "run" / "agent.safetensors"), "--episodes", "20"]
    monkeypatch.setattr("sys.argv", words)
    evaluate.main()
    assert f"| {script.score_text(result['score'])} |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--observe", "5,x"], "--observe 5,x: for Hopper-v4 give positions, velocities, all, or"),
        (["--observe", "0,11"], "or indices from 0 to 10, as 0,1,4"),
        (["--observe=-1"], "--observe -1: for Hopper-v4 give positions, velocities, all, or"),
        (["--env-id", "Pusher-v5"], "--observe positions: for Pusher-v5 give all, or indices from"),
    ],
)
def test_wrong_inputs(flags, words, monkeypatch, capsys, tmp_path):
    path = tmp_path / "teacher.safetensors"
    make_teacher("mujoco", path, sizes=(23, 7) if "--env-id" in flags else (11, 3))
    flags = [*flags, "--teacher", path, "--run-dir", tmp_path / "run"]
    flags += ["--total-timesteps", 1, "--episodes", 1]  # a run that is let through ends soon
    assert helpers.run_main(script, flags, monkeypatch) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and words in errors[0] and not (tmp_path / "run").exists()


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("memory", ["lstm", "none"])
def test_onnx_steps_as_the_agent(memory, discrete, monkeypatch, tmp_path):
    """Step by step `agent.act`, episodes that end inside, and NaN in what is hidden."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(4)
    path, out = tmp_path / "agent.safetensors", tmp_path / "agent.onnx"
    make_teacher("mujoco", path, sizes=(4, 2))
    bounds = [bound.to(torch.int8 if discrete else torch.float32) for bound in BOUNDS]
    sizes = {"observed": [0, 2], "hidden_sizes": [6, 5], "memory": memory, "critic": "full"}
    agent = script.PartialAgent(*bounds, 4, **sizes)
    agent.obs_var.copy_(torch.rand(4) + 0.5)
    agent.actor.head.weight.data.mul_(1000)  # some actions are clipped, and not all
    header = script.load_mujoco_agent(path)[1] | sizes | {"script": NAME}
    helpers.save_agent(agent, path, header)
    assert helpers.run_main(convert, ["export", path, "--out", out], monkeypatch) == 0
    session = onnxruntime.InferenceSession(out)
    lstm = memory == "lstm"
    assert [i.name for i in session.get_inputs()] == ["obs", "h_in", "c_in"][: 3 if lstm else 1]
    obs, _, ended = random_sequence()
    obs[:, :, [1, 3]] = torch.nan
    actions, state = [], [np.zeros((1, 4, 5), np.float32)] * 2 if lstm else []
    for seen, over in zip(obs.numpy(), ended.numpy(), strict=True):
        inputs = dict(zip(["h_in", "c_in"], state, strict=False))
        answers = session.run(None, {"obs": seen, **inputs})
        action = np.eye(2)[answers[0]] if discrete else answers[0]
        np.testing.assert_allclose(action, agent.act(seen), rtol=0, atol=1e-5)
        actions.append(action)
        state = [np.where(over[:, None], 0, part) for part in answers[1:]] if lstm else []
        agent.reset(over)
    assert discrete or 0 < (np.abs(actions) == 1).mean() < 1
    names = [output.name for output in session.get_outputs()]
    plain = ["action", "logits"] if discrete else ["action", "mean", "std"]
    assert names == (["actions", "h_out", "c_out"] if lstm else plain)


def test_a_file_that_is_no_student_is_refused(tmp_path):
    path = tmp_path / "agent.safetensors"
    make_teacher("mujoco", path)
    with pytest.raises(script.UserError, match="not a student of ppd_mujoco_lstm.py"):
        script.load_partial_agent(path)


def save_student(folder, sizes=(11, 3), **changes):
    """A student with random weights, and its teacher, as files; returns the student."""
    obs_dim, bounds = sizes[0], (-torch.ones(sizes[1]), torch.ones(sizes[1]))
    make_teacher("mujoco", folder / "teacher.safetensors")
    layers = {"observed": [0, 1, 2, 3, 4], "hidden_sizes": [16], "memory": "lstm", "critic": "full"}
    layers |= changes
    torch.manual_seed(5)
    student = script.PartialAgent(*bounds, obs_dim, **layers)
    for parameter in student.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    student.obs_mean.add_(1)
    header = script.load_mujoco_agent(folder / "teacher.safetensors")[1] | layers
    helpers.save_agent(student, folder / "start.safetensors", header | {"script": NAME})
    return student


@pytest.mark.parametrize("critic", ["full", "student"])
def test_init_and_critic_warmup(critic, tmp_path):
    """The policy starts as that of the file, and stays so while only the critic learns."""
    start = save_student(tmp_path, critic=critic).state_dict()
    options = {"init": str(tmp_path / "start.safetensors"), "critic_warmup": 192, "critic": "full"}
    script.train(make_args(script, "mujoco", tmp_path / "run", **options))
    agent, _ = script.load_partial_agent(tmp_path / "run" / "agent.safetensors")
    for name, tensor in agent.state_dict().items():
        is_critic = name.startswith("critic")
        assert is_critic or torch.equal(tensor, start[name]), name
        assert not is_critic or name not in start or not torch.equal(tensor, start[name]), name
    # Once the warm-up is over the policy learns too. All start from the file's weights.
    for warmup in (0, 128):
        options |= {"critic_warmup": warmup, "learning_rate": 1e-6}
        script.train(make_args(script, "mujoco", tmp_path / f"run-{warmup}", **options))
        agent, _ = script.load_partial_agent(tmp_path / f"run-{warmup}" / "agent.safetensors")
        for name, tensor in agent.state_dict().items():
            if critic == "full" or not name.startswith("critic"):
                torch.testing.assert_close(tensor, start[name], rtol=0, atol=1e-4)
        assert not torch.equal(agent.log_std, start["log_std"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observed": [0, 1]}, "its --observe is [0, 1], not [0, 1, 2, 3, 4]"),
        ({"hidden_sizes": [8]}, "its --hidden-sizes is [8], not [16]"),
        ({"memory": "none"}, "its --memory is none, not lstm"),
        ({"sizes": (11, 2)}, "is of Hopper-v4, with 11 observations and 2 actions; this"),
        ({"sizes": (12, 3)}, "is of Hopper-v4, with 12 observations and 3 actions; this"),
    ],
    ids=str,
)
def test_an_init_of_another_kind_is_refused(changes, words, tmp_path):
    save_student(tmp_path, **changes)
    args = make_args(script, "mujoco", tmp_path / "run", init=str(tmp_path / "start.safetensors"))
    with pytest.raises(script.UserError) as error:
        script.train(args)
    assert words in str(error.value) and not (tmp_path / "run").exists()
