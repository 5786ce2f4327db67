"""Each script's own `learn`, gradient by gradient, against the oracle.

The losses may be right and the loop still wrong: an index forgotten, a teacher never added. So two
whole iterations of the real loop run on small environments, everything that went into them is
recorded, and every gradient that Adam got is computed anew from the paper's formulas.
"""

from types import SimpleNamespace

import helpers
import numpy as np
import oracle
import pytest
import torch
from helpers import PPD_SCRIPTS, SUITES, TEACHERS, FakeEnvs, definitions, load, mutant, read

T, N, STEPS = 9, 4, ("terminations", "truncations", "rewards", "obs", "actions")


def record_run(script, monkeypatch, tmp_path, **values):
    """`train` on small environments; returns its arguments, its teacher and what was recorded."""
    helpers.use_fake_envs(script, monkeypatch)
    monkeypatch.setattr(script, "SummaryWriter", helpers.NoWriter)
    updates, permutations = [], []

    def record_step(self, closure=None):
        group = self.param_groups[0]["params"]
        updates.append([(p.detach().clone(), p.grad.clone()) for p in group])
        return step(self, closure)

    def record_permutation(*arguments, **options):
        permutations.append(randperm(*arguments, **options))
        return permutations[-1]

    step, randperm = torch.optim.Adam.step, torch.randperm
    monkeypatch.setattr(torch.optim.Adam, "step", record_step)
    monkeypatch.setattr(torch, "randperm", record_permutation)
    values = {"learning_rate": 0.03, "ent_coef": 0.1, "hidden_sizes": (4, 3)} | values
    teacher = None
    if script.__name__ not in TEACHERS:
        path = tmp_path / "teacher.safetensors"
        teacher = helpers.make_teacher("mujoco", path, sizes=(3, 2)).double()
        values["teacher"] = str(path)
    args = helpers.make_args(script, "mujoco", tmp_path / "run", **values)
    script.train(args)
    recorded = {"steps": FakeEnvs.made[0].steps, "updates": updates, "permutations": permutations}
    return SimpleNamespace(args=args, teacher=teacher, **recorded)


def record_ppo(script, monkeypatch, tmp_path, **changed):
    """Two iterations, in which a high learning rate takes ratios out of the clip range."""
    values = {"num_steps": T, "total_timesteps": 2 * T * N, "minibatch_size": 16, "gamma": 0.8}
    if script.__name__ in PPD_SCRIPTS:
        values |= {"distill_lambda": 1.5, "distill_lambda_final": 0.5}
    return record_run(script, monkeypatch, tmp_path, **values | changed)


def float64_agent(script, args, update):
    """The agent as it was before an update."""
    agent = script.MujocoAgent(-torch.ones(2), torch.ones(2), 3, args.hidden_sizes).double()
    with torch.no_grad():
        for parameter, (value, _) in zip(agent.parameters(), update, strict=True):
            parameter.copy_(value)
    return agent


def normalize(obs, statistics):
    """Observations (…, 3) as the networks take them, given their mean and variance."""
    mean, var = (np.asarray(moment) for moment in statistics)
    return np.clip((obs - mean) / np.sqrt(var + 1e-8), -10, 10)


def check_gradient(agent, update, obs, losses, max_norm):
    """What Adam got is the clipped gradient of the oracle's loss by every parameter of the agent.

    The oracle differentiates by outputs, deviations and values; torch, by the weights below.
    """
    outputs, values = agent.actor(obs), agent.critic(obs).squeeze(-1)
    variables = [x.detach().numpy() for x in (outputs, agent.log_std, values)]
    slopes = map(torch.from_numpy, oracle.gradients(losses, variables)["loss"])
    torch.autograd.backward([outputs, agent.log_std, values], list(slopes))
    expected = [p.grad for p in agent.parameters()]
    norm = torch.cat([g.flatten() for g in expected]).norm().item()
    for (_, gradient), g in zip(update, expected, strict=True):
        g = g * min(1, max_norm / (norm + 1e-6))
        np.testing.assert_allclose(gradient, g, rtol=2e-3, atol=2e-5)
    return variables


def check_adam(args, updates):
    """From one gradient to the next the parameters take Adam's step (Kingma and Ba, 2015)."""
    moments = [(0.0, 0.0)] * len(updates[0])
    for t, (before, after) in enumerate(zip(updates, updates[1:], strict=False), 1):
        for i, ((value, gradient), (result, _)) in enumerate(zip(before, after, strict=True)):
            first, second = moments[i]
            gradient = gradient.double()
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            moments[i] = first, second
            deviation = (second / (1 - 0.999**t)).sqrt() + args.adam_eps
            step = args.learning_rate * first / (1 - 0.9**t) / deviation
            np.testing.assert_allclose(result, value.double() - step, rtol=1e-4, atol=1e-5)


