"""The Atari pair: networks, the paper's numbers, options that must not change results, the loop."""

import copy
import json
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ppd_atari
import ppo_teacher_atari

SCRIPTS = {"ppo_teacher_atari": ppo_teacher_atari, "ppd_atari": ppd_atari}
ACTIONS = [4, 9, 9, 6, 9, 3, 9, 6, 6, 18, 18]  # of the paper's eleven games


@pytest.fixture(params=SCRIPTS)
def script(request):
    return SCRIPTS[request.param]


def count(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# ------------------------------------------------------------------------------- Networks


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("smaller", 142_511), ("same", 625_999), ("larger", 4_599_439), ("smaller-text", 99_439)],
)
def test_parameter_counts_on_procgen(script, size, parameters):
    assert count(script.PixelAgent((3, 64, 64), 15, size).actor) == parameters


@pytest.mark.parametrize(
    ("size", "thousands"),
    [("smaller", 279.3), ("same", 1091.5), ("larger", 8328.9), ("smaller-text", 235.9)],
)
def test_parameter_counts_on_atari(size, thousands):
    """Table 4: the mean over the games, which differ in their last layer."""
    agent = ppd_atari.PixelAgent((4, 84, 84), ACTIONS[0], size)
    last = agent.actor[1]
    body = count(agent.actor) - count(last)
    mean = body + np.mean([(last.in_features + 1) * actions for actions in ACTIONS])
    assert round(mean / 1000, 1) == thousands
    assert count(agent.critic) == body + last.in_features + 1


@pytest.mark.parametrize(
    "size", ["smaller", "smaller-text", "same", pytest.param("larger", marks=pytest.mark.slow)]
)
def test_initialisation(size):
    """Orthogonal: gain √2, policy head 0.01, value head 1; biases 0; nothing shared."""
    agent = ppd_atari.PixelAgent((4, 84, 84), 6, size)
    for network, last_gain in [(agent.actor, 0.01), (agent.critic, 1.0)]:
        layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        assert len(layers) == (5 if size.startswith("smaller") else 17)
        for layer in layers:
            gain = last_gain if layer is layers[-1] else 2**0.5
            singular = torch.linalg.svdvals(layer.weight.detach().flatten(1))
            np.testing.assert_allclose(singular, gain, rtol=1e-3)
            assert not layer.bias.any()
    shared = {id(p) for p in agent.actor.parameters()} & {id(p) for p in agent.critic.parameters()}
    assert not shared


def test_impala_by_hand():
    """Convolution, pooling and two residual blocks three times, written out once more."""
    functional = torch.nn.functional
    agent = ppd_atari.PixelAgent((4, 84, 84), 6, "same")
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    weights = iter(list(agent.actor.parameters()))

    def conv(x):
        return functional.conv2d(x, next(weights), next(weights), padding=1)

    x = obs.float() / 255
    for _ in range(3):
        x = functional.max_pool2d(conv(x), 3, 2, 1)
        for _ in range(2):
            x = x + conv(torch.relu(conv(torch.relu(x))))
    x = torch.relu(functional.linear(torch.relu(x.flatten(1)), next(weights), next(weights)))
    logits = functional.linear(x, next(weights), next(weights))
    assert next(weights, None) is None
    torch.testing.assert_close(agent.policy_outputs(obs), logits, rtol=1e-4, atol=1e-5)


def test_act(script):
    agent = script.PixelAgent((4, 84, 84), 6, "smaller")
    obs = np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), np.uint8)
    actions = agent.act(obs)
    expected = agent.policy_outputs(torch.from_numpy(obs)).argmax(-1)
    assert actions.dtype == np.int64
    assert actions.tolist() == expected.tolist()
    drawn = {tuple(agent.act(obs, deterministic=False)) for _ in range(20)}
    assert len(drawn) > 1
    assert agent.value(torch.from_numpy(obs)).shape == (5,)


# ------------------------------------------------------------------------------- The paper


def test_hyperparameters(script):
    args = script.Args()
    assert (args.num_envs, args.minibatch_size, args.update_epochs) == (18, 512, 4)
    assert (args.learning_rate, args.adam_eps, args.gae_lambda) == (3e-4, 1e-5, 0.9)
    assert (args.clip_coef, args.vf_coef, args.max_grad_norm) == (0.2, 0.5, 0.5)
    assert (args.seed, args.episodes, args.frame_skip) == (100, 50, 4)


