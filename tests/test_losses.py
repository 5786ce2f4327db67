"""The losses and their gradients against a float64 oracle and against Stable-Baselines3.

A body is tested in one script: test_copies.py holds that the others have the same text.
"""

import gymnasium as gym
import numpy as np
import oracle
import pytest
import torch
from helpers import BASELINES, load, mutant, owners
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from torch.distributions import Independent, Normal

# Each family of policies in a script that has it: diagonal Gaussians, categoricals.
FAMILIES = {"ppd_mujoco": oracle.Gaussian, "ppd_atari": oracle.Categorical}
DIRECTIONS = ["forward", "reverse"]
script = load("ppd_mujoco")


def distribution(script, outputs: torch.Tensor, log_std: torch.Tensor):
    """The distribution that a script's agent makes of the policy's outputs."""
    if not hasattr(script, "MujocoAgent"):
        return script.PixelAgent.distribution(None, outputs)
    agent = script.MujocoAgent(*torch.tensor([[-1.0], [1.0]]).expand(2, outputs.shape[1]), 3, (4,))
    del agent.log_std
    agent.log_std = log_std  # a plain tensor, so that its gradient reaches the caller
    return agent.distribution(outputs)


def random_case(family, seed, size=24, direction="forward"):
    """A minibatch with ratios below, within and above the clip range, away from its edges."""
    rng = np.random.default_rng(seed)
    gaussian = family is oracle.Gaussian
    A = 3
    outputs, teacher_outputs = rng.normal(size=(2, size, A))
    log_std, teacher_log_std = rng.normal(size=(2, A)) / 2 if gaussian else np.zeros((2, 0))
    actions = rng.normal(size=(size, A)) if gaussian else rng.integers(A, size=size)
    coefs = {"clip_coef": 0.1 + 0.3 * rng.random(), "ent_coef": 0.05 + rng.random()}
    coefs |= {"vf_coef": 0.2 + rng.random(), "distill_lambda": 0.3 + 2 * rng.random()}
    epsilon = coefs["clip_coef"]
    ranges = [(0.2, 1 - epsilon), (1 - epsilon, 1 + epsilon), (1 + epsilon, 2.5)]
    low, high = np.array(ranges)[np.arange(size) % 3].T
    ratio = low + (high - low) * (0.05 + 0.9 * rng.random(size))
    logprobs = family.log_prob(outputs, log_std, actions) - np.log(ratio)
    signs = np.where(np.arange(size) % 2, 1, -1)  # so each range meets both signs
    batch = {"actions": actions, "logprobs": logprobs, "returns": rng.normal(size=size)}
    batch |= {"advantages": signs * (0.5 + 3 * rng.random(size))}
    batch |= {"teacher_outputs": teacher_outputs, "teacher_log_std": teacher_log_std}
    variables = [outputs, log_std, rng.normal(size=size)]
    return batch, coefs | {"kl": direction}, variables


def script_gradients(script, batch, coefs, variables, **options):
    """The same terms as the oracle's, from the script's own functions in float64; gradients."""
    leaves = [torch.tensor(array, requires_grad=True) for array in variables]
    batch = {name: torch.from_numpy(array) for name, array in batch.items()}
    dist = distribution(script, *leaves[:2])
    ratio = (dist.log_prob(batch["actions"]) - batch["logprobs"]).exp()
    advantages = script.normalize_advantages(batch["advantages"])
    terms = {
        "pg_loss": script.clipped_surrogate_loss(ratio, advantages, coefs["clip_coef"]),
        "v_loss": script.value_loss(leaves[2], batch["returns"]),
        "entropy_loss": dist.entropy().mean(),
    }
    loss = script.ppo_loss(*terms.values(), coefs["ent_coef"], coefs["vf_coef"])
    if coefs["distill_lambda"] is not None:
        teacher = distribution(script, batch["teacher_outputs"], batch["teacher_log_std"])
        kl = script.policy_kl(teacher, dist, coefs["kl"])
        distill_loss = script.distillation_loss(kl, ratio, coefs["clip_coef"], **options)
        terms |= {"kl": kl.mean(), "distill_loss": coefs["distill_lambda"] * distill_loss}
        loss = loss + terms["distill_loss"]
    terms["loss"] = loss
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    gradients = {
        name: [g.numpy() for g in torch.autograd.grad(term, leaves, **options)]
        for name, term in terms.items()
        if term.requires_grad
    }
    return {name: term.item() for name, term in terms.items()}, gradients