def check_run(script, run):
    """Every gradient of the run is the oracle's, and every step Adam's; returns the ratios."""
    args, teacher = run.args, run.teacher
    check_adam(args, run.updates)
    scale_reward, seen, ratios = oracle.RewardScale(N), [], []
    updates, permutations = run.updates.copy(), run.permutations.copy()
    frozen = teacher and (teacher.obs_mean, teacher.obs_var)
    assert len(run.steps) == 2 * T
    for iteration in range(2):
        rollout = run.steps[iteration * T : (iteration + 1) * T]
        stack = lambda name, rollout=rollout: np.stack([step[name] for step in rollout])
        terminations, truncations, raw_rewards, obs, actions = map(stack, STEPS)
        ended = terminations | truncations
        rewards = np.stack([scale_reward(r, e) for r, e in zip(raw_rewards, ended, strict=True)])
        # Each step is normalised by the statistics of all steps up to it, or by the teacher's.
        normalized = np.empty_like(obs)
        for t in range(T):
            seen.append(obs[t])
            statistics = frozen or oracle.moments(np.concatenate(seen))
            normalized[t] = normalize(obs[t], statistics)
        flat = lambda array: array.reshape(T * N, *array.shape[2:])
        b_obs = torch.from_numpy(flat(normalized))
        collector = float64_agent(script, args, updates[0])
        with torch.no_grad():
            value = lambda o, agent=collector: agent.critic(torch.from_numpy(o)).squeeze(-1).numpy()
            values = value(normalized)
            # States that are not in the rollout are normalised by the statistics at its end.
            true_next = normalize(stack("reached"), statistics)
            inside = ~ended & (np.arange(T) < T - 1)[:, None]
            next_values = np.where(inside, np.roll(values, -1, 0), value(true_next))
            policy = collector.actor(b_obs).numpy(), collector.log_std.numpy()
            b_logprobs = oracle.Gaussian.log_prob(*policy, flat(actions))
            teacher_outputs = teacher and teacher.actor(b_obs).numpy()
        rest = terminations, ended, args.gamma, args.gae_lambda
        advantages = oracle.gae(rewards, values, next_values, *rest)
        coefs = {name: getattr(args, name) for name in ("clip_coef", "ent_coef", "vf_coef")}
        coefs["distill_lambda"] = None
        if teacher:  # linear from 1.5 to 0.5, which the second and last iteration has
            coefs |= {"distill_lambda": 1.5 - iteration, "kl": args.kl}
        for _ in range(args.update_epochs):
            permutation = permutations.pop(0).numpy()
            assert sorted(permutation) == list(range(T * N))
            for mb in np.split(permutation, [16, 32]):
                update = updates.pop(0)
                batch = {"actions": flat(actions)[mb], "logprobs": b_logprobs[mb]}
                batch |= {"advantages": flat(advantages)[mb]}
                batch |= {"returns": flat(advantages + values)[mb]}
                if teacher:
                    log_std = teacher.log_std.detach().numpy()
                    batch |= {"teacher_outputs": teacher_outputs[mb], "teacher_log_std": log_std}
                losses = lambda *a, c=(oracle.Gaussian, batch, coefs): oracle.losses(*c, *a)
                agent = float64_agent(script, args, update)
                if teacher and not args.ratio_gradient:  # a number, not a function of θ
                    with torch.no_grad():
                        new = agent.actor(b_obs[mb]).numpy(), agent.log_std.numpy()
                    new = oracle.Gaussian.log_prob(*new, batch["actions"])
                    ratio = np.exp(new - batch["logprobs"])
                    coefs["weight"] = np.maximum(ratio, 1 - args.clip_coef)
                check = agent, update, b_obs[mb], losses, args.max_grad_norm
                means, log_std, _ = check_gradient(*check)
                new = oracle.Gaussian.log_prob(means, log_std, batch["actions"])
                ratios.append(np.exp(new - batch["logprobs"]))
    assert not updates and not permutations
    return ratios


CASES = [(name, {}) for name in ("ppo_teacher_mujoco", "ppd_mujoco")]
CASES += [("ppo_teacher_mujoco", {"max_grad_norm": 1e9}), ("ppd_mujoco", {"kl": "reverse"})]
CASES.append(("ppd_mujoco", {"ratio_gradient": False}))


@pytest.mark.parametrize(("name", "changed"), CASES, ids=str)
def test_every_gradient_of_train(name, changed, monkeypatch, tmp_path):
    script = load(name)
    ratios = check_run(script, record_ppo(script, monkeypatch, tmp_path, **changed))
    np.testing.assert_allclose(ratios[0], 1, rtol=1e-5)
    everything = np.concatenate(ratios)
    assert everything.min() < 0.8 and everything.max() > 1.2