def test_hyperparameters_of_each():
    args = ppo_teacher_atari.Args()
    assert (args.num_steps, args.gamma, args.ent_coef) == (256, 0.995, 0.01)
    assert (args.total_timesteps, args.network) == (10_000_000, "same")
    args = ppd_atari.Args()
    assert (args.num_steps, args.gamma, args.ent_coef) == (64, 0.999, 0.0)
    assert (args.total_timesteps, args.network) == (2_000_000, "larger")
    assert (args.distill_lambda, args.distill_lambda_final, args.kl) == (1.0, None, "forward")


@pytest.mark.parametrize(
    ("name", "flag"), [("ppo_teacher_atari", "size"), ("ppd_atari", "student_size")]
)
def test_the_texts_smaller_network(name, flag):
    args = SCRIPTS[name].Args
    assert args(**{flag: "smaller"}).network == "smaller"
    assert args(**{flag: "smaller"}, smaller_cnn="text").network == "smaller-text"
    assert args(**{flag: "same"}, smaller_cnn="text").network == "same"


def test_scores(script):
    """Badia et al. (2020); distinct games are told apart by return and length."""
    score = script.score_games("PongNoFrameskip-v4", [14.6, -20.7, 14.6], [9, 8, 9])
    assert score["human_normalized"] == pytest.approx(2 / 3)
    assert (score["distinct"], score["episodes"]) == (2, 3)
    text = script.game_score_text(score)
    assert "2 distinct" in text
    assert "human-normalised 0.67" in text
    assert script.score_games("AtlantisNoFrameskip-v4", [29028.1], [1])["human_normalized"] == 1
    other = script.score_games("BreakoutNoFrameskip-v4", [3.0], [1])
    assert "human_normalized" not in other
    assert "human" not in script.game_score_text(other)


# ------------------------------------------------------------------------------- Options


def outputs_and_gradients(agent, obs):
    agent.zero_grad()
    outputs = agent.policy_outputs(obs), agent.value(obs)
    (outputs[0].square().mean() + outputs[1].mean()).backward()
    return [*outputs, *(p.grad.clone() for p in agent.parameters())]


def strong_agent(size):
    """One whose logits are not all near 0."""
    torch.manual_seed(3)
    agent = ppd_atari.PixelAgent((4, 84, 84), 6, size)
    with torch.no_grad():
        agent.actor[1].weight.mul_(100)
    return agent, torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8)


def relative_error(a, b):
    return ((a - b).norm() / (b.norm() + 1e-6)).item()


@pytest.mark.parametrize("size", ["smaller", "same"])
def test_bfloat16_agrees(size):
    agent, obs = strong_agent(size)
    plain = outputs_and_gradients(agent, obs)
    agent.bfloat16 = True
    low = outputs_and_gradients(agent, obs)
    assert all(tensor.dtype == torch.float32 for tensor in low)
    errors = [relative_error(a, b) for a, b in zip(low, plain, strict=True)]
    assert 0 < max(errors[:2]) < 0.1
    assert max(errors) < 0.2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler
@pytest.mark.parametrize("size", ["smaller", "same"])
def test_compiled_networks_agree(size):
    agent, obs = strong_agent(size)
    compiled = copy.deepcopy(agent)
    for network in (compiled.actor, compiled.critic):
        network.compile(mode="reduce-overhead", dynamic=False)
    assert compiled.state_dict().keys() == agent.state_dict().keys()
    pairs = zip(
        outputs_and_gradients(compiled, obs), outputs_and_gradients(agent, obs), strict=True
    )
    assert max(relative_error(a, b) for a, b in pairs) < 1e-4


@pytest.mark.parametrize("threads", [1, 2])
def test_thread_counts_agree(threads):
    agent, obs = strong_agent("same")
    torch.set_num_threads(1)
    one = outputs_and_gradients(agent, obs)
    torch.set_num_threads(threads)
    pairs = zip(outputs_and_gradients(agent, obs), one, strict=True)
    assert max(relative_error(a, b) for a, b in pairs) < 1e-4


# ------------------------------------------------------------------------------- The loop


