"""ppd_mujoco_multi.py: what several tasks and teachers add to ppd_mujoco.py."""

import sys
import time

import gymnasium as gym
import helpers
import numpy as np
import pytest
import torch
from helpers import mutant, read_result, run_main
from safetensors.torch import load_file

import convert
import evaluate
import ppd_mujoco
import ppd_mujoco_multi as script

NAME = "ppd_mujoco_multi"
T, N = 20, 7


class Toy(gym.Env):
    """Rewards actions near `target`. An episode is `length` steps long, or ends by chance."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, target=0.5, factor=1.0, length=9):
        self.target, self.factor, self.length = target, factor, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.state = 0, self.np_random.normal(size=3)
        return self.state.copy(), {}

    def step(self, action):
        self.steps += 1
        reward = self.factor * (1 - np.abs(action - self.target).sum())
        self.state = 0.5 * self.state + np.append(action, 0) + self.np_random.normal(size=3) / 2
        return self.state.copy(), reward, self.state[2] > 1.5, self.steps >= self.length, {}


def register(env_id: str, env=Toy, **options) -> None:
    gym.register(env_id, env, kwargs=options)


register("ToyUp-v0", target=0.5)
register("ToyDown-v0", target=-0.5)
register("ToyMiddle-v0", target=0.1)
register("ToyLoud-v0", target=-0.5, factor=100.0)
TASKS = ("ToyUp-v0", "ToyDown-v0", "ToyMiddle-v0")
# Of each teacher: means and σ of its actions, mean and variance of its observations.
TEACHERS = [(0.5, 0.2, 1.0, 0.3), (-0.5, 0.4, -2.0, 1.3), (0.1, 0.3, 0.5, 2.3)]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> list[str]:
    """Files of teachers that differ in all that could be mixed up."""
    folder = tmp_path_factory.mktemp("teachers")
    for number, (mean, std, obs_mean, obs_var) in enumerate(TEACHERS):
        torch.manual_seed(number)
        agent = script.MujocoAgent(-torch.ones(2), torch.ones(2), 3, [8])
        agent.actor[-1].weight.data.mul_(20)
        agent.actor[-1].bias.data.fill_(mean)
        agent.log_std.data.fill_(np.log(std))
        agent.obs_mean.fill_(obs_mean)
        agent.obs_var.fill_(obs_var)
        agent.obs_count.fill_(10.0**number)
        header = {"format": "ppd-agent-2", "suite": "mujoco", "script": "ppo_teacher_mujoco"}
        header |= {"env_id": TASKS[number], "seed": number, "steps": 0, "deterministic": True}
        path = folder / f"{number}.safetensors"
        helpers.save_agent(agent, path, header | {"hidden_sizes": [8]})
    return [str(folder / f"{number}.safetensors") for number in range(3)]


def make_args(folder, teachers, module=script, **changes):
    """Arguments of one rollout of 140 steps in three tasks."""
    values = {"num_envs": N, "num_steps": T, "minibatch_size": 64, "total_timesteps": T * N}
    values |= {"hidden_sizes": (16,), "episodes": 2, "eval_every": 0, "num_workers": 1}
    values |= {"run_dir": str(folder), "env_ids": TASKS[: len(teachers)]}
    values |= {"teachers": tuple(teachers), "save_every": 1e9}
    return module.Args(**values | changes)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def weights_of(folder, name="agent") -> dict:
    return load_file(folder / f"{name}.safetensors")


# ------------------------------------------------------------------------------- The anchor
@pytest.mark.parametrize("changes", [{}, {"kl": "reverse", "ratio_gradient": True}], ids=str)
def test_one_pair_is_ppd_mujoco(changes, tmp_path):
    """Weights, curve, evaluations and scores, bit for bit; the task's file is the agent's."""
    helpers.make_teacher("mujoco", tmp_path / "teacher.safetensors")
    options = {"ratio_gradient": False, "total_timesteps": 500, "eval_every": 128, "pg_coef": 0.7}
    options |= {"distill_lambda_final": 0.5, "ent_coef": 0.01, "num_workers": 2} | changes
    plain = helpers.make_args(ppd_mujoco, "mujoco", tmp_path / "plain", **options)
    values = {
        name: value for name, value in vars(plain).items() if name not in ("env_id", "teacher")
    }
    values |= {"env_ids": (plain.env_id,), "teachers": (plain.teacher,)}
    a = ppd_mujoco.train(plain)
    b = script.train(script.Args(**values | {"run_dir": str(tmp_path / "multi")}))
    weights = weights_of(tmp_path / "plain")
    assert same(weights, weights_of(tmp_path / "multi"))
    assert same(weights, weights_of(tmp_path / "multi", "Hopper-v4"))
    assert len(a["evaluations"]) == 4 and a["evaluations"] == b["evaluations/Hopper-v4"]
    assert a["curve"] == b["curve"] and a["score"] == b["scores"]["Hopper-v4"]
    assert a["teacher_score"] == b["teacher_scores"]["Hopper-v4"]


def test_killed_and_resumed(teachers, tmp_path):
    """Bit for bit the run that never stopped, with weights that its first rollout decided."""
    options = {"kl": "reverse", "total_timesteps": T * N * 30, "save_every": 1e-9}
    script.train(make_args(tmp_path / "whole", teachers, **options))
    args = make_args(tmp_path / "stopped", teachers, **options)
    state, seen, deadline = (
        tmp_path / "stopped" / "training_state.pt",
        set(),
        time.monotonic() + 200,
    )
    code = """
        import sys
        from test_multi import make_args, script
        script.train(make_args(sys.argv[1], sys.argv[3:], **eval(sys.argv[2])))
    """
    with helpers.run_python(code, args.run_dir, options, *teachers) as process:
        while len(seen) < 5 and process.poll() is None and time.monotonic() < deadline:
            if state.exists():
                seen.add(state.stat().st_mtime_ns)
            time.sleep(0.002)
        process.kill()
    assert len(seen) == 5 and not (tmp_path / "stopped" / "result.json").exists()
    assert torch.load(state, weights_only=True)["weights"]["values"].std() > 0.1
    script.train(script.Args(resume=str(tmp_path / "stopped")))
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped"))
    a, b = read_result(tmp_path / "whole"), read_result(tmp_path / "stopped")
    assert all(a[name] == b[name] for name in ("scores", "teacher_scores", "curve", "steps"))


# ------------------------------------------------------------------------------- Who plays what
def check_environments(module, workers):
    """Step by step the environment of that id alone, with its task's column; ends too."""
    with module.TaskVectorEnv(module.Pairs(TASKS, N), workers) as envs:
        alone = [gym.make(TASKS[n % 3], disable_env_checker=True) for n in range(N)]
        columns = np.eye(3)[np.arange(N) % 3]
        obs, _ = envs.reset(seed=3)
        first = [env.reset(seed=3 + n)[0] for n, env in enumerate(alone)]
        np.testing.assert_array_equal(obs, np.hstack([first, columns]))
        rng, ends = np.random.default_rng(0), 0
        for _ in range(30):
            actions = rng.uniform(-1, 1, (N, 2)).astype(np.float32)
            obs, rewards, terminations, truncations, infos = envs.step(actions)
            np.testing.assert_array_equal(obs[:, 3:], columns)
            for n, env in enumerate(alone):
                own, reward, *over, _ = env.step(actions[n])
                assert rewards[n] == reward and [terminations[n], truncations[n]] == over
                if any(over):
                    np.testing.assert_array_equal(infos["final_obs"][n], [*own, *columns[n]])
                    own, ends = env.reset()[0], ends + 1
                np.testing.assert_array_equal(obs[n, :3], own)
        assert ends > 20 and envs.single_observation_space.shape == (6,)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_environment_plays_its_task(workers):
    check_environments(script, workers)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pairs.env_ids[task]", "pairs.env_ids[0]"),
        ("pairs.columns[task]", "pairs.columns[task - 1]"),
        ("in pairs.task_of_env", "in sorted(pairs.task_of_env)"),
    ],
)
def test_another_environment_is_seen(old, new):
    with pytest.raises(AssertionError):
        check_environments(mutant(NAME, "TaskVectorEnv", old, new), 2)


