"""What the paper fixes: network sizes, hyperparameters, initialisation (Tables 3 and 4)."""

import numpy as np
import pytest
import torch
from helpers import MUJOCO_SCRIPTS, PAPER_IDS, load

SIZES = {"smaller": (128, 64), "same": (256, 256), "larger": (512, 512)}
SHAPES = {"Ant-v4": (27, 8), "HalfCheetah-v4": (17, 6), "Hopper-v4": (11, 3)}
SHAPES |= {"Humanoid-v4": (376, 17)}
COUNTS = {
    "Ant-v4": (12_360, 75_016, 281_096),
    "HalfCheetah-v4": (10_950, 71_942, 274_950),
    "Hopper-v4": (9_987, 69_635, 270_339),
    "Humanoid-v4": (57_617, 166_673, 464_401),
}
TABLE_4 = (22.7, 95.8, 322.7)
SHORT = ("Hopper-v4", "Swimmer-v4")


def mujoco_agent(script, env_id, size):
    obs_dim, action_dim = SHAPES[env_id]
    bounds = -torch.ones(action_dim), torch.ones(action_dim)
    return script.MujocoAgent(*bounds, obs_dim, script.mlp_sizes(size))


def test_parameter_counts(mujoco_script):
    """Of the policy network, without critic and deviations; Table 4 rounds their means."""
    counts = {
        env_id: tuple(
            sum(p.numel() for p in mujoco_agent(mujoco_script, env_id, size).actor.parameters())
            for size in SIZES
        )
        for env_id in COUNTS
    }
    assert counts == COUNTS
    means = np.mean(list(counts.values()), axis=0) / 1000
    assert tuple(means.round(1)) == TABLE_4


@pytest.mark.parametrize("env_id", list(SHAPES))
def test_shapes_are_the_simulators(env_id):
    env = load(MUJOCO_SCRIPTS[0]).make_mujoco_env(env_id)
    assert (*env.observation_space.shape, *env.action_space.shape) == SHAPES[env_id]
    env.close()


@pytest.mark.parametrize("env_id", PAPER_IDS)
def test_teacher_hyperparameters(env_id):
    args, short = load("ppo_teacher_mujoco").Args(env_id=env_id), env_id in SHORT
    assert args.num_steps == (256 if short else 512)
    assert args.ent_coef == (0.01 if short else 0.0)
    assert args.gamma == 0.995
    assert args.hidden_sizes == (256, 256)
    assert args.total_timesteps == 10_000_000


@pytest.mark.parametrize("env_id", PAPER_IDS)
def test_ppd_hyperparameters(env_id):
    args = load("ppd_mujoco").Args(env_id=env_id)
    assert args.num_steps == 64
    assert args.ent_coef == 0.0
    assert args.gamma == (0.995 if env_id in SHORT else 0.999)
    assert args.hidden_sizes == (512, 512)
    assert args.total_timesteps == 2_000_000
    assert (args.distill_lambda, args.distill_lambda_final, args.kl) == (1.0, None, "forward")


def test_hyperparameters_of_all(mujoco_script):
    args = mujoco_script.Args()
    assert (args.num_envs, args.minibatch_size, args.update_epochs) == (18, 512, 4)
    assert (args.learning_rate, args.adam_eps, args.gae_lambda) == (3e-4, 1e-5, 0.9)
    assert (args.clip_coef, args.vf_coef, args.max_grad_norm) == (0.2, 0.5, 0.5)
    assert (args.seed, args.episodes) == (100, 50)


@pytest.mark.parametrize(
    ("name", "flag"), [("ppo_teacher_mujoco", "size"), ("ppd_mujoco", "student_size")]
)
@pytest.mark.parametrize("size", SIZES)
def test_named_sizes(name, flag, size):
    assert load(name).Args(**{flag: size}).hidden_sizes == SIZES[size]


def test_what_is_set_wins_over_the_paper(mujoco_script):
    given = {"num_steps": 7, "gamma": 0.5, "ent_coef": 0.0, "hidden_sizes": (400, 300)}
    args = mujoco_script.Args(env_id="Hopper-v4", **given)
    assert {name: getattr(args, name) for name in given} == given
    assert args.from_paper == {}
    assert mujoco_script.Args(env_id="Hopper-v4").from_paper.keys() == given.keys()


def test_whole_rollouts(mujoco_script):
    """The step total rounds up, as in SB3."""
    args = mujoco_script.Args(num_envs=4, num_steps=10, total_timesteps=81)
    assert (args.batch_size, args.num_iterations) == (40, 3)
    assert mujoco_script.Args(num_envs=4, num_steps=10, total_timesteps=80).num_iterations == 2


def test_initialisation(mujoco_script):
    """Orthogonal: gain √2, policy head 0.01, value head 1; biases and log deviations 0."""
    agent = mujoco_agent(mujoco_script, "Hopper-v4", "same")
    assert agent.log_std.tolist() == [0.0, 0.0, 0.0]
    for network, last_gain in [(agent.actor, 0.01), (agent.critic, 1.0)]:
        linears = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
        assert all(isinstance(layer, torch.nn.Linear | torch.nn.ReLU) for layer in network)
        for layer, gain in zip(linears, [2**0.5, 2**0.5, last_gain], strict=True):
            gains = torch.linalg.svdvals(layer.weight)
            np.testing.assert_allclose(gains.detach(), gain, rtol=1e-4)
            assert not layer.bias.any()
    shared = {id(p) for p in agent.actor.parameters()} & {id(p) for p in agent.critic.parameters()}
    assert not shared


def test_actions_are_clipped_to_the_box(mujoco_script):
    agent = mujoco_agent(mujoco_script, "Hopper-v4", "smaller")
    actions = agent.env_actions(torch.tensor([[-3.0, 0.5, 3.0]]))
    assert actions.tolist() == [[-1.0, 0.5, 1.0]]
