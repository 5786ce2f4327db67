"""student_distill.py and teacher_distill.py: who acts, what is learned from, and that it works."""

import numpy as np
import oracle
import pytest
import torch
from helpers import (
    BASELINES,
    FakeEnvs,
    NoWriter,
    load,
    make_args,
    make_teacher,
    mutant,
    use_fake_envs,
)

T, N = 3, 4


def run_train(script, monkeypatch, tmp_path, **changed):
    """Three updates of the real loop on fake environments; what they saw and what Adam got."""
    use_fake_envs(script, monkeypatch)
    monkeypatch.setattr(script, "SummaryWriter", NoWriter)
    updates, loaded = [], []

    def record_step(self, closure=None):
        group = self.param_groups[0]["params"]
        updates.append([(p.detach().clone(), p.grad.clone()) for p in group])
        return step(self, closure)

    def record_teacher(*arguments):
        loaded.append(load_teacher(*arguments))
        return loaded[-1]

    step, load_teacher = torch.optim.Adam.step, script.load_mujoco_agent
    monkeypatch.setattr(torch.optim.Adam, "step", record_step)
    monkeypatch.setattr(script, "load_mujoco_agent", record_teacher)
    path = tmp_path / "teacher.safetensors"
    original = make_teacher("mujoco", path, sizes=(3, 2))
    values = {"num_envs": N, "num_steps": T, "total_timesteps": 3 * T * N, "hidden_sizes": (4, 3)}
    values |= {"learning_rate": 0.03, "ent_coef": 0.1, "episodes": 1, "teacher": str(path)}
    args = make_args(script, "mujoco", tmp_path / "run", **values | changed)
    script.train(args)
    return args, original, loaded[0][0], FakeEnvs.made[0].steps, updates


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
        obs = ((obs - teacher.obs_mean) / (teacher.obs_var + 1e-8).sqrt()).clamp(-10, 10)
        agent = script.MujocoAgent(-torch.ones(2), torch.ones(2), 3, args.hidden_sizes).double()
        with torch.no_grad():
            for parameter, (value, _) in zip(agent.parameters(), update, strict=True):
                parameter.copy_(value)
            answers = {"outputs": teacher.actor(obs), "log_std": teacher.log_std}
            answers["values"] = teacher.critic(obs).squeeze(-1)
            answers = {name: answer.numpy() for name, answer in answers.items()}
        outputs, values = agent.actor(obs), agent.critic(obs).squeeze(-1)
        variables = [x.detach().numpy() for x in (outputs, agent.log_std, values)]
        function = lambda *a, answers=answers: oracle_loss(args, answers, *a)
        slopes = map(torch.from_numpy, oracle.gradients(function, variables)["loss"])
        torch.autograd.backward([outputs, agent.log_std, values], list(slopes))
        expected = [p.grad for p in agent.parameters()]
        norm = torch.cat([g.flatten() for g in expected]).norm().item()
        scale = min(1, args.max_grad_norm / (norm + 1e-6))
        for (_, gradient), g in zip(update, expected, strict=True):
            np.testing.assert_allclose(gradient, g * scale, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("changed", [{}, {"max_grad_norm": 1e9}, {"kl": "reverse"}], ids=str)
def test_every_gradient_is_the_oracles(name, changed, monkeypatch, tmp_path):
    script = load(name)
    args, teacher, _, steps, updates = run_train(script, monkeypatch, tmp_path, **changed)
    check_updates(script, args, teacher, steps, updates)


MUTATIONS = [
    ("train", "teacher.value(b_obs)", "agent.value(b_obs)"),
    ("train", "agent.value(b_obs), teacher_values)", "agent.value(b_obs), 0 * teacher_values)"),
    ("train", "args.ent_coef, args.vf_coef)", "args.ent_coef, 1.0)"),
    ("train", "args.ent_coef, args.vf_coef)", "0.0, args.vf_coef)"),
    ("train", "dist, args.kl)", "dist, 'reverse')"),
    ("train", "teacher.policy(b_obs)", "agent.policy(b_obs)"),
    ("train", "optimizer.zero_grad()", "None"),
    ("train", "obs[t] = torch.from_numpy(next_obs)", "obs[0] = torch.from_numpy(next_obs)"),
    ("build_mujoco", '("obs_mean", "obs_var", "obs_count", "obs_clip")', "()"),
    ("supervised_loss", "kl.mean()", "kl.sum()"),
    ("supervised_loss", "- ent_coef", "+ ent_coef"),
    ("supervised_loss", "vf_coef * v_loss", "v_loss"),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_changed_update_is_seen(mutation, monkeypatch, tmp_path):
    """In one file: the other differs in who acts alone, as test_copies.py holds."""
    script = mutant("student_distill", *mutation)
    with pytest.raises(AssertionError):
        args, teacher, _, steps, updates = run_train(script, monkeypatch, tmp_path)
        check_updates(script, args, teacher, steps, updates)


@pytest.mark.parametrize("name", BASELINES)
def test_who_acts(name, monkeypatch, tmp_path):
    """Whoever samples the actions clips them, so that its own distribution is the environment's."""
    script, actors = load(name), []
    env_actions = script.MujocoAgent.env_actions
    score = {"mean": 1.0, "standard_error": 0.0, "episodes": 2, "returns": [1], "lengths": [1]}
    monkeypatch.setattr(script, "evaluate", lambda *arguments: score)
    monkeypatch.setattr(
        script.MujocoAgent,
        "env_actions",
        lambda agent, actions: actors.append(agent) or env_actions(agent, actions),
    )
    _, _, teacher, steps, _ = run_train(script, monkeypatch, tmp_path)
    assert len(actors) == len(steps) == 3 * T
    assert all((actor is teacher) == (name == "teacher_distill") for actor in actors)


@pytest.mark.parametrize("name", BASELINES)
def test_rewards_teach_nothing(name, monkeypatch, tmp_path):
    """Other rewards, bitwise the same weights."""
    weights, fake_step = [], FakeEnvs.step
    for scale, folder in [(1, "a"), (-100, "b")]:
        (tmp_path / folder).mkdir()

        def step(envs, actions, scale=scale):
            obs, rewards, *rest = fake_step(envs, actions)
            return obs, scale * rewards, *rest

        with monkeypatch.context() as patch:
            patch.setattr(FakeEnvs, "step", step)
            *_, updates = run_train(load(name), patch, tmp_path / folder)
        weights.append([p for p, _ in updates[-1]])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("name", BASELINES)
def test_learns_from_the_shipped_teacher(name, monkeypatch, tmp_path):
    """The KL falls and the student's own score rises."""
    script = load(name)
    monkeypatch.setattr(script, "SummaryWriter", NoWriter)
    changes = {"num_envs": 18, "num_steps": 5, "total_timesteps": 60_000, "log_every": 450}
    changes |= {"hidden_sizes": (256, 256), "episodes": 10, "teacher": None}
    result = script.train(make_args(script, "mujoco", tmp_path / "run", **changes))
    kl = NoWriter.scalars["distill/kl"]
    assert kl[-1] < 0.2 * kl[0]
    assert result["score"]["mean"] > 100  # the first policy falls over at about 20
    assert result["score"]["mean"] < 1.1 * result["teacher_score"]["mean"]


def test_a_run_of_another_suite_is_not_resumed(tmp_path):
    script = load("student_distill")
    script.train(make_args(script, "mujoco", tmp_path / "run"))
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(script.UserError, match="a run of `python student_distill.py mujoco`"):
        script.train(script.AtariArgs(resume=str(tmp_path / "run")))