def check_rows(module, teachers, folder, monkeypatch):
    """Teacher and student of every row of a rollout, and of every minibatch, are its own."""
    rollout, calls, kls = [], [], []
    step, policy_kl = module.MujocoVectorEnv.step, module.policy_kl
    distillation_loss = module.distillation_loss

    def spy_step(envs, actions):
        if envs.num_envs == N:
            rollout.append(envs.obs.copy())
        return step(envs, actions)

    def spy_kl(*dists):
        bases = [dist.base_dist for dist in dists[:2]]
        calls.append([(base.loc.detach().clone(), base.scale.detach().clone()) for base in bases])
        kls.append(policy_kl(*dists))
        return kls[-1]

    def spy_loss(kl, *rest):
        ratios.append((kl / kls[-1]).detach())
        return distillation_loss(kl, *rest)

    ratios, options = [], {"weights": (0.5, 1.0, 2.0), "learning_rate": 1e-9}
    monkeypatch.setattr(module.MujocoVectorEnv, "step", spy_step)
    monkeypatch.setattr(module, "policy_kl", spy_kl)
    monkeypatch.setattr(module, "distillation_loss", spy_loss)
    start = folder / "start.safetensors"
    save_student(start)
    options["init"] = str(start)
    module.train(make_args(folder / "run", teachers, module, **options))
    student, _ = script.load_multi_agent(start)
    loaded = [script.load_mujoco_agent(path)[0] for path in teachers]
    (whole_teacher, whole_student), minibatches = calls[0], calls[1:]
    for t, row in np.ndindex(T, N):
        obs, b = rollout[t][row], t * N + row
        np.testing.assert_array_equal(obs[3:], np.eye(3)[row % 3])
        teacher = loaded[row % 3].policy(obs[None, :3]).base_dist
        own = student.policy(obs[None]).base_dist
        for (loc, scale), dist in [(whole_teacher, teacher), (whole_student, own)]:
            torch.testing.assert_close(loc[b], dist.loc[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(scale[b], dist.scale[0], rtol=0, atol=1e-6)
    # Rows of a minibatch are rows of the rollout: teacher, student and weight of one and the same.
    table = torch.cat([torch.cat(whole_teacher, 1), torch.cat(whole_student, 1)], 1)
    pair_weights = torch.tensor([0.5, 1.0, 2.0])[torch.arange(T * N) % N % 3]
    assert len(minibatches) == len(ratios) == 4 * 3
    for (teacher, own), ratio in zip(minibatches, ratios, strict=True):
        rows = torch.cat([torch.cat(teacher, 1), torch.cat(own, 1)], 1)
        distances, places = torch.cdist(rows.double(), table.double()).min(1)
        assert distances.max() < 1e-4 and len(set(places.tolist())) == len(rows)
        torch.testing.assert_close(ratio, pair_weights[places], rtol=1e-5, atol=0)


def save_student(path, tasks=TASKS, hidden_sizes=(16,)) -> None:
    """A student with random weights and log σ, as this script saves it."""
    torch.manual_seed(3)
    sizes = 3, list(hidden_sizes), len(tasks)
    student = script.MultiTaskAgent(-torch.ones(2), torch.ones(2), *sizes)
    for parameter in student.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    header = {"format": "ppd-agent-2", "suite": "mujoco", "script": NAME, "tasks": [*tasks]}
    header |= {"env_id": "--".join(tasks), "seed": 1, "steps": 0, "deterministic": True}
    helpers.save_agent(student, path, header | {"hidden_sizes": [*hidden_sizes]})


def test_each_row_has_its_own_teacher_and_task(teachers, tmp_path, monkeypatch):
    check_rows(script, teachers, tmp_path, monkeypatch)


SLIPS = [
    ("learn", "b_teacher_means[b_pair == p] =", "b_teacher_means[b_pair != p] ="),
    ("learn", "teacher.normalize(b_obs[", "agent.normalize(obs.flatten(0, 1)["),
    ("learn", "for teacher in teachers])[b_pair]", "for teacher in teachers])[b_pair * 0]"),
    ("learn", "b_teacher_log_std[mb]", "b_teacher_log_std[: len(mb)]"),
    ("learn", "pairs.pair_of_env, device=args.device).repeat(T)",
     "pairs.pair_of_env, device=args.device).repeat_interleave(T)"),
    ("learn", "agent.actor(norm_obs), agent.log_std_of(norm_obs)",
     "agent.actor(norm_obs), agent.log_std[0]"),
    ("learn", "weights.values[b_pair[mb]]", "weights.values[b_pair[: len(mb)]]"),
    ("learn", "weights.values[b_pair[mb]]", "1"),
    ("MultiTaskAgent", ".argmax(1)", ".argmin(1)"),
    ("TaskVectorEnv", "pairs.columns[task]", "pairs.columns[0]"),
    ("TaskVectorEnv", "for task in pairs.task_of_env", "for task in sorted(pairs.task_of_env)"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "old", "new"), SLIPS)
def test_a_mix_up_is_seen(function, old, new, teachers, tmp_path, monkeypatch):
    changed = mutant(NAME, function, old, new)
    with pytest.raises((AssertionError, RuntimeError)):
        check_rows(changed, teachers, tmp_path, monkeypatch)


def check_advantages(module, teachers, folder, monkeypatch) -> list:
    """What `compute_gae` is given, where V is the number of the row's task."""
    found, compute_gae = [], module.compute_gae

    def spy(rewards, values, next_values, terminations, ended, *rest):
        found.append([x.clone() for x in (rewards, values, next_values, terminations, ended)])
        return compute_gae(rewards, values, next_values, terminations, ended, *rest)

    class TaskNumber(torch.nn.Linear):
        def forward(self, norm_obs):
            return norm_obs[:, 3:].argmax(1, keepdim=True) + 0.0 * super().forward(norm_obs)

    monkeypatch.setattr(module, "compute_gae", spy)
    make_mlp = module.make_mlp

    def task_critic(inputs, hidden_sizes, outputs, *rest):
        is_student = outputs == 1 and inputs == 5
        return TaskNumber(5, 1) if is_student else make_mlp(inputs, hidden_sizes, outputs, *rest)

    monkeypatch.setattr(module, "make_mlp", task_critic)
    monkeypatch.setattr(module, "students_of", lambda agent: [agent, agent])
    monkeypatch.setattr(module, "evaluate", helpers.no_score)
    module.train(make_args(folder, teachers[:2], module, env_ids=("ToyUp-v0", "ToyLoud-v0")))
    return found[0]


def test_final_observations_keep_their_task(teachers, tmp_path, monkeypatch):
    """At time limits, at the end of a rollout, and everywhere else."""
    _, values, next_values, terminations, ended = check_advantages(
        script, teachers, tmp_path / "run", monkeypatch
    )
    tasks = (torch.arange(N) % 2).expand(T, N).float()
    assert (ended & ~terminations).sum() > 3
    assert torch.equal(values, tasks)
    assert torch.equal(next_values[~terminations], tasks[~terminations])


def check_reward_scales(module, teachers, folder, monkeypatch):
    """Rewards that are 100 times as large in one task are scaled like those of the other."""
    rewards, *_ = check_advantages(module, teachers, folder, monkeypatch)
    for task in (0, 1):
        assert 0.2 < rewards[:, task::2].abs().mean() < 3, task


def test_each_task_has_its_own_reward_scale(teachers, tmp_path, monkeypatch):
    check_reward_scales(script, teachers, tmp_path / "run", monkeypatch)


def test_one_reward_scale_for_all_is_seen(teachers, tmp_path, monkeypatch):
    changed = mutant(NAME, "learn", "TaskRewardNormalizer(pairs)", "RewardNormalizer(N)")
    with pytest.raises(AssertionError):
        check_reward_scales(changed, teachers, tmp_path / "run", monkeypatch)


def check_pooled_statistics(module):
    """The moments of all observations put together, if each teacher saw equally many."""
    rng, agents, data = np.random.default_rng(0), [], []
    for number in range(3):
        data.append(rng.normal(number, 1 + number, (1000, 3)))
        agents.append(module.MujocoAgent(-torch.ones(2), torch.ones(2), 3, [4]))
        agents[-1].obs_mean.copy_(torch.tensor(data[-1].mean(0)))
        agents[-1].obs_var.copy_(torch.tensor(data[-1].var(0)))
        agents[-1].obs_count.fill_(10.0**number)
    student = module.MultiTaskAgent(-torch.ones(2), torch.ones(2), 3, [4], 3)
    module.pool_statistics(student, agents)
    together = np.concatenate(data)
    np.testing.assert_allclose(student.obs_mean[:3], together.mean(0))
    np.testing.assert_allclose(student.obs_var[:3], together.var(0))
    assert student.obs_mean[3:].eq(0).all() and student.obs_var[3:].eq(1).all()
    obs = np.hstack([data[0][:50], np.tile(np.eye(3)[1], (50, 1))])
    assert torch.equal(student.normalize(obs)[:, 3:], torch.eye(3)[1].expand(50, 3))


def test_pooled_statistics():
    check_pooled_statistics(script)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("means.mean(0)", "sum(t.obs_mean * t.obs_count for t in teachers) / 111"),  # by count
        (" + (means - mean) ** 2", ""),
        ("(variances + (means - mean) ** 2).mean(0)", "variances[0]"),
    ],
)  # fmt: skip
def test_other_statistics_are_seen(old, new):
    with pytest.raises(AssertionError):
        check_pooled_statistics(mutant(NAME, "pool_statistics", old, new))