def check_against_oracle(script, family, distill=True):
    for seed, direction in enumerate(DIRECTIONS):
        batch, coefs, variables = random_case(family, seed, 24, direction)
        coefs["distill_lambda"] = coefs["distill_lambda"] if distill else None
        function = lambda *a, c=(family, batch, coefs): oracle.losses(*c, *a)
        values, gradients = script_gradients(script, batch, coefs, variables)
        expected = function(*variables)
        assert values.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(values[name], expected[name], rtol=1e-10, err_msg=name)
        for name, slopes in oracle.gradients(function, variables).items():
            for slope, gradient in zip(slopes, gradients.get(name, [0, 0, 0]), strict=True):
                np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-8, err_msg=name)
        if distill:
            check_without_ratio_gradient(script, family, batch, coefs, variables)


def check_without_ratio_gradient(script, family, batch, coefs, variables):
    """The same loss, and the gradient of mean[KL·w] where w = max(r, 1−ε) is a constant."""
    policy, theirs = variables[:2], (batch["teacher_outputs"], batch["teacher_log_std"])
    ratio = np.exp(family.log_prob(*policy, batch["actions"]) - batch["logprobs"])
    weight = coefs["distill_lambda"] * np.maximum(ratio, 1 - coefs["clip_coef"])
    forward = coefs["kl"] == "forward"
    kl = lambda student: family.kl(*((theirs, student) if forward else (student, theirs)))
    expected = oracle.gradients(lambda *student: {"loss": np.mean(kl(student) * weight)}, policy)
    values, gradients = script_gradients(script, batch, coefs, variables, ratio_gradient=False)
    np.testing.assert_allclose(values["distill_loss"], np.mean(kl(policy) * weight), rtol=1e-10)
    for slope, gradient in zip(expected["loss"], gradients["distill_loss"][:2], strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "family"), FAMILIES.items(), ids=str)
@pytest.mark.parametrize("distill", [True, False])
def test_values_and_gradients(name, family, distill):
    check_against_oracle(load(name), family, distill)


def check_kl_by_numbers(script):
    """KL(N(0,1) ‖ N(0,2²)) = log 2 + 1/8 − 1/2, and log ½ + 2 − 1/2 the other way."""
    narrow, wide = (Independent(Normal(torch.zeros(1, 1), std), 1) for std in (1.0, 2.0))
    forward = script.policy_kl(narrow, wide, "forward").item()
    reverse = script.policy_kl(narrow, wide, "reverse").item()
    assert forward == pytest.approx(np.log(2) + 1 / 8 - 1 / 2)
    assert reverse == pytest.approx(-np.log(2) + 2 - 1 / 2)
    theirs = [(np.zeros((1, 1)), np.log([std])) for std in (1.0, 2.0)]
    assert oracle.Gaussian.kl(*theirs).item() == pytest.approx(forward)


@pytest.mark.parametrize("name", ["ppd_mujoco", *BASELINES])
def test_kl_by_numbers(name):
    check_kl_by_numbers(load(name))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["ppd_procgen", *BASELINES])
def test_kl_of_categoricals_is_that_of_ppd_atari(name, direction):
    pair = [load(name).PixelAgent.distribution(None, logits) for logits in torch.randn(2, 9, 4)]
    expected = load("ppd_atari").policy_kl(*pair, direction)
    torch.testing.assert_close(load(name).policy_kl(*pair, direction), expected, rtol=0, atol=0)


