"""The losses and their gradients against a float64 oracle and against Stable-Baselines3.

A body is tested in one script: test_copies.py holds that the others have the same text.
"""

import gymnasium as gym
import numpy as np
import oracle
import pytest
import torch
from helpers import BASELINES, load, make_spaces, mutant, owners
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

# Each family of policies in a script that has it: diagonal Gaussians, categoricals.
FAMILIES = {"ppd_mujoco": oracle.Gaussian, "ppd_atari": oracle.Categorical}
DIRECTIONS = ["forward", "reverse"]
script = load("ppd_mujoco")


def distribution(script, outputs: torch.Tensor, log_std: torch.Tensor):
    """The distribution that a script's agent makes of the policy's outputs."""
    if log_std.numel() == 0:
        return script.PixelAgent.distribution(None, outputs)
    agent = script.MujocoAgent(*torch.tensor([[-1.0], [1.0]]).expand(2, outputs.shape[1]), 3, (4,))
    del agent.log_std
    agent.log_std = log_std  # a plain tensor, so that its gradient reaches the caller
    return agent.distribution(outputs)


def random_case(family, seed, size=24, direction="forward", ratio_gradient=True):
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
    coefs |= {"kl": direction, "weight": None if ratio_gradient else np.maximum(ratio, 1 - epsilon)}
    return batch, coefs, variables


def script_gradients(script, batch, coefs, variables):
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
    # As `learn` puts them together, which test_wiring.py holds gradient by gradient.
    loss = terms["pg_loss"] - coefs["ent_coef"] * terms["entropy_loss"]
    loss = loss + coefs["vf_coef"] * terms["v_loss"]
    if coefs["distill_lambda"] is not None:
        teacher = distribution(script, batch["teacher_outputs"], batch["teacher_log_std"])
        kl = script.policy_kl(teacher, dist, coefs["kl"])
        options = {} if coefs["weight"] is None else {"ratio_gradient": False}
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
    """Values and gradients; where the ratio is detached, its weight is a constant."""
    cases = [("forward", True), ("reverse", True), ("forward", False)]
    for seed, case in enumerate(cases):
        batch, coefs, variables = random_case(family, seed, 24, *case)
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


@pytest.mark.parametrize(("name", "family"), FAMILIES.items(), ids=str)
@pytest.mark.parametrize("distill", [True, False])
def test_values_and_gradients(name, family, distill):
    check_against_oracle(load(name), family, distill)


KLS = [*FAMILIES.items(), ("ppd_procgen", oracle.Categorical)]
KLS += [(name, family) for name in BASELINES for family in FAMILIES.values()]