# ------------------------------------------------------------------------------- Weights
@pytest.mark.parametrize(
    ("options", "balanced"),
    [({}, False), ({"kl": "reverse"}, True), ({"kl": "reverse", "weights": (1, 1, 1)}, False)],
    ids=str,
)
def test_weights(options, balanced, teachers, tmp_path, monkeypatch):
    """Unset: 1; with the reverse KL 1 / KL of the first rollout, with mean 1, for the whole run."""
    kls, policy_kl = [], script.policy_kl

    def spy(*arguments):
        kls.append(policy_kl(*arguments).detach())
        return kls[-1] + 0 * policy_kl(*arguments)

    monkeypatch.setattr(script, "policy_kl", spy)
    script.train(make_args(tmp_path / "run", teachers, total_timesteps=3 * T * N, **options))
    found = torch.load(tmp_path / "run" / "training_state.pt", weights_only=True)["weights"][
        "values"
    ]
    kl = kls[0].view(T, N)
    inverse = torch.stack([1 / kl[:, p::3].mean() for p in range(3)])
    expected = inverse / inverse.mean() if balanced else torch.ones(3)
    torch.testing.assert_close(found, expected)
    assert not balanced or (found - 1).abs().max() > 0.3


# ------------------------------------------------------------------------------- What it learns
def test_each_task_is_learnt_from_its_own_teacher(teachers, tmp_path, capsys):
    """By distillation alone: means and σ of the teacher, in every task. Files and log name it."""
    options = {"total_timesteps": T * N * 100, "pg_coef": 0.0, "learning_rate": 3e-3}
    script.train(make_args(tmp_path / "run", teachers, **options))
    obs = np.random.default_rng(0).normal(size=(100, 3))
    for task, path, (_, std, *_) in zip(TASKS, teachers, TEACHERS, strict=True):
        student, header = ppd_mujoco.load_mujoco_agent(tmp_path / "run" / f"{task}.safetensors")
        teacher, _ = ppd_mujoco.load_mujoco_agent(path)
        difference = student.actor(student.normalize(obs)) - teacher.actor(teacher.normalize(obs))
        assert difference.abs().mean() < 0.6 * std, task
        assert abs(student.log_std.exp().mean() - std) < 0.3 * std, task
        assert header["env_id"] == task and "tasks" not in header
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[-4:-1]] == [*TASKS]
    result = read_result(tmp_path / "run")
    means = {
        task: [result[name][task]["mean"] for name in ("scores", "teacher_scores")]
        for task in TASKS
    }
    worst = min((own / teacher, task) for task, (own, teacher) in means.items() if teacher > 0)
    assert lines[-1] == f"worst fraction {worst[0]:.3f} ({worst[1]})"