MUTATIONS = [
    ("clipped_surrogate_loss", "1 - clip_coef", "1 - 2 * clip_coef"),
    ("clipped_surrogate_loss", "1 + clip_coef", "1 + 2 * clip_coef"),
    ("clipped_surrogate_loss", "-torch.min", "torch.min"),
    ("clipped_surrogate_loss", "torch.min", "torch.max"),
    ("clipped_surrogate_loss", "(ratio * advantages,", "(ratio,"),
    ("clipped_surrogate_loss", "clipped_ratio * advantages)", "clipped_ratio)"),
    ("clipped_surrogate_loss", ").mean()", ").sum()"),
    ("value_loss", ".mean()", ".sum()"),
    ("value_loss", ".mean()", ".mean() / 2"),
    ("value_loss", ".square()", ".abs()"),
    ("value_loss", "(values - returns)", "(values + returns)"),
    ("ppo_loss", "- ent_coef *", "+ ent_coef *"),
    ("ppo_loss", "- ent_coef *", "-"),
    ("ppo_loss", "return pg_loss -", "return -"),
    ("ppo_loss", "+ vf_coef * v_loss", "+ v_loss"),
    ("ppo_loss", "+ vf_coef * v_loss", ""),
    ("normalize_advantages", ".std()", ".std(unbiased=False)"),
    ("normalize_advantages", "- advantages.mean()", ""),
    ("normalize_advantages", " / (advantages.std() + 1e-8)", ""),
    ("policy_kl", '== "forward"', '!= "forward"'),
    ("policy_kl", "(teacher_dist, student_dist)", "(student_dist, teacher_dist)"),
    ("policy_kl", "(student_dist, teacher_dist)", "(teacher_dist, student_dist)"),
    ("policy_kl", "kl_divergence(p, q)", "kl_divergence(q, p)"),
    ("ppd_atari.policy_kl", "p.probs * ", ""),
    ("ppd_atari.policy_kl", "p.probs", "q.probs"),
    ("ppd_atari.policy_kl", "p.logits - q.logits", "p.logits"),
    ("ppd_atari.policy_kl", "p.logits - q.logits", "q.logits - p.logits"),
    ("ppd_atari.policy_kl", ".sum(-1)", ".mean(-1)"),
    ("distillation_loss", "return (kl", "return -(kl"),
    ("distillation_loss", "return (kl *", "return (kl.detach() *"),
    ("distillation_loss", "return (kl * ", "return ("),
    ("distillation_loss", "ratio.clamp(min=1 - clip_coef)", "ratio"),
    ("distillation_loss", "ratio.clamp(min=1 - clip_coef)", "torch.ones_like(ratio)"),
    ("distillation_loss", "ratio.clamp(min", "ratio.detach().clamp(min"),
    ("distillation_loss", "(min=1 - clip_coef)", "(min=1 + clip_coef)"),
    ("distillation_loss", "(min=1 - clip_coef)", "(min=1)"),
    ("distillation_loss", "(min=1 - clip_coef)", "(max=1 - clip_coef)"),
    ("distillation_loss", "(min=1 - clip_coef)", "(1 - clip_coef, 1 + clip_coef)"),
    ("distillation_loss", ").mean()", ").sum()"),
    ("distillation_loss", "ratio_gradient=True", "ratio_gradient=False"),
    ("distillation_loss", "if ratio_gradient", "if not ratio_gradient"),
    ("distillation_loss", "weight.detach()", "weight"),
]


@pytest.mark.parametrize(("function", "old", "new"), MUTATIONS)
def test_a_changed_factor_is_seen(function, old, new):
    """The checks above fail when any one factor of a loss is changed."""
    name, _, function = function.rpartition(".")
    name = name or owners()[function]
    with pytest.raises(AssertionError):
        check_against_oracle(mutant(name, function, old, new), FAMILIES[name])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_kl_of_a_teacher_who_is_very_sure(direction):
    """Its probabilities underflow, as those of a corrupted teacher do; the KL stays finite."""
    sure, unsure = torch.tensor([[0.0, 120.0, -90.0]]), torch.tensor([[0.3, 0.1, -0.2]])
    script, pair = load("ppd_atari"), [sure, unsure.requires_grad_()]
    dists = [script.PixelAgent.distribution(None, logits) for logits in pair]
    exact = [torch.log_softmax(logits.detach().double(), -1) for logits in pair]
    p, q = exact if direction == "forward" else exact[::-1]
    kl = script.policy_kl(*dists, direction)
    torch.testing.assert_close(kl.double(), (p.exp() * (p - q)).sum(-1))
    kl.sum().backward()
    assert unsure.grad.isfinite().all()


