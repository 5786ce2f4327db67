"""What goes into the advantages and the KL of the scripts on frames: each state's own."""

import numpy as np
import pytest
import torch
from helpers import PPD_SCRIPTS, TEACHERS, load, shorten_episodes

NAMES = [name for name in [*PPD_SCRIPTS, *TEACHERS] if "mujoco" not in name]


@pytest.fixture
def recorded(request, monkeypatch):
    """The script, its suite, every step of its training, and the agents, once there are any."""
    script, suite = load(request.param), request.param.split("_")[-1]
    envs = script.AtariGames if suite == "atari" else script.ProcgenVectorEnv
    shorten_episodes(script, suite, monkeypatch)  # of Atari, which truncates them
    steps, agents, step, start = [], {}, envs.step, script.Run.start

    def record(self, actions):
        before = self.obs.copy()
        obs, rewards, terminations, truncations, infos = step(self, actions)
        reached = obs.copy()
        for n in np.flatnonzero(truncations):
            reached[n] = infos["final_obs"][n]
        steps.append((before, reached, terminations.copy(), truncations.copy()))
        assert getattr(self, "life_loss", True)  # a lost life ends an episode of training
        return obs, rewards, terminations, truncations, infos

    def keep(self, header, parts, *rest):
        agents["student"] = parts["agent"]
        return start(self, header, parts, *rest)

    monkeypatch.setattr(envs, "step", record)
    monkeypatch.setattr(script.Run, "start", keep)
    return script, suite, steps, agents


@pytest.mark.parametrize("recorded", NAMES, indirect=True)
def test_each_state_has_its_own_value(recorded, monkeypatch, train):
    script, suite, steps, agents = recorded
    gae, close = script.compute_gae, {"rtol": 0, "atol": 1e-5}

    def check(rewards, values, next_values, terminations, ended, *rest):
        for t, (before, reached, ends, cuts) in enumerate(steps[-len(rewards) :]):
            value, goes_on = agents["student"].value, torch.from_numpy(~ends)
            torch.testing.assert_close(values[t], value(before), **close)
            after = value(reached)[goes_on]
            torch.testing.assert_close(next_values[t][goes_on], after, **close)
            assert (terminations[t].numpy() == ends).all()
            assert (ended[t].numpy() == (ends | cuts)).all()
        return gae(rewards, values, next_values, terminations, ended, *rest)

    monkeypatch.setattr(script, "compute_gae", check)
    train(script, suite)
    assert len(steps) == 48 and (suite != "atari" or any(cuts.any() for *_, cuts in steps))


@pytest.mark.parametrize("recorded", [n for n in NAMES if n in PPD_SCRIPTS], indirect=True)
def test_each_state_has_its_own_teacher(recorded, monkeypatch, train):
    script, suite, steps, agents = recorded
    kl, load_teacher = script.policy_kl, getattr(script, f"load_{suite}_agent")
    minibatches = []

    def keep(*arguments):
        agents["teacher"], header = load_teacher(*arguments)
        return agents["teacher"], header

    def permute(B, **_):
        minibatches.extend(torch.arange(B).flip(0).split(24))
        return torch.arange(B).flip(0)

    def check(teacher_dist, *rest):
        frames = np.concatenate([before for before, *_ in steps[-16:]])[minibatches.pop(0)]
        logits = agents["teacher"].policy(frames).logits
        torch.testing.assert_close(teacher_dist.logits, logits, rtol=0, atol=1e-4)
        return kl(teacher_dist, *rest)

    monkeypatch.setattr(script, f"load_{suite}_agent", keep)
    monkeypatch.setattr(torch, "randperm", permute)
    monkeypatch.setattr(script, "policy_kl", check)
    train(script, suite)
    assert len(steps) == 48 and not minibatches