def test_two_teachers_of_one_task(teachers, tmp_path):
    """There are no task columns; the better teacher is the one to be compared with."""
    ids = ("ToyUp-v0", "ToyUp-v0")
    options = {"total_timesteps": T * N * 60, "pg_coef": 0.0, "learning_rate": 3e-3}
    script.train(make_args(tmp_path / "run", teachers[:2], env_ids=ids, **options))
    student, header = script.load_multi_agent(tmp_path / "run" / "agent.safetensors")
    assert header["tasks"] == ["ToyUp-v0"] and len(student.obs_mean) == 3
    obs = np.random.default_rng(0).normal(size=(200, 3))
    mean = student.actor(student.normalize(obs)).mean().item()
    loaded = [script.load_mujoco_agent(path)[0] for path in teachers[:2]]
    low, high = sorted(t.actor(t.normalize(obs)).mean().item() for t in loaded)
    assert low + 0.1 < mean < high - 0.1  # between the two
    with script.MujocoVectorEnv("ToyUp-v0", 10, 1) as envs:
        best = max(script.evaluate(t, envs, 2, 100)["mean"] for t in loaded)
    assert read_result(tmp_path / "run")["teacher_scores"]["ToyUp-v0"]["mean"] == best


def test_one_of_two_actions(tmp_path):
    """CartPole and a heavier one: actions are one-hot rows, as the teachers' are."""
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv

    class HeavyCartPole(CartPoleEnv):
        gravity = 20.0

    gym.register("HeavyCartPole-v1", HeavyCartPole, max_episode_steps=100)
    ids, paths = ("CartPole-v1", "HeavyCartPole-v1"), []
    for env_id in ids:
        space = script.make_mujoco_env(env_id).action_space
        agent = script.MujocoAgent(space.low, space.high, 4, [8])
        paths.append(str(tmp_path / f"{env_id}.teacher"))
        header = {"format": "ppd-agent-2", "suite": "mujoco", "script": "ppo_teacher_mujoco"}
        header |= {"env_id": env_id, "seed": 1, "steps": 0, "deterministic": True}
        helpers.save_agent(agent, paths[-1], header | {"hidden_sizes": [8]})
    result = script.train(make_args(tmp_path / "run", paths, env_ids=ids))
    assert result["scores"].keys() == set(ids)
    agent, _ = script.load_multi_agent(tmp_path / "run" / "agent.safetensors")
    actions = agent.act(np.zeros((3, 6)), deterministic=False)
    assert actions.shape == (3, 2) and (actions.sum(1) == 1).all()


