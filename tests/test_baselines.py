"""student_distill.py and teacher_distill.py: who acts, what is learned from, and that it works."""

import numpy as np
import oracle
import pytest
import torch
from helpers import (
    ROOT,
    FakeEnvs,
    NoWriter,
    load,
    mutant,
    read_result,
    run_main,
    save_mujoco_teacher,
    use_fake_envs,
)

NAMES = ["student_distill", "teacher_distill"]
T, N = 3, 4


def run_train(script, monkeypatch, tmp_path, **changed):
    """Three updates of the real loop on fake environments; what they saw and what Adam got."""
    use_fake_envs(script, monkeypatch)
    monkeypatch.setattr(script, "SummaryWriter", NoWriter)
    updates, actors, loaded = [], [], []

    def record_step(self, closure=None):
        group = self.param_groups[0]["params"]
        updates.append([(p.detach().clone(), p.grad.clone()) for p in group])
        return step(self, closure)

    def record_actor(agent, outputs):
        actors.append(agent)
        return sample(agent, outputs)

    def record_teacher(*arguments):
        loaded.append(load_teacher(*arguments))
        return loaded[-1]

    step, sample = torch.optim.Adam.step, script.MujocoAgent.sample
    load_teacher = script.load_mujoco_teacher
    monkeypatch.setattr(torch.optim.Adam, "step", record_step)
    monkeypatch.setattr(script.MujocoAgent, "sample", record_actor)
    monkeypatch.setattr(script, "load_mujoco_teacher", record_teacher)
    path = tmp_path / "teacher.safetensors"
    original = save_mujoco_teacher(script, path)
    values = {"num_envs": N, "num_steps": T, "total_timesteps": 3 * T * N, "hidden_sizes": (4, 3)}
    values |= {"learning_rate": 0.03, "ent_coef": 0.1, "episodes": 1, "torch_threads": 1}
    values |= {"num_workers": 1, "run_dir": str(tmp_path / "run"), "teacher": str(path)}
    args = script.MujocoArgs(**values | changed)
    result = script.train(args)
    return args, original, loaded[0][0], FakeEnvs.made[0].steps, updates, actors, result


def oracle_loss(args, teacher, outputs, log_std, values):
    """Algorithms 2 and 3 in float64: mean KL − α·mean H + c_v·mean (V − V_T)²."""
    student, theirs = (outputs, log_std), (teacher["outputs"], teacher["log_std"])
    pair = (theirs, student) if args.kl == "forward" else (student, theirs)
    entropy = np.mean(oracle.Gaussian.entropy(outputs, log_std))
    loss = np.mean(oracle.Gaussian.kl(*pair)) - args.ent_coef * entropy
    return {"loss": loss + args.vf_coef * np.mean((values - teacher["values"]) ** 2)}