def method(name: str) -> str:
    """The lines of `learn` from the scaled rewards to the end of a minibatch."""
    train = definitions(read(name))["learn"]
    train = train[train.index("scaled_rewards =") : train.index("metrics.append(")]
    for mujoco, pixels in [
        (
            "mb_obs = b_obs[mb]",
            "frames = agent.normalize(b_obs[mb], args.bfloat16)  # once for both networks",
        ),
        ("agent.actor(mb_obs)", "agent.compute(agent.actor, frames)"),
        ("agent.critic(mb_obs)", "agent.compute(agent.critic, frames)"),
        ("b_teacher_means", "b_teacher_logits"),
    ]:
        train = train.replace(mujoco, pixels)
    asked_once = ("ends = ", "b_teacher_logits = ")  # and what ended is told by each suite
    lines = [line for line in train.splitlines() if not line.strip().startswith(asked_once)]
    return "\n".join(lines)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("scripts", [TEACHERS, PPD_SCRIPTS], ids=["teachers", "ppd"])
def test_the_suites_have_one_method(suite, scripts):
    """What holds for MuJoCo's `learn`, gradient by gradient, holds for all."""
    assert method(scripts[SUITES.index(suite)]) == method(scripts[0])
    assert len(method(scripts[0]).splitlines()) > 20


MUTATIONS = [
    ("ppd_mujoco", *mutation)
    for mutation in [
        ("dist.log_prob(b_actions[mb]) - b_logprobs[mb]", "dist.log_prob(b_actions[mb])"),
        ("logratio.exp()", "logratio.exp().detach()"),
        ("normalize_advantages(b_advantages[mb])", "b_advantages[mb]"),
        ("b_advantages[mb]", "b_returns[mb]"),
        ("b_returns[mb], args", "b_advantages[mb], args"),
        ("mb_advantages, args.clip_coef)", "mb_advantages, 0.1)"),
        ("b_returns[mb], args.vf_coef", "b_returns[mb], 1.0"),
        ("- args.ent_coef * entropy", ""),
        ("- args.ent_coef * entropy", "+ args.ent_coef * entropy"),
        ("args.pg_coef * pg_loss", "0 * pg_loss"),
        ("optimizer.zero_grad()", "None"),
        ('"lr": args.learning_rate', '"lr": 0.029'),
        ('"eps": args.adam_eps', '"eps": 1e-8'),
        ('"fused": True', '"fused": True, "weight_decay": 0.01'),
        (".log_prob(b_actions)  # (B,)", ".log_prob(b_actions * 0.9)  # (B,)"),
        ("if final_obs:", "if False:"),
        ("terminations[t], truncations[t], infos", "truncations[t], terminations[t], infos"),
        ("normalize_reward(rewards, ended)", "rewards"),
        ("normalize_reward(rewards, ended)", "normalize_reward(rewards, terminations)"),
        ("values[1:], agent", "values[1:], 0 * agent"),
        ("agent.value(next_obs)[None]", "values[-1:]"),
        ("agent.value(np.array(final_obs))", "values[truncations]"),
        ("(advantages + values)", "advantages"),
        ("torch.from_numpy(terminations)", "torch.from_numpy(ended)"),
        ("torch.from_numpy(ended)", "torch.from_numpy(terminations)"),
        ("args.gamma, args.gae_lambda", "args.gae_lambda, args.gae_lambda"),
        ("_norm_(agent.parameters()", "_norm_(agent.actor.parameters()"),
        ("agent.actor(agent.normalize(obs[t]))", "agent.actor(obs[t])"),
        ("b_norm_obs = agent.normalize(obs", "b_norm_obs = (obs"),
        ("loss + distill_lambda * distill_loss", "loss"),
        ("loss + distill_lambda * distill_loss", "loss + distill_loss"),
        ("loss + distill_lambda * distill_loss", "loss - distill_lambda * distill_loss"),
        ("loss + distill_lambda * distill_loss", "loss + args.distill_lambda * distill_loss"),
        ("lambda_at(run.step, run.total - B, args)", "lambda_at(run.step, run.total, args)"),
        ("b_teacher_means[mb]", "b_teacher_means[: len(mb)]"),
        ("teacher.actor(teacher.normalize", "agent.actor(teacher.normalize"),
        ("teacher.distribution(", "agent.distribution("),
        ("dist, args.kl)", "dist, 'reverse')"),
        ("ratio, args.clip_coef, args.ratio", "ratio, 0.5, args.ratio"),
        ("args.ratio_gradient)", "False)"),
        ('("obs_mean", "obs_var", "obs_count", "obs_clip")', "()"),
    ]
]
MUTATIONS += [("ppo_teacher_mujoco", "update_normalizer(agent, next_obs)", "None")]


@pytest.mark.parametrize(("name", "old", "new"), MUTATIONS)
def test_a_changed_loop_is_seen(name, old, new, monkeypatch, tmp_path):
    script = mutant(name, "learn", old, new)
    with pytest.raises(AssertionError):
        check_run(script, record_ppo(script, monkeypatch, tmp_path))
