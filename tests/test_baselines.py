"""student_distill.py and teacher_distill.py: who acts, what is learned from, and that it works."""

import numpy as np
import oracle
import pytest
import torch
from helpers import BASELINES, FakeEnvs, NoWriter, load, make_args, mutant
from test_wiring import check_gradient, float64_agent, normalize, record_run

T, N = 3, 4


def record_baseline(script, monkeypatch, tmp_path, **changed):
    """Three updates of the real loop."""
    values = {"num_steps": T, "total_timesteps": 3 * T * N, "episodes": 1} | changed
    return record_run(script, monkeypatch, tmp_path, **values)


def check_run(script, run):
    """Each gradient is of mean KL − α·mean H + c_v·mean (V − V_T)², of Algorithms 2 and 3."""
    args, teacher, gaussian = run.args, run.teacher, oracle.Gaussian
    assert len(run.updates) == 3 and len(run.steps) == 3 * T
    for iteration, update in enumerate(run.updates):
        rollout = run.steps[iteration * T : (iteration + 1) * T]
        obs = np.concatenate([step["obs"] for step in rollout])
        obs = torch.from_numpy(normalize(obs, (teacher.obs_mean, teacher.obs_var)))
        with torch.no_grad():
            theirs = teacher.actor(obs).numpy(), teacher.log_std.numpy()
            their_values = teacher.critic(obs).squeeze(-1).numpy()

        def losses(outputs, log_std, values, theirs=theirs, their_values=their_values):
            policies = [theirs, (outputs, log_std)]
            kl = gaussian.kl(*policies[:: 1 if args.kl == "forward" else -1])
            loss = np.mean(kl) - args.ent_coef * np.mean(gaussian.entropy(outputs, log_std))
            return {"loss": loss + args.vf_coef * np.mean((values - their_values) ** 2)}

        agent = float64_agent(script, args, update)
        check_gradient(agent, update, obs, losses, args.max_grad_norm)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("changed", [{}, {"max_grad_norm": 1e9}, {"kl": "reverse"}], ids=str)
def test_every_gradient_is_the_oracles(name, changed, monkeypatch, tmp_path):
    """Whoever samples the actions clips them, so that its own distribution is the environment's."""
    run = record_baseline(load(name), monkeypatch, tmp_path, **changed)
    check_run(load(name), run)
    units = 5 if name == "teacher_distill" else 4  # of the teacher's first layer, the student's
    assert {step["actor"].actor[0].out_features for step in run.steps} == {units}


MUTATIONS = [
    ("learn", "teacher.value(b_obs)", "agent.value(b_obs)"),
    ("learn", "agent.value(b_obs), teacher_values)", "agent.value(b_obs), 0 * teacher_values)"),
    ("learn", "args.ent_coef, args.vf_coef)", "args.ent_coef, 1.0)"),
    ("learn", "args.ent_coef, args.vf_coef)", "0.0, args.vf_coef)"),
    ("learn", "dist, args.kl)", "dist, 'reverse')"),
    ("learn", "teacher.policy(b_obs)", "agent.policy(b_obs)"),
    ("learn", "optimizer.zero_grad()", "None"),
    ("learn", "obs[t] = torch.as_tensor(next_obs)", "obs[0] = torch.as_tensor(next_obs)"),
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
        check_run(script, record_baseline(script, monkeypatch, tmp_path))


@pytest.mark.parametrize("name", BASELINES)
def test_rewards_teach_nothing(name, monkeypatch, tmp_path):
    """Other rewards, bitwise the same weights."""
    weights = []
    for scale in (1, -100):
        (tmp_path / str(scale)).mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(FakeEnvs, "reward_scale", scale)
            run = record_baseline(load(name), patch, tmp_path / str(scale))
        weights.append([p for p, _ in run.updates[-1]])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize(
    ("factor", "options", "hint"),
    [(1, {}, ""), (1e4, {}, "try --vf-coef"), (1e4, {"vf_coef": 1e-8}, "")],
)
def test_a_hint_for_large_values(factor, options, hint, monkeypatch, tmp_path, capsys):
    """Printed once, if the teacher's values are on raw rewards and --vf-coef is not lower."""
    script = load("student_distill")
    with monkeypatch.context() as patch:
        value = script.MujocoAgent.value
        scaled = lambda agent, obs: value(agent, obs) * (1 if agent.training else factor)
        patch.setattr(script.MujocoAgent, "value", scaled)  # a loaded agent does not train
        record_baseline(script, patch, tmp_path, **options)
    lines = [line for line in capsys.readouterr().out.splitlines() if "HINT" in line]
    assert len(lines) == bool(hint) and all(hint in line for line in lines)


def test_the_hint_brings_the_value_loss_down(capsys):
    """To half of 50, with the coefficient that it names: about that of the shipped teachers."""
    advise = load("student_distill").advise_vf_coef
    advise(9_900.0, 0.5)  # values of ±99
    assert not capsys.readouterr().out
    advise(462_400.0, 0.5)  # Hopper's values times 100, about its raw returns
    text = capsys.readouterr().out
    assert "±680" in text
    assert float(text.split("--vf-coef ")[1]) * 462_400 == pytest.approx(25, rel=0.1)


@pytest.mark.parametrize("name", BASELINES)
def test_learns_from_the_shipped_teacher(name, monkeypatch, tmp_path):
    """The KL falls and the student's own score rises."""
    script = load(name)
    monkeypatch.setattr(script, "SummaryWriter", NoWriter)
    changes = {"num_envs": 18, "num_steps": 5, "total_timesteps": 30_000, "log_every": 450}
    changes |= {"hidden_sizes": (256, 256), "episodes": 5, "teacher": None}
    result = script.train(make_args(script, "mujoco", tmp_path / "run", **changes))
    kl = NoWriter.scalars["distill/kl"]
    assert kl[-1] < 0.2 * kl[0]
    # The first policy falls over at about 20.
    assert 100 < result["score"]["mean"] < 1.1 * result["teacher_score"]["mean"]