def check_updates(script, args, teacher, steps, updates):
    """Each gradient is the oracle's, from a student with the teacher's statistics."""
    teacher = teacher.double()
    assert len(updates) == 3 and len(steps) == 3 * T
    for iteration, update in enumerate(updates):
        rollout = steps[iteration * T : (iteration + 1) * T]
        obs = torch.from_numpy(np.concatenate([step["obs"] for step in rollout]))
        sizes = len(teacher.obs_mean), args.hidden_sizes
        agent = script.MujocoAgent(-torch.ones(2), torch.ones(2), *sizes).double()
        agent.obs_mean.copy_(teacher.obs_mean)
        agent.obs_var.copy_(teacher.obs_var)
        with torch.no_grad():
            for parameter, (value, _) in zip(agent.parameters(), update, strict=True):
                parameter.copy_(value)
            answers = {"outputs": teacher.policy_outputs(obs), "values": teacher.value(obs)}
            answers |= {"log_std": teacher.log_std}
            answers = {name: answer.numpy() for name, answer in answers.items()}
        outputs, values = agent.policy_outputs(obs), agent.value(obs)
        variables = [x.detach().numpy() for x in (outputs, agent.log_std, values)]
        function = lambda *a, answers=answers: oracle_loss(args, answers, *a)
        slopes = map(torch.from_numpy, oracle.gradients(function, variables)["loss"])
        torch.autograd.backward([outputs, agent.log_std, values], list(slopes))
        expected = [p.grad for p in agent.parameters()]
        norm = torch.cat([g.flatten() for g in expected]).norm().item()
        scale = min(1, args.max_grad_norm / (norm + 1e-6))
        for (_, gradient), g in zip(update, expected, strict=True):
            np.testing.assert_allclose(gradient, g * scale, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changed", [{}, {"max_grad_norm": 1e9}, {"kl": "reverse"}], ids=str)
def test_every_gradient_is_the_oracles(name, changed, monkeypatch, tmp_path):
    script = load(name)
    args, teacher, _, steps, updates, _, _ = run_train(script, monkeypatch, tmp_path, **changed)
    check_updates(script, args, teacher, steps, updates)


MUTATIONS = [
    ("train", "teacher_values = teacher.value(b_obs)", "teacher_values = agent.value(b_obs)"),
    ("train", "agent.value(b_obs), teacher_values)", "agent.value(b_obs), 0 * teacher_values)"),
    ("train", "args.ent_coef, args.vf_coef)", "args.ent_coef, 1.0)"),
    ("train", "args.ent_coef, args.vf_coef)", "0.0, args.vf_coef)"),
    ("train", "student_dist, args.kl)", "student_dist, 'reverse')"),
    ("train", "teacher.policy_outputs(b_obs)", "agent.policy_outputs(b_obs)"),
    ("train", "teacher.distribution(", "agent.distribution("),
    ("train", "optimizer.zero_grad()", "None"),
    ("train", "obs[t] = torch.from_numpy(next_obs)", "obs[0] = torch.from_numpy(next_obs)"),
    ("build_mujoco", '("obs_mean", "obs_var", "obs_count")', "()"),
    ("supervised_loss", "kl.mean()", "kl.sum()"),
    ("supervised_loss", "- ent_coef", "+ ent_coef"),
    ("supervised_loss", "vf_coef * v_loss", "v_loss"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_changed_update_is_seen(name, mutation, monkeypatch, tmp_path):
    script = mutant(name, *mutation)
    with pytest.raises(AssertionError):
        args, teacher, _, steps, updates, _, _ = run_train(script, monkeypatch, tmp_path)
        check_updates(script, args, teacher, steps, updates)


@pytest.mark.parametrize("name", NAMES)
def test_who_acts(name, monkeypatch, tmp_path):
    """And whose returns the curve shows is said beside it."""
    _, _, teacher, steps, _, actors, result = run_train(load(name), monkeypatch, tmp_path)
    by_teacher = name == "teacher_distill"
    assert len(actors) == len(steps) == 3 * T
    assert all((actor is teacher) == by_teacher for actor in actors)
    who, other = ("teacher", "student") if by_teacher else ("student", "teacher")
    assert result["curve_of"] == who
    assert f"charts/{who}_episodic_return" in NoWriter.scalars
    assert f"charts/{other}_episodic_return" not in NoWriter.scalars
    assert "eval/student_return" in NoWriter.scalars


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_stays_as_it_is(name, monkeypatch, tmp_path):
    _, original, teacher, *_ = run_train(load(name), monkeypatch, tmp_path)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    for key, tensor in original.state_dict().items():
        assert torch.equal(tensor, teacher.state_dict()[key])


@pytest.mark.parametrize("name", NAMES)
def test_rewards_teach_nothing(name, monkeypatch, tmp_path):
    """Other rewards, bitwise the same weights."""
    weights = []
    for scale, folder in [(1, "a"), (-100, "b")]:
        (tmp_path / folder).mkdir()
        with monkeypatch.context() as patch:
            fake_step = FakeEnvs.step

            def step(envs, actions, fake_step=fake_step, scale=scale):
                obs, rewards, *rest = fake_step(envs, actions)
                return obs, scale * rewards, *rest

            patch.setattr(FakeEnvs, "step", step)
            *_, updates, _, result = run_train(load(name), patch, tmp_path / folder)
        weights.append([p for p, _ in updates[-1]])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def small(script, run_dir, **changed):
    values = {"total_timesteps": 2700, "eval_every": 0, "episodes": 10, "teacher_episodes": 2}
    values |= {"hidden_sizes": (16,), "torch_threads": 1, "num_workers": 1, "log_every": 450}
    values |= {"save_every": 900, "run_dir": str(run_dir)}
    return script.MujocoArgs(**values | changed)


@pytest.mark.parametrize("name", NAMES)
def test_learns_from_the_shipped_teacher(name, tmp_path):
    """The KL falls and the student's own score rises."""
    script = load(name)
    args = small(script, tmp_path / "run", total_timesteps=60_000, hidden_sizes=(256, 256))
    losses, check = [], script.check_finite
    script.check_finite = lambda agent, terms, *rest: losses.append(terms["distill/kl"])
    try:
        result = script.train(args)
    finally:
        script.check_finite = check
    assert losses[-1] < 0.2 * losses[0]
    assert result["score"]["mean"] > 100  # the first policy falls over at about 20
    assert 0 < result["fraction_of_teacher"] < 1.1


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_is_bitwise_the_same(name, tmp_path, monkeypatch):
    script = load(name)
    script.train(small(script, tmp_path / "whole"))
    calls, check = [], script.check_finite

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        check(*arguments)

    monkeypatch.setattr(script, "check_finite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        script.train(small(script, tmp_path / "stopped"))
    script.train(script.MujocoArgs(resume=str(tmp_path / "stopped")))
    paths = [tmp_path / run / "agent.safetensors" for run in ("whole", "stopped")]
    (a, _), (b, _) = map(script.read_checkpoint, paths)
    assert all(torch.equal(a[key], b[key]) for key in a)
    whole, stopped = read_result(tmp_path / "whole"), read_result(tmp_path / "stopped")
    assert whole["episode_returns"] == stopped["episode_returns"]


@pytest.mark.parametrize("name", NAMES)
def test_a_diverging_run_ends_with_one_line(name, tmp_path):
    script = load(name)
    args = small(script, tmp_path / "run", learning_rate=30.0)
    with pytest.raises(script.UserError, match=r"lower --learning-rate") as error:
        script.train(args)
    assert "\n" not in str(error.value)
    assert all(t.isfinite().all() for t in torch.load(
        tmp_path / "run" / "training_state.pt", weights_only=True)["agent"].values())  # fmt: skip


def save_pixel_teacher(script, path, suite, env_id, obs_shape, num_actions, **header):
    agent = script.PixelAgent(obs_shape, num_actions, "smaller")
    header |= {"format": "ppd-agent-1", "suite": suite, "script": f"ppo_teacher_{suite}"}
    header |= {"env_id": env_id, "size": "smaller", "seed": 1}
    script.save_agent(agent, path, header)


@pytest.mark.parametrize("name", NAMES)
def test_procgen_runs(name, tmp_path, monkeypatch):
    script, path = load(name), tmp_path / "teacher.safetensors"
    levels = {"num_levels": 200, "start_level": 0, "distribution_mode": "easy"}
    shape = (3, 64, 64), 15
    save_pixel_teacher(script, path, "procgen", "coinrun", *shape, deterministic=False, **levels)
    sampled = lambda agent, envs, episodes, seed, deterministic: not deterministic
    play = lambda *arguments: ([float(sampled(*arguments)), 2.0], [1, 2])  # levels are long
    monkeypatch.setattr(script, "evaluate", play)
    values = {"total_timesteps": 20, "num_envs": 4, "episodes": 2, "teacher_episodes": 2}
    values |= {"student_size": "smaller", "teacher": str(path), "torch_threads": 1}
    values |= {"eval_episodes": 1, "run_dir": str(tmp_path / "run"), "env_threads": 1}
    result = script.train(script.ProcgenArgs(**values))
    assert {"score", "score_training", "teacher_score", "teacher_score_training"} <= result.keys()
    assert result["score"]["mean"] == 1.5  # sampled
    assert result["evaluations"] and result["evaluations_training"]
    with pytest.raises(script.UserError, match="finished"):
        script.train(script.ProcgenArgs(resume=str(tmp_path / "run")))


@pytest.mark.parametrize("name", NAMES)
def test_atari_runs(name, tmp_path, monkeypatch):
    script, path = load(name), tmp_path / "teacher.safetensors"
    shape, header = ((4, 84, 84), 6), {"deterministic": True, "frame_skip": 4}
    save_pixel_teacher(script, path, "atari", "PongNoFrameskip-v4", *shape, **header)
    monkeypatch.setattr(script, "evaluate", lambda *_: ([3.0, -20.7], [1, 2]))  # games are long
    values = {"total_timesteps": 40, "num_envs": 4, "episodes": 2, "env_threads": 1}
    values |= {"student_size": "smaller", "teacher": str(path), "torch_threads": 1}
    result = script.train(script.AtariArgs(run_dir=str(tmp_path / "run"), **values))
    assert result["score"]["human_normalized"] == pytest.approx((3.0 + 20.7) / 2 / 35.3)
    assert result["fraction_of_teacher"] == pytest.approx(1)
    _, header = script.load_atari_agent(tmp_path / "run" / "agent.safetensors")
    assert header["script"] == name and header["suite"] == "atari" and header["steps"] == 40


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("mujoco --env-id Nope-v4", "Nope"),
        ("atari --env-id Hopper-v4", "no Atari id"),
        ("procgen --env-id pong", "no Procgen game"),
        ("mujoco --teacher nowhere.safetensors", "no such file"),
        ("mujoco --log-every 0", "--log-every 0: must be at least 1"),
        ("procgen --resume nowhere", "no training_state.pt"),
    ],
)
def test_wrong_input(name, arguments, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_main(load(name), arguments.split(), monkeypatch) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_suite_is_not_resumed(tmp_path):
    script = load("student_distill")
    args = small(script, tmp_path / "run", learning_rate=30.0)
    with pytest.raises(script.UserError):
        script.train(args)
    with pytest.raises(script.UserError, match="a run of student_distill mujoco"):
        script.train(script.AtariArgs(resume=str(tmp_path / "run")))


def test_the_two_files_differ_in_who_acts_alone():
    texts = [(ROOT / f"{name}.py").read_text() for name in NAMES]
    lines = [text.split('"""', 2)[2].splitlines() for text in texts]
    changed = [pair for pair in zip(*lines, strict=True) if pair[0] != pair[1]]
    code = [pair for pair in changed if '"""' not in pair[0]]
    who = '    actor, actor_name = {}, "{}"  # who acts, and whose returns the rollouts show'
    assert code == [(who.format("agent", "student"), who.format("teacher", "teacher"))]