@pytest.mark.parametrize(("name", "family"), FAMILIES.items(), ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_ratios_gradient_is_noise_at_first(name, family, direction):
    """Where π_θ still is π_k, KL·∇r is 0 on average over actions; without it nothing is random."""
    script, samples, states = load(name), 20_000, 3
    batch, _, (outputs, log_std, _) = random_case(family, 1, states)
    # A leaf for each sample, so that autograd answers sample by sample.
    leaves = [torch.tensor(outputs), torch.tensor(log_std).expand(states, -1)]
    leaves = [leaf.repeat(samples, 1).requires_grad_() for leaf in leaves]
    dist = distribution(script, *leaves)
    teacher_outputs = torch.tensor(batch["teacher_outputs"]).repeat(samples, 1)
    teacher = distribution(script, teacher_outputs, torch.tensor(batch["teacher_log_std"]))
    kl = script.policy_kl(teacher, dist, direction)
    torch.manual_seed(3)
    logprobs = dist.log_prob(dist.sample())
    ratio = (logprobs - logprobs.detach()).exp()
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}

    def gradients(ratio_gradient):  # (samples, states, …)
        loss = script.distillation_loss(kl, ratio, 0.2, ratio_gradient) * len(kl)
        slopes = torch.autograd.grad(loss, leaves, **options)
        return torch.cat(slopes, 1).view(samples, states, -1)

    noisy, exact = gradients(True), gradients(False)
    error = noisy.std(0) / samples**0.5
    assert ((noisy.mean(0) - exact.mean(0)).abs() < 5 * error).all()
    assert (noisy.std(0) > 0.01).all()
    assert (exact.std(0) < 1e-6).all()