class FakeGames:
    """In place of AtariGames: where a frame is bright tells the one action that is rewarded."""

    def __init__(self, env_id, num_envs, num_threads, frame_skip, life_loss):
        self.num_envs, self.life_loss = num_envs, life_loss
        self.single_observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.single_action_space = gym.spaces.Discrete(3)

    def show(self):
        self.wanted = self.rng.integers(3, size=self.num_envs)
        obs = np.zeros((self.num_envs, 4, 84, 84), np.uint8)
        for game, wanted in enumerate(self.wanted):
            obs[game, :, 28 * wanted : 28 * (wanted + 1)] = 200
        return obs

    def reset(self, seed=None, options=None):
        self.rng, self.steps = np.random.default_rng(seed), np.zeros(self.num_envs, int)
        return self.show(), {}

    def step(self, actions):
        rewards = (actions == self.wanted).astype(np.int32)
        self.steps += 1
        over, lost = self.steps % 10 == 0, self.steps % 5 == 0  # a life is half a game
        infos = {"game_over": over, "_final_obs": over, "final_obs": self.show()}
        none = np.zeros(self.num_envs, bool)
        return self.show(), rewards, lost if self.life_loss else over, none, infos

    def state_dict(self):
        return {}

    def close(self):
        pass


def save_teacher(path, num_actions=6, env_id="PongNoFrameskip-v4", frame_skip=4, size="smaller"):
    with torch.random.fork_rng():
        torch.manual_seed(9)
        agent = ppd_atari.PixelAgent((4, 84, 84), num_actions, size)
        with torch.no_grad():
            agent.actor[1].weight.mul_(300)
    header = {"format": "ppd-agent-1", "suite": "atari", "script": "ppo_teacher_atari"}
    header |= {"env_id": env_id, "frame_skip": frame_skip, "size": size, "seed": 1}
    ppd_atari.save_agent(agent, path, header | {"deterministic": True, "steps": 0})
    return agent


def small_args(script, run_dir, **changes):
    """Two whole rollouts in seconds; PPD learns from a teacher beside the run."""
    options = {"num_envs": 2, "num_steps": 16, "minibatch_size": 24, "update_epochs": 2}
    options |= {"total_timesteps": 96, "eval_every": 0, "episodes": 2, "env_threads": 1}
    options |= {"run_dir": str(run_dir), "torch_threads": 1, "device": "cpu", "save_every": 32}
    if script is ppd_atari:
        path = run_dir.parent / "teacher.safetensors"
        if not path.exists():
            save_teacher(path)
        options |= {"student_size": "smaller", "teacher": str(path), "teacher_episodes": 1}
    else:
        options["size"] = "smaller"
    return script.Args(**options | changes)


def short_games(monkeypatch, script):
    """Games of a hundred frames, so that a final score takes no time."""
    import ale_py.vector_env

    plain = ale_py.vector_env.AtariVectorEnv

    def make(*args, **kwargs):
        return plain(*args, **(kwargs | {"max_num_frames_per_episode": 100}))

    monkeypatch.setattr(ale_py.vector_env, "AtariVectorEnv", make)


def assert_same_weights(a, b):
    a, b = (load_file(path / "agent.safetensors") for path in (a, b))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_teacher_learns(monkeypatch, tmp_path):
    """PPO on frames: from one in three right to nearly all."""
    script = ppo_teacher_atari
    monkeypatch.setattr(script, "AtariGames", FakeGames)
    changes = {"num_envs": 8, "minibatch_size": 64, "total_timesteps": 2560, "learning_rate": 1e-3}
    args = small_args(script, tmp_path / "run", **changes)
    result = script.train(args)
    first, last = result["curve"][0][1], result["curve"][-1][1]
    assert first < 6
    assert last > 8
    assert result["score"]["mean"] > 8


def test_the_student_learns(monkeypatch, tmp_path):
    """PPD without reward's help: its KL to the teacher falls."""
    script, losses = ppd_atari, []
    monkeypatch.setattr(script, "AtariGames", FakeGames)
    save_teacher(tmp_path / "teacher.safetensors", num_actions=3)
    check = script.check_finite
    monkeypatch.setattr(
        script,
        "check_finite",
        lambda agent, terms, *rest: losses.append(terms) or check(agent, terms, *rest),
    )
    args = small_args(
        script,
        tmp_path / "run",
        num_envs=8,
        minibatch_size=64,
        total_timesteps=1280,
        distill_lambda=10.0,
    )
    result = script.train(args)
    assert losses[-1]["distill/kl"] < 0.5 * losses[0]["distill/kl"]
    assert result["teacher_score"]["episodes"] == 2
    assert {"distinct", "human_normalized"} <= result["score"].keys()