# ------------------------------------------------------------------------------- Files and scores
def check_evaluations(module, teachers, folder):
    """A run that is evaluated on the way has the same weights as one that is not."""
    options = {"total_timesteps": 5 * T * N}
    plain = make_args(folder / "plain", teachers, module, **options)
    module.train(plain)
    module.train(make_args(folder / "often", teachers, module, eval_every=T * N, **options))
    assert same(weights_of(folder / "plain"), weights_of(folder / "often"))


def test_evaluations_leave_the_run_alone(teachers, tmp_path):
    check_evaluations(script, teachers, tmp_path)
    result = read_result(tmp_path / "often")
    assert all(len(result[f"evaluations/{task}"]) == 5 for task in TASKS)


def test_an_evaluation_that_draws_is_seen(teachers, tmp_path):
    fork = "with torch.random.fork_rng([]):"
    changed = mutant(NAME, "students_of", fork, "with warnings.catch_warnings():")
    with pytest.raises(AssertionError):
        check_evaluations(changed, teachers, tmp_path)


def check_files(module, teachers, folder):
    """A task's file acts and values as the student does with that task's column."""
    module.train(make_args(folder / "run", teachers, module, total_timesteps=5 * T * N))
    agent, header = module.load_multi_agent(folder / "run" / "agent.safetensors")
    assert header["tasks"] == [*TASKS] and agent.log_std.shape == (3, 2)
    obs = np.random.default_rng(0).normal(size=(100, 3)) * 3
    for number, task in enumerate(TASKS):
        single, _ = ppd_mujoco.load_mujoco_agent(folder / "run" / f"{task}.safetensors")
        columns = np.hstack([obs, np.tile(np.eye(3)[number], (100, 1))])
        own, all_tasks = single.policy(obs).base_dist, agent.policy(columns).base_dist
        torch.testing.assert_close(own.loc, all_tasks.loc)
        assert torch.equal(own.scale, all_tasks.scale)
        torch.testing.assert_close(single.value(obs), agent.value(columns), rtol=0, atol=1e-4)


