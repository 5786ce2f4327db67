"""A fading λ, a start from another agent, a critic that learns first, distillation alone."""

import helpers
import numpy as np
import pytest
import torch
from helpers import PPD_SCRIPTS, TEACHERS, NoWriter, assert_same_weights, load, make_args
from safetensors.torch import load_file

SUITE_OF = {name: name.split("_")[-1] for name in PPD_SCRIPTS + TEACHERS}
PPD = [(name, SUITE_OF[name]) for name in PPD_SCRIPTS]
ALL = [(name, SUITE_OF[name]) for name in PPD_SCRIPTS + TEACHERS]
script = load("ppd_mujoco")


# ------------------------------------------------------------------------------- λ
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [2.0, 2.0, 2.0, 2.0, 2.0]),
        ({"distill_lambda_final": 0.0}, [2.0, 1.5, 1.0, 0.5, 0.0]),
        ({"distill_lambda_final": 0.5, "distill_lambda_steps": 200}, [2.0, 1.25, 0.5, 0.5, 0.5]),
        ({"distill_lambda_final": 4.0, "distill_lambda_steps": 800}, [2.0, 2.25, 2.5, 2.75, 3.0]),
    ],
)
def test_the_weight_of_each_rollout(options, expected):
    """Of five rollouts of 100 steps: the first has the first value, the last one the last."""
    args = script.Args(distill_lambda=2.0, **options)
    found = [script.lambda_at(step, 400, args) for step in range(0, 500, 100)]
    np.testing.assert_allclose(found, expected)


def test_the_weight_of_a_run_of_one_rollout():
    assert script.lambda_at(0, 0, script.Args(distill_lambda_final=0.0)) == 1.0


@pytest.mark.parametrize(("name", "suite"), PPD)
def test_the_weights_that_are_used(name, suite, train):
    train(load(name), suite, distill_lambda=2.0, distill_lambda_final=0.0, distill_lambda_steps=128)
    assert NoWriter.scalars["distill/lambda"] == [2.0, 1.0, 0.0]
    kl, loss = (np.array(NoWriter.scalars[f"distill/{key}"]) for key in ("kl", "loss"))
    assert (kl > 0).all() and (loss[:2] > 0).all() and loss[2] == 0


# ------------------------------------------------------------------------------- Distillation alone
@pytest.mark.parametrize(("name", "suite"), PPD)
def test_without_its_policy_loss_a_student_is_blind_to_the_reward(
    name, suite, train, monkeypatch, tmp_path
):
    """Its policy; the critic still learns the returns. With the loss the policy differs."""
    module, runs = load(name), {}
    for case, sign, pg_coef in [("a", 1, 0.0), ("b", -3, 0.0), ("c", 1, 1.0), ("d", -3, 1.0)]:
        with monkeypatch.context() as patch:
            scale = module.RewardNormalizer.__call__
            patch.setattr(
                module.RewardNormalizer,
                "__call__",
                lambda self, rewards, ended, sign=sign, scale=scale: (
                    sign * (1 + scale(self, rewards, ended))
                ),
            )
            train(module, suite, case, pg_coef=pg_coef, max_grad_norm=1e9, total_timesteps=64)
        runs[case] = load_file(tmp_path / case / "agent.safetensors")
    equal = lambda a, b, part: all(
        torch.equal(runs[a][key], runs[b][key]) for key in runs[a] if key.startswith(part)
    )
    assert equal("a", "b", "actor") and not equal("a", "b", "critic")
    assert not equal("c", "d", "actor")


# ------------------------------------------------------------------------------- Other starts
def first_and_last(module, monkeypatch, **changes):
    """The agent's tensors when training starts, and at the end."""
    found, start = [], module.Run.start

    def record(self, header, parts, *rest):
        found.append({k: v.clone() for k, v in parts["agent"].state_dict().items()})
        found.append(parts["agent"])
        return start(self, header, parts, *rest)

    monkeypatch.setattr(module, "evaluate", helpers.no_score)
    monkeypatch.setattr(module.Run, "start", record)
    module.train(make_args(module, **changes))
    return found[0], found[1].state_dict()


@pytest.mark.parametrize(("name", "suite"), ALL)
def test_a_run_starts_from_another_agent(name, suite, monkeypatch, tmp_path):
    """Policy, critic and statistics; while the critic warms up, the policy stays."""
    module, path = load(name), tmp_path / "init.safetensors"
    agent = helpers.make_teacher(
        suite, path, **({"hidden_sizes": [16]} if suite == "mujoco" else {})
    )
    changes = {"suite": suite, "run_dir": tmp_path / "run", "init": str(path)}
    changes |= {"critic_warmup": 128, "total_timesteps": 128}
    first, last = first_and_last(module, monkeypatch, **changes)
    for key, tensor in agent.state_dict().items():
        assert torch.equal(first[key], tensor), key
        learns = key.startswith("critic") or (key.startswith("obs_") and name in TEACHERS)
        assert torch.equal(last[key], tensor) != learns or key == "obs_clip", key
    changes |= {"run_dir": tmp_path / "after", "total_timesteps": 192}
    _, last = first_and_last(module, monkeypatch, **changes)
    assert [
        key for key in last if key.startswith("actor") and not torch.equal(last[key], first[key])
    ]