def test_same_seed_twice_and_resumed(script, monkeypatch, tmp_path):
    """Bitwise: a run, the same again, and one that was stopped after an update and resumed."""
    short_games(monkeypatch, script)
    script.train(small_args(script, tmp_path / "one"))
    script.train(small_args(script, tmp_path / "two"))
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    check = script.check_finite

    def stop(agent, terms, update, run_dir):
        check(agent, terms, update, run_dir)
        if update == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script, "check_finite", stop)
        script.train(small_args(script, tmp_path / "stopped"))
    script.train(script.Args(resume=str(tmp_path / "stopped")))
    assert_same_weights(tmp_path / "one", tmp_path / "stopped")
    results = [
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "stopped")
    ]
    for key in ("episode_returns", "episode_lengths", "curve", "score", "steps"):
        assert results[0][key] == results[1][key]


def test_ratios_start_at_1(script, monkeypatch, tmp_path):
    short_games(monkeypatch, script)
    loss, ratios = script.clipped_surrogate_loss, []

    def record(ratio, *rest):
        ratios.append(ratio.detach())
        return loss(ratio, *rest)

    monkeypatch.setattr(script, "clipped_surrogate_loss", record)
    script.train(small_args(script, tmp_path / "run"))
    assert len(ratios) == 3 * 2 * 2  # rollouts × epochs × minibatches
    for first in ratios[::4]:
        np.testing.assert_allclose(first, 1, rtol=0, atol=1e-5)


def test_lost_lives_end_episodes_but_not_games(monkeypatch, tmp_path):
    """Learning and reward scale see five steps, statistics the ten of a whole game."""
    script, ends, seen = ppo_teacher_atari, [], []
    monkeypatch.setattr(script, "AtariGames", FakeGames)
    forward, gae = script.RewardNormalizer.forward, script.compute_gae

    def record(normalizer, rewards, ended):
        ends.append(ended.copy())
        return forward(normalizer, rewards, ended)

    def record_gae(rewards, values, next_values, terminations, ended, *rest):
        seen.append((terminations.clone(), ended.clone()))
        return gae(rewards, values, next_values, terminations, ended, *rest)

    monkeypatch.setattr(script.RewardNormalizer, "forward", record)
    monkeypatch.setattr(script, "compute_gae", record_gae)
    result = script.train(small_args(script, tmp_path / "run", num_steps=20, total_timesteps=40))
    every_fifth = (np.arange(1, 21) % 5 == 0)[:, None].repeat(2, 1)
    np.testing.assert_array_equal(np.concatenate(ends), every_fifth)
    for part in seen[0]:
        np.testing.assert_array_equal(part, every_fifth)
    assert set(result["episode_lengths"]) == {10}
    assert result["curve"][0][2] == 4


# ------------------------------------------------------------------------------- Input errors


def refusal(script, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--env-id", "Hopper-v4"], "no Atari id"),
        (["--env-id", "PingNoFrameskip-v4"], "no such game"),
        (["--frame-skip", 0], "--frame-skip 0: must be at least 1"),
        (["--env-threads", -1], "--env-threads -1: must be at least 1"),
        (["--device", "cuda:99"], "--device cpu"),
        (["--device", "gpu"], "no such device here"),
    ],
)
def test_wrong_arguments(script, arguments, reason, monkeypatch, capsys):
    assert reason in refusal(script, arguments, monkeypatch, capsys)


def test_wrong_teachers(monkeypatch, capsys, tmp_path):
    path = tmp_path / "teacher.safetensors"
    arguments = ["--teacher", path, "--num-envs", 2, "--run-dir", tmp_path / "run"]
    assert "train one with" in refusal(ppd_atari, arguments, monkeypatch, capsys)
    save_teacher(path, num_actions=4)
    assert "made for 4 actions" in refusal(ppd_atari, arguments, monkeypatch, capsys)
    save_teacher(path)
    tensors, header = ppd_atari.read_checkpoint(path)
    agent = ppd_atari.load_atari_agent(path)[0]
    ppd_atari.save_agent(agent, path, header | {"size": "same"})
    assert "do not have the sizes" in refusal(ppd_atari, arguments, monkeypatch, capsys)
    ppd_atari.save_agent(agent, path, header | {"suite": "procgen"})
    assert "an agent for procgen" in refusal(ppd_atari, arguments, monkeypatch, capsys)


def test_a_teacher_of_another_game_is_reported(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_teacher(path)
    args = ppd_atari.Args(teacher=str(path), device="cpu")
    assert ppd_atari.load_atari_teacher(args, 6)[2] is None
    save_teacher(path, env_id="QbertNoFrameskip-v4", frame_skip=1)
    warning = ppd_atari.load_atari_teacher(args, 6)[2]
    assert "QbertNoFrameskip-v4 with frame skip 1" in warning