def test_a_tasks_file_is_the_student_of_that_task(teachers, tmp_path):
    check_files(script, teachers, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" + weight[:, obs_dim + task]", ""),
        ("weight[:, obs_dim + task]", "weight[:, obs_dim]"),
        ("agent.log_std[task]", "agent.log_std[0]"),
        ('("actor.0", "critic.0")', '("actor.0",)'),
    ],
)
def test_another_students_file_is_seen(old, new, teachers, tmp_path):
    with pytest.raises((AssertionError, RuntimeError)):
        check_files(mutant(NAME, "students_of", old, new), teachers, tmp_path)


def test_evaluate_and_convert_take_the_files(teachers, tmp_path, monkeypatch, capsys):
    """evaluate.py repeats the final scores: of a task's file, and task by task of the student."""
    script.train(make_args(tmp_path / "run", teachers, episodes=3))
    scores = read_result(tmp_path / "run")["scores"]
    capsys.readouterr()
    files = [tmp_path / "run" / f"{name}.safetensors" for name in (*TASKS, "agent")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, files), "--episodes", "3"])
    evaluate.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 6
    for row, task in zip(rows, TASKS * 2, strict=True):
        assert f"| {task} |" in row and f"| {script.score_text(scores[task])} |" in row
    pytest.importorskip("onnxruntime")
    words = ["export", files[1], "--out", tmp_path / "task.onnx"]
    assert run_main(convert, words, monkeypatch) == 0
    words = ["export", files[3], "--out", tmp_path / "all.onnx"]
    assert run_main(convert, words, monkeypatch) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "several tasks; give the file of a task, such as ToyUp-v0.safetensors" in errors[-1]
    words = [files[3], "--episodes", 1, "--env-id", TASKS[1]]
    assert run_main(evaluate, words, monkeypatch) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 1 and f"| {TASKS[1]} |" in rows[0]
    assert run_main(evaluate, [*words[:-1], "Hopper-v4"], monkeypatch) == 2
    assert f"learned {', '.join(TASKS)}; give one of these" in capsys.readouterr().err


