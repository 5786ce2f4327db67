"""What the paper fixes: network sizes, hyperparameters, initialisation (Tables 3 and 4)."""

import numpy as np
import pytest
import torch
from helpers import BASELINES, PAPER_IDS, PPD_SCRIPTS, SUITES, TEACHERS, args_class, load, owner

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
script = owner("MujocoAgent")


def mujoco_agent(env_id, size):
    obs_dim, action_dim = SHAPES[env_id]
    box = -torch.ones(action_dim), torch.ones(action_dim)
    return script.MujocoAgent(*box, obs_dim, script.Args(student_size=size).hidden_sizes)


def values(args, names: str) -> tuple:
    return tuple(getattr(args, name) for name in names.split())


def test_parameter_counts():
    """Of the policy network, without critic and deviations; Table 4 rounds their means."""
    count = lambda agent: sum(p.numel() for p in agent.actor.parameters())
    for env_id, expected in COUNTS.items():
        assert tuple(count(mujoco_agent(env_id, size)) for size in SIZES) == expected
        env = script.make_mujoco_env(env_id)
        assert (*env.observation_space.shape, *env.action_space.shape) == SHAPES[env_id]
        env.close()
    means = np.mean(list(COUNTS.values()), axis=0) / 1000
    assert tuple(means.round(1)) == TABLE_4


@pytest.mark.parametrize("env_id", PAPER_IDS)
def test_what_depends_on_the_robot(env_id):
    short = env_id in SHORT
    args = load("ppo_teacher_mujoco").Args(env_id=env_id)
    rollout = (256, 0.01) if short else (512, 0.0)
    assert values(args, "num_steps ent_coef gamma") == (*rollout, 0.995)
    args = load("ppd_mujoco").Args(env_id=env_id)
    assert values(args, "num_steps ent_coef gamma") == (64, 0.0, 0.995 if short else 0.999)


PPO = "num_envs minibatch_size update_epochs learning_rate adam_eps gae_lambda clip_coef vf_coef"
PPO_VALUES = (18, 512, 4, 3e-4, 1e-5, 0.9, 0.2, 0.5)
ROLLOUT = "total_timesteps num_steps gamma ent_coef"
TEACHERS_ROLLOUTS = {  # Table 3; on MuJoCo those of Hopper, which is the default
    "mujoco": (10_000_000, 256, 0.995, 0.01),
    "atari": (10_000_000, 256, 0.995, 0.01),
    "procgen": (30_000_000, 512, 0.995, 0.01),
}


@pytest.mark.parametrize("name", TEACHERS + PPD_SCRIPTS)
def test_hyperparameters(name):
    args, suite = load(name).Args(), name.split("_")[-1]
    assert values(args, PPO) == PPO_VALUES
    assert values(args, "max_grad_norm seed") == (0.5, 100)
    assert args.episodes == (200 if suite == "procgen" else 50)
    if name in TEACHERS:
        assert args.size == "same"
        assert values(args, ROLLOUT) == TEACHERS_ROLLOUTS[suite]
    else:
        gamma = 0.995 if suite == "mujoco" else 0.999
        assert args.student_size == ("larger" if suite == "mujoco" else "smaller")
        assert values(args, ROLLOUT) == (2_000_000, 64, gamma, 0.0)
        distillation = "distill_lambda distill_lambda_final kl ratio_gradient"
        assert values(args, distillation) == (1.0, None, "forward", True)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("suite", SUITES)
def test_hyperparameters_of_the_baselines(name, suite):
    args = args_class(load(name), suite)()
    assert values(args, "num_envs num_steps total_timesteps") == (18, 5, 2_000_000)
    assert values(args, "learning_rate adam_eps ent_coef vf_coef") == (3e-4, 1e-5, 0.0, 0.5)
    assert values(args, "max_grad_norm kl") == (0.5, "forward")
    assert args.student_size == ("larger" if suite == "mujoco" else "smaller")
    assert values(args, "seed episodes") == (100, 200 if suite == "procgen" else 50)


def test_frames_and_levels():
    assert load("ppd_atari").Args().frame_skip == 4
    levels = values(load("ppd_procgen").Args(), "num_levels start_level distribution_mode")
    assert levels == (200, 0, "easy")


@pytest.mark.parametrize(
    ("name", "flag"), [("ppo_teacher_mujoco", "size"), ("ppd_mujoco", "student_size")]
)
def test_what_is_set_wins_over_the_paper(name, flag):
    args = load(name).Args
    for size, hidden_sizes in SIZES.items():
        assert args(**{flag: size}).hidden_sizes == hidden_sizes
    given = {"num_steps": 7, "gamma": 0.5, "ent_coef": 0.0, "hidden_sizes": (400, 300)}
    assert vars(args(env_id="Hopper-v4", **given)).items() >= given.items()


@pytest.mark.parametrize(("steps", "total"), [(81, 120), (80, 80), (1, 40)])
def test_whole_rollouts(steps, total, tmp_path):
    """The step total rounds up, as in SB3."""
    args = script.Args(num_envs=4, num_steps=10, total_timesteps=steps, run_dir=str(tmp_path / "a"))
    assert script.Run(args).total == total


def check_initialisation(agent, layers):
    """Orthogonal: gain √2, policy head 0.01, value head 1; biases 0; nothing shared."""
    for network, last_gain in [(agent.actor, 0.01), (agent.critic, 1.0)]:
        weighted = [module for module in network.modules() if hasattr(module, "weight")]
        assert len(weighted) == layers
        for layer in weighted:
            gain = last_gain if layer is weighted[-1] else 2**0.5
            gains = torch.linalg.svdvals(layer.weight.detach().flatten(1))
            np.testing.assert_allclose(gains, gain, rtol=1e-3)
            assert not layer.bias.any()
    shared = {id(p) for p in agent.actor.parameters()} & {id(p) for p in agent.critic.parameters()}
    assert not shared


def test_initialisation():
    agent = mujoco_agent("Hopper-v4", "same")
    check_initialisation(agent, 3)
    assert agent.log_std.tolist() == [0.0, 0.0, 0.0]
    layers = [*agent.actor, *agent.critic]
    assert all(isinstance(layer, torch.nn.Linear | torch.nn.ReLU) for layer in layers)


def test_actions_are_clipped_to_the_box():
    actions = mujoco_agent("Hopper-v4", "smaller").env_actions(torch.tensor([[-3.0, 0.5, 3.0]]))
    assert actions.tolist() == [[-1.0, 0.5, 1.0]]