def test_a_critic_that_does_not_fit_is_left_out(monkeypatch, tmp_path):
    path = tmp_path / "init.safetensors"
    agent = script.MujocoAgent(-torch.ones(3), torch.ones(3), 11, [16], critic_sizes=[7])
    header = {"format": "ppd-agent-2", "suite": "mujoco", "env_id": "Hopper-v4", "seed": 1}
    header |= {"hidden_sizes": [16], "critic_sizes": [7]}
    helpers.save_agent(agent, path, header)
    changes = {"suite": "mujoco", "run_dir": tmp_path / "run", "init": str(path)}
    first, _ = first_and_last(script, monkeypatch, **changes, total_timesteps=64)
    assert torch.equal(first["actor.0.weight"], agent.actor[0].weight)
    assert first["critic.0.weight"].shape == (16, 11)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"hidden_sizes": [5]}, "hidden layers 5; give --hidden-sizes 5"),
        ({"hidden_sizes": [16], "activation": "tanh"}, "networks have relu, not tanh"),
    ],
)
def test_an_agent_of_other_layers_is_refused(header, words, tmp_path):
    helpers.make_teacher("mujoco", path := tmp_path / "init.safetensors", **header)
    with pytest.raises(script.UserError, match=words):
        script.train(make_args(script, "mujoco", tmp_path / "run", init=str(path)))
    assert not (tmp_path / "run").exists()


def test_a_student_may_have_other_statistics_than_its_teacher(train, monkeypatch, tmp_path):
    """Of the agent that it started from: the teacher is asked through its own."""
    path = tmp_path / "init.safetensors"
    start = script.MujocoAgent(-torch.ones(3), torch.ones(3), 11, [16])
    start.obs_mean.fill_(3.0), start.obs_var.fill_(4.0)
    header = {"format": "ppd-agent-2", "suite": "mujoco", "env_id": "Hopper-v4", "seed": 1}
    helpers.save_agent(start, path, header | {"hidden_sizes": [16]})
    seen, load_agent = [], script.load_mujoco_agent

    def record(path, *rest):
        agent, header = load_agent(path, *rest)
        agent.actor.register_forward_hook(lambda _, inputs, outputs: seen.append(inputs[0]))
        return agent, header

    raw, normalize = [], script.MujocoAgent.normalize

    def record_raw(self, obs):
        raw.append(torch.as_tensor(obs))
        return normalize(self, obs)

    monkeypatch.setattr(script, "load_mujoco_agent", record)
    monkeypatch.setattr(script.MujocoAgent, "normalize", record_raw)
    train(script, "mujoco", init=str(path), total_timesteps=64)
    teacher, _ = load_agent(tmp_path / "teacher.safetensors")
    (inputs,) = [x for x in seen if len(x) == 64]
    rollout = next(x for x in reversed(raw) if len(x) == 64)
    assert torch.equal(inputs, normalize(teacher, rollout))
    assert torch.equal(
        load_file(tmp_path / "run" / "agent.safetensors")["obs_mean"], start.obs_mean
    )


# ------------------------------------------------------------------------------- Kept on the way
def test_the_best_policy_is_kept(monkeypatch, tmp_path):
    """By the run's own evaluations; the result is the last policy's, as in the paper."""
    scores = iter([0.0, 5.0, 9.0, 7.0, 1.0, 0.0])  # teacher, three evaluations, student, teacher

    def evaluate(agent, envs, episodes, seed, deterministic=True):
        return helpers.no_score(agent, envs, episodes, seed) | {"mean": next(scores)}

    monkeypatch.setattr(script, "evaluate", evaluate)
    script.train(make_args(script, "mujoco", tmp_path / "run", eval_every=64))
    _, best = script.load_mujoco_agent(tmp_path / "run" / "best.safetensors")
    _, last = script.load_mujoco_agent(tmp_path / "run" / "agent.safetensors")
    assert (best["steps"], last["steps"]) == (128, 192)
    best, last = (load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("best", "agent"))
    assert not torch.equal(best["actor.0.weight"], last["actor.0.weight"])


def test_a_fading_run_is_resumed_bit_for_bit(train, monkeypatch, tmp_path):
    """With all the flags at once: stopped in its third rollout, after the critic's warm-up."""
    helpers.make_teacher("mujoco", path := tmp_path / "init.safetensors", hidden_sizes=[16])
    flags = {"distill_lambda_final": 0.0, "distill_lambda_steps": 128, "critic_warmup": 64}
    flags |= {"init": str(path), "ratio_gradient": False, "total_timesteps": 256, "save_every": 0}
    train(script, "mujoco", "whole", **flags)
    calls, function = [], script.clipped_surrogate_loss

    def stop(*arguments):
        calls.append(None)
        if len(calls) > 2 * 6 + 1:
            raise KeyboardInterrupt
        return function(*arguments)

    monkeypatch.setattr(script, "clipped_surrogate_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        train(script, "mujoco", "stopped", **flags)
    monkeypatch.setattr(script, "clipped_surrogate_loss", function)
    script.train(script.Args(resume=str(tmp_path / "stopped")))
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