@pytest.mark.parametrize(("name", "family"), KLS, ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_kl(name, family, direction):
    """In each script: `policy_kl` is the one loss of which suites have bodies of their own."""
    batch, _, variables = random_case(family, 3)
    pair = [(batch["teacher_outputs"], batch["teacher_log_std"]), tuple(variables[:2])]
    dists = [distribution(load(name), *map(torch.from_numpy, policy)) for policy in pair]
    kl = load(name).policy_kl(*dists, direction)
    expected = family.kl(*(pair if direction == "forward" else pair[::-1]))
    np.testing.assert_allclose(kl, expected, rtol=1e-10)


MUTATIONS = [
    ("clipped_surrogate_loss", "1 - clip_coef", "1 - 2 * clip_coef"),
    ("clipped_surrogate_loss", "1 + clip_coef", "1 + 2 * clip_coef"),
    ("clipped_surrogate_loss", "-torch.min", "torch.min"),
    ("clipped_surrogate_loss", "torch.min", "torch.max"),
    ("clipped_surrogate_loss", "(ratio * advantages,", "(ratio,"),
    ("clipped_surrogate_loss", "clipped_ratio * advantages)", "clipped_ratio)"),
    ("clipped_surrogate_loss", ").mean()", ").sum()"),
    ("value_loss", "returns)  #", "returns, reduction='sum')  #"),
    ("value_loss", "returns)  #", "returns) / 2  #"),
    ("value_loss", "mse_loss(", "l1_loss("),
    ("value_loss", "mse_loss(values", "mse_loss(-values"),
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
    script = mutant(name, function, old, new)
    with pytest.raises(AssertionError):
        check_against_oracle(script, FAMILIES[name])


def test_shapes_that_would_broadcast_are_seen():
    """The classic slip: a critic's (M, 1) beside (M,)."""
    script, column = load("ppd_mujoco"), torch.rand(4, 1)
    with pytest.warns(UserWarning, match="different to the input size"):
        script.value_loss(column, column.squeeze(-1))
    with pytest.raises(ValueError, match="differ in shape"):
        script.distillation_loss(column, column.squeeze(-1), 0.2)


@pytest.mark.parametrize("name", ["ppd_atari", "ppd_mujoco", "ppd_mujoco_lstm", *BASELINES])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_kl_of_a_teacher_who_is_very_sure(name, direction):
    """Its probabilities underflow, as those of a corrupted teacher do; the KL stays finite."""
    sure, unsure = torch.tensor([[0.0, 120.0, -90.0]]), torch.tensor([[0.3, 0.1, -0.2]])
    script, pair = load(name), [sure, unsure.requires_grad_()]
    if "atari" in name:
        dists = [script.PixelAgent.distribution(None, logits) for logits in pair]
    else:  # one of three actions
        agent = script.MujocoAgent(np.zeros(3, np.int8), np.ones(3, np.int8), 1, (2,))
        dists = [agent.distribution(logits) for logits in pair]
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


def test_kl_of_another_shape_is_refused():
    """A KL per action dimension would broadcast into a plausible number."""
    with pytest.raises(ValueError, match="differ in shape"):
        script.distillation_loss(torch.ones(4, 3), torch.ones(4), 0.2)


def test_advantages_normalised_as_in_sb3():
    normalize, advantages = script.normalize_advantages, torch.tensor([1.0, 2.0, 4.0])
    expected = (np.array([1, 2, 4]) - 7 / 3) / (np.std([1, 2, 4], ddof=1) + 1e-8)
    np.testing.assert_allclose(normalize(advantages), expected, rtol=1e-6)
    assert normalize(torch.full((3,), 5.0)).tolist() == [0, 0, 0]
    assert normalize(torch.tensor([3.0])).tolist() == [3.0]


def test_stable_baselines3(monkeypatch):
    """One gradient of SB3's own PPO.train, on the same weights and rollout, is ours."""
    size, coefs = 16, {"ent_coef": 0.3, "vf_coef": 0.7}
    env = make_spaces(gym.spaces.Box(-5, 5, (4,)), gym.spaces.Box(-1, 1, (3,)))
    net = {"net_arch": {"pi": [8, 6], "vf": [8, 6]}, "activation_fn": torch.nn.ReLU}
    rollout = {"n_steps": size, "batch_size": size, "n_epochs": 1, "max_grad_norm": 1e9}
    model = PPO("MlpPolicy", env, policy_kwargs=net, device="cpu", **rollout, **coefs)
    model.set_logger(configure(None, []))
    agent = script.MujocoAgent(-torch.ones(3), torch.ones(3), 4, (8, 6))
    theirs = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    theirs += [*model.policy.mlp_extractor.value_net, model.policy.value_net]
    theirs = [p for layer in theirs for p in layer.parameters()] + [model.policy.log_std]
    ours = [*agent.actor.parameters(), *agent.critic.parameters(), agent.log_std]
    with torch.no_grad():
        for a, b in zip(ours, theirs, strict=True):
            a.add_(torch.randn_like(a) * 0.2)
            b.copy_(a)
    obs, actions = torch.randn(size, 4), torch.randn(size, 3)
    advantages, returns, noise = torch.randn(3, size)
    dist, values = agent.policy(obs), agent.value(obs)
    logprob = dist.log_prob(actions)
    old = logprob.detach() - 0.4 * noise
    buffer = model.rollout_buffer
    buffer.observations[:, 0], buffer.actions[:, 0] = obs, actions
    buffer.log_probs[:, 0], buffer.advantages[:, 0] = old, advantages
    buffer.returns[:, 0], buffer.full = returns, True
    monkeypatch.setattr(model.policy.optimizer, "step", lambda: None)
    model.train()

    ratio, advantages = (logprob - old).exp(), script.normalize_advantages(advantages)
    pg_loss = script.clipped_surrogate_loss(ratio, advantages, 0.2)
    v_loss, entropy_loss = script.value_loss(values, returns), dist.entropy().mean()
    (pg_loss - coefs["ent_coef"] * entropy_loss + coefs["vf_coef"] * v_loss).backward()
    logged = model.logger.name_to_value
    assert pg_loss.item() == pytest.approx(logged["train/policy_gradient_loss"], abs=1e-5)
    assert v_loss.item() == pytest.approx(logged["train/value_loss"], rel=1e-5)
    assert entropy_loss.item() == pytest.approx(-logged["train/entropy_loss"], rel=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad, b.grad, atol=1e-5)