def test_init(teachers, tmp_path):
    """The student starts as that of the file; a warm-up leaves its policy as it was."""
    start = tmp_path / "start.safetensors"
    save_student(start)
    options = {"init": str(start), "total_timesteps": 2 * T * N, "critic_warmup": 2 * T * N}
    script.train(make_args(tmp_path / "run", teachers, **options))
    before, after = load_file(start), weights_of(tmp_path / "run")
    for name in before:
        assert torch.equal(before[name], after[name]) == (not name.startswith("critic")), name


# ------------------------------------------------------------------------------- Wrong inputs
def test_wrong_inputs(teachers, tmp_path, refused):
    up, down, middle = teachers
    ids = ["--env-ids", *TASKS, "--run-dir", tmp_path / "run"]
    refused(script, [*ids, "--teachers", down, up, middle], "in the order of --env-ids")
    refused(
        script, [*ids, "--teachers", up, down], "there are 2; give 3, one for each of --env-ids"
    )
    refused(script, [*ids, "--teachers", *teachers, "--weights", 1, 2], "--weights: there are 2")
    refused(script, [*ids, "--teachers", *teachers, "--num-envs", 2], "--num-envs 2", "at least 3")
    refused(script, [*ids, "--teachers", up, down, tmp_path / "x"], "x: not an agent.safetensors")
    refused(script, ids, "ToyUp-v0.safetensors: not an agent.safetensors", "train a teacher")
    one = ["--run-dir", tmp_path / "run", "--teachers", up, down, "--env-ids", TASKS[0]]
    refused(script, [*one, "Hopper-v4"], "Hopper-v4: other observations or actions than ToyUp-v0")
    refused(script, [*one, "Nothing-v4"], "Nothing-v4")
    refused(script, one, "there are 2; give 1")
    refused(script, ["--env-ids", "--run-dir", tmp_path / "run"], "--env-ids is empty")
    helpers.make_teacher("mujoco", tmp_path / "hopper.safetensors")
    refused(
        script, [*one, TASKS[1], "--teachers", up, tmp_path / "hopper.safetensors"], "Hopper-v4"
    )
    lstm = helpers.load("ppd_mujoco_lstm")
    layers = {"observed": [0, 1], "hidden_sizes": [8], "memory": "lstm", "critic": "full"}
    student = lstm.PartialAgent(-torch.ones(2), torch.ones(2), 3, **layers)
    header = script.load_mujoco_agent(up)[1] | layers | {"script": "ppd_mujoco_lstm"}
    helpers.save_agent(student, tmp_path / "lstm.safetensors", header)
    lstm_ids = ["--env-ids", *TASKS[:2], "--run-dir", tmp_path / "run", "--teachers"]
    refused(script, [*lstm_ids, tmp_path / "lstm.safetensors", down], "lstm.safetensors")
    save_student(tmp_path / "other.safetensors", tasks=TASKS[::-1])
    other = ["--teachers", *teachers, "--init", tmp_path / "other.safetensors"]
    refused(script, [*ids, *other], "--init", f"give its --env-ids {' '.join(TASKS[::-1])}")
    save_student(tmp_path / "wide.safetensors")
    wide = ["--teachers", *teachers, "--init", tmp_path / "wide.safetensors"]
    refused(script, [*ids, *wide], "give its --hidden-sizes 16")
    refused(script, [*ids, *wide[:4], "--init", up], "not an agent.safetensors of ppd_mujoco_multi")
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_task_is_a_warning(teachers, tmp_path, capsys):
    ids = ("ToyUp-v0", "ToyLoud-v0")
    script.train(make_args(tmp_path / "run", teachers[:2], env_ids=ids))
    warnings = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert warnings == ["WARNING: the teacher of ToyLoud-v0 was trained in ToyDown-v0"]


def test_the_default_is_the_pair_of_cheetahs():
    args = script.Args()
    assert args.env_id == "HalfCheetah-v4--HalfCheetahBackward-v4" and not args.ratio_gradient
    envs = [script.make_mujoco_env(env_id) for env_id in args.env_ids]
    forward, backward = (env.unwrapped._forward_reward_weight for env in envs)
    assert forward == -backward == 1