def test_doubled_batch(monkeypatch):
    """Means, not sums: the same samples twice give the same losses (but for the unbiased std)."""
    monkeypatch.setattr(script, "normalize_advantages", lambda advantages: advantages)
    batch, coefs, variables = random_case(oracle.Gaussian, 6)
    twice = {key: np.concatenate([array, array]) for key, array in batch.items()}
    twice["teacher_log_std"] = batch["teacher_log_std"]
    doubled = [np.concatenate([variables[0]] * 2), variables[1], np.concatenate([variables[2]] * 2)]
    one = script_gradients(script, batch, coefs, variables)[0]
    two = script_gradients(script, twice, coefs, doubled)[0]
    assert two == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize(("name", "family"), FAMILIES.items(), ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_student_equal_to_teacher_costs_nothing(name, family, direction):
    batch, coefs, variables = random_case(family, 7, direction=direction)
    batch |= {"teacher_outputs": variables[0], "teacher_log_std": variables[1]}
    values, gradients = script_gradients(load(name), batch, coefs, variables)
    assert values["distill_loss"] == pytest.approx(0, abs=1e-12)
    for gradient in gradients["distill_loss"]:
        np.testing.assert_allclose(gradient, 0, atol=1e-12)


@pytest.mark.parametrize(("ratio_gradient", "by_ratio"), [(True, [0, 3, 4]), (False, [0, 0, 0])])
def test_gradient_flows_through_both_factors(ratio_gradient, by_ratio):
    """d(KL·max(r, 1−ε)) by the product rule; below 1−ε the ratio's part is 0."""
    kl = torch.tensor([2.0, 3.0, 4.0], requires_grad=True)
    ratio = torch.tensor([0.5, 1.0, 1.7], requires_grad=True)
    loss = script.distillation_loss(kl, ratio, 0.2, ratio_gradient) * 3 + 0 * ratio.sum()
    loss.backward()
    assert loss.item() == pytest.approx(2 * 0.8 + 3 * 1.0 + 4 * 1.7)
    assert kl.grad.tolist() == pytest.approx([0.8, 1.0, 1.7])
    assert ratio.grad.tolist() == pytest.approx(by_ratio)


def test_kl_of_another_shape_is_refused():
    """A KL per action dimension would broadcast into a plausible number."""
    with pytest.raises(AssertionError):
        script.distillation_loss(torch.ones(4, 3), torch.ones(4), 0.2)


def test_advantages_normalised_as_in_sb3():
    normalize, advantages = script.normalize_advantages, torch.tensor([1.0, 2.0, 4.0])
    expected = (np.array([1, 2, 4]) - 7 / 3) / (np.std([1, 2, 4], ddof=1) + 1e-8)
    np.testing.assert_allclose(normalize(advantages), expected, rtol=1e-6)
    assert normalize(torch.full((3,), 5.0)).tolist() == [0, 0, 0]
    assert normalize(torch.tensor([3.0])).tolist() == [3.0]


class Spaces(gym.Env):
    """What SB3's PPO needs to be made; it is never stepped."""

    observation_space = gym.spaces.Box(-5, 5, (4,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(4, np.float32), {}


def test_stable_baselines3(monkeypatch):
    """One gradient of SB3's own PPO.train, on the same weights and rollout, is ours."""
    size, coefs = 16, {"ent_coef": 0.3, "vf_coef": 0.7}
    net = {"net_arch": {"pi": [8, 6], "vf": [8, 6]}, "activation_fn": torch.nn.ReLU}
    rollout = {"n_steps": size, "batch_size": size, "n_epochs": 1, "max_grad_norm": 1e9}
    model = PPO("MlpPolicy", Spaces(), policy_kwargs=net, device="cpu", **rollout, **coefs)
    model.set_logger(configure(None, []))
    agent = script.MujocoAgent(-torch.ones(3), torch.ones(3), 4, (8, 6))
    theirs = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    theirs += [*model.policy.mlp_extractor.value_net, model.policy.value_net]
    theirs = [p for layer in theirs for p in layer.parameters()] + [model.policy.log_std]
    ours = [*agent.actor.parameters(), *agent.critic.parameters(), agent.log_std]
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for a, b in zip(ours, theirs, strict=True):
            a.add_(torch.randn_like(a) * 0.2)
            b.copy_(a)
    obs = rng.normal(size=(size, 4)).astype(np.float32)
    actions = rng.normal(size=(size, 3)).astype(np.float32)
    dist = agent.policy(obs)
    logprob = dist.log_prob(torch.from_numpy(actions))
    old = logprob.detach() - torch.from_numpy(rng.normal(size=size).astype(np.float32) * 0.4)
    advantages, returns = rng.normal(size=(2, size)).astype(np.float32)
    buffer = model.rollout_buffer
    buffer.observations[:, 0], buffer.actions[:, 0] = obs, actions
    buffer.log_probs[:, 0], buffer.advantages[:, 0] = old, advantages
    buffer.returns[:, 0], buffer.full = returns, True
    monkeypatch.setattr(model.policy.optimizer, "step", lambda: None)
    model.train()

    ratio = (logprob - old).exp()
    advantages = script.normalize_advantages(torch.from_numpy(advantages))
    pg_loss = script.clipped_surrogate_loss(ratio, advantages, 0.2)
    values = agent.value(obs)
    v_loss = script.value_loss(values, torch.from_numpy(returns))
    entropy_loss = dist.entropy().mean()
    script.ppo_loss(pg_loss, v_loss, entropy_loss, *coefs.values()).backward()
    logged = model.logger.name_to_value
    assert pg_loss.item() == pytest.approx(logged["train/policy_gradient_loss"], abs=1e-5)
    assert v_loss.item() == pytest.approx(logged["train/value_loss"], rel=1e-5)
    assert entropy_loss.item() == pytest.approx(-logged["train/entropy_loss"], rel=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad, b.grad, atol=1e-5)
