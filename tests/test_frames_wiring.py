"""What goes into the advantages, the KL and the loss of the scripts on frames."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import (
    PPD_SCRIPTS,
    TEACHERS,
    command,
    load,
    make_args,
    make_teacher,
    save_agent,
    shorten_episodes,
)

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


@pytest.fixture
def policies(monkeypatch):
    """Has a script keep policy and critic, at the start and after each rollout."""
    kept = []

    def keep(script):
        start, log = script.Run.start, script.Run.log

        def copy(run):
            networks = run.parts["agent"].state_dict()
            kept.append({
                part: {k: v.clone() for k, v in networks.items() if k.startswith(part)}
                for part in ("actor", "critic")
            })  # fmt: skip

        monkeypatch.setattr(script.Run, "start", lambda run, *rest: (start(run, *rest), copy(run)))
        monkeypatch.setattr(script.Run, "log", lambda run, *rest: (log(run, *rest), copy(run)))
        return kept

    return keep


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_critic_learns_in_its_warm_up(name, monkeypatch, train, policies):
    """Of the three rollouts the first two begin before its end."""
    script, suite = load(name), name.split("_")[-1]
    shorten_episodes(script, suite, monkeypatch)
    kept = policies(script)
    train(script, suite, critic_warmup=65)
    assert [same(a["actor"], b["actor"]) for a, b in pairwise(kept)] == [True, True, False]
    assert [same(a["critic"], b["critic"]) for a, b in pairwise(kept)] == [False, False, False]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_starts_from_another_agent(name, monkeypatch, train, policies, tmp_path, refused):
    """From its policy and critic; another size is refused, and so is another game's agent."""
    script, suite = load(name), name.split("_")[-1]
    shorten_episodes(script, suite, monkeypatch)
    start = make_teacher(suite, tmp_path / "plain.safetensors")
    start.critic[1].bias.data.fill_(0.25)
    _, header = getattr(script, f"load_{suite}_agent")(tmp_path / "plain.safetensors")
    save_agent(start, path := tmp_path / "start.safetensors", header)
    kept = policies(script)
    train(script, suite, init=str(path))
    for part in ("actor", "critic"):
        expected = {k: v for k, v in start.state_dict().items() if k.startswith(part)}
        assert same(kept[0][part], expected) and not same(kept[-1][part], expected)
    size = "student_size" if name in PPD_SCRIPTS else "size"
    changes = {size: "smaller-text", "init": str(path)}
    args = make_args(script, suite, tmp_path / "refused", **changes)
    words = command(script, suite, args)[2:]
    refused(script, words, "--init", "size is smaller, not smaller-text", "--student-size")
    make_teacher(suite, tmp_path / "nature.safetensors", size="nature")
    words[words.index("--init") + 1] = str(tmp_path / "nature.safetensors")
    refused(script, words, "--init", "size is nature")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("name", [name for name in NAMES if name in PPD_SCRIPTS])
@pytest.mark.parametrize("pg_coef", [0.0, 1.0])
def test_without_the_policy_loss_rewards_do_not_matter(
    name, pg_coef, monkeypatch, train, policies, tmp_path
):
    """To the policy. Without a norm limit, which policy and critic share."""
    script, suite = load(name), name.split("_")[-1]
    envs = script.AtariGames if suite == "atari" else script.ProcgenVectorEnv
    shorten_episodes(script, suite, monkeypatch)
    kept, step = policies(script), envs.step
    options = {"pg_coef": pg_coef, "max_grad_norm": 1e9}
    train(script, suite, **options)
    first = kept[-1]
    rng = np.random.default_rng(1)

    def reward_at_random(self, actions):
        obs, rewards, *rest = step(self, actions)
        return obs, rng.normal(size=len(rewards)), *rest

    monkeypatch.setattr(envs, "step", reward_at_random)
    train(script, suite, "other", **options)
    assert not same(first["critic"], kept[-1]["critic"])
    assert same(first["actor"], kept[-1]["actor"]) == (pg_coef == 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_a_weighted_sum(name, monkeypatch, train):
    """Each term is multiplied by 1, whose gradient is the term times its weight in the loss."""
    script, suite = load(name), name.split("_")[-1]
    shorten_episodes(script, suite, monkeypatch)
    terms, found = {}, []

    def watch(owner, function):
        plain = getattr(owner, function)

        def multiply(*arguments):
            # 1 is added, since a term may be 0.
            term, one = plain(*arguments) + 1, torch.ones((), requires_grad=True)
            terms[function] = term.detach().mean(), one
            return term * one

        monkeypatch.setattr(owner, function, multiply)

    def weigh(parameters, max_norm):
        weights = {}
        for function, (term, one) in terms.items():
            weights[function] = 0.0 if one.grad is None else (one.grad / term).item()
        found.append(weights)
        return clip(parameters, max_norm)

    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", weigh)
    watch(script, "clipped_surrogate_loss")
    watch(script, "value_loss")
    watch(script.Categorical, "entropy")
    changes = {"ent_coef": 0.125, "vf_coef": 0.375, "critic_warmup": 64}
    expected = {"clipped_surrogate_loss": 1.0, "value_loss": 0.375, "entropy": -0.125}
    expected = [dict(expected) for _ in range(3)]
    if name in PPD_SCRIPTS:
        watch(script, "distillation_loss")
        changes |= {"pg_coef": 0.75, "distill_lambda": 2.0, "distill_lambda_final": 1.0}
        for rollout, distill_lambda in zip(expected, [2.0, 1.5, 1.0], strict=True):
            rollout |= {"clipped_surrogate_loss": 0.75, "distillation_loss": distill_lambda}
    expected[0] = dict.fromkeys(expected[0], 0.0) | {"value_loss": 0.375}  # warm-up
    train(script, suite, **changes)
    assert len(found) == 3 * 2 * 3  # rollouts, epochs and minibatches
    for weights, terms_of_rollout in zip(found[::6], expected, strict=True):
        assert weights == pytest.approx(terms_of_rollout, rel=1e-3)
