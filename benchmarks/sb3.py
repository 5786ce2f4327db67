"""Stable-Baselines3 set up as our scripts are: environments, networks, settings, teachers.

For `benchmarks/speed.py` and the experiments that lay SB3's or the authors' curves beside ours.
"""

import os
from functools import partial
from importlib import import_module


def make_envs(suite: str, args, vec_env: str):
    """SB3's vector environment, with its normalisation, for the `args` of one of our scripts."""
    from stable_baselines3.common import vec_env as vec
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env

    class ProcgenVecEnv(vec.VecEnv):
        """Our Procgen games, which are ProcgenGym3Env and a transposition, as SB3 wants them."""

        def __init__(self, envs):
            self.envs = envs
            super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

        def reset(self):
            return self.envs.reset(seed=args.seed)[0].copy()

        def step_async(self, actions):
            self.actions = actions

        def step_wait(self):
            obs, rewards, ended, _, _ = self.envs.step(self.actions)
            return obs.copy(), rewards, ended, [{} for _ in ended]

        def close(self):
            self.envs.close()

        def get_attr(self, attr_name, indices=None):
            return [getattr(self.envs, attr_name)] * self.num_envs

        def env_is_wrapped(self, wrapper_class, indices=None):
            return [False] * self.num_envs

        set_attr = env_method = None  # abstract in VecEnv; PPO calls neither

    ppo = import_module(f"ppo_teacher_{suite}")
    same = {"n_envs": args.num_envs, "seed": args.seed, "vec_env_cls": getattr(vec, vec_env, None)}
    if suite == "mujoco":
        return vec.VecNormalize(make_vec_env(partial(ppo.make_mujoco_env, args.env_id), **same))
    if suite == "atari":
        import ale_py
        import gymnasium as gym

        gym.register_envs(ale_py)
        wrapper = {"clip_reward": False, "frame_skip": args.frame_skip}
        envs = vec.VecFrameStack(make_atari_env(args.env_id, wrapper_kwargs=wrapper, **same), 4)
    else:
        envs = ProcgenVecEnv(ppo.ProcgenVectorEnv(args, args.num_envs, os.cpu_count()))
    return vec.VecNormalize(envs, norm_obs=False)


def make_policy(suite: str, size) -> dict:
    """SB3's policy class and its arguments: our networks of that size (MuJoCo: hidden layers)."""
    import torch
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class PaperCNN(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            make_cnn = import_module(f"ppo_teacher_{suite}").make_cnn
            cnn, head = make_cnn(size, observation_space.shape, 1, 1.0)
            super().__init__(observation_space, head.in_features)
            self.cnn = cnn

        def forward(self, frames):
            return self.cnn(frames)

    if suite == "mujoco":
        net_arch = {"pi": list(size), "vf": list(size)}
        kwargs = {"net_arch": net_arch, "activation_fn": torch.nn.ReLU}
        return {"policy": "MlpPolicy", "policy_kwargs": kwargs}
    kwargs = {"net_arch": [], "features_extractor_class": PaperCNN}
    return {"policy": "CnnPolicy", "policy_kwargs": kwargs | {"share_features_extractor": False}}


def settings_of(args) -> dict:
    """The arguments of SB3's algorithm, except policy and environments, for one of our `Args`."""
    names = ("device", "seed", "learning_rate", "ent_coef", "vf_coef", "max_grad_norm")
    settings = {name: getattr(args, name) for name in (*names, "gamma", "gae_lambda")}
    settings |= {"n_steps": args.num_steps, "batch_size": args.minibatch_size}
    return settings | {"n_epochs": args.update_epochs, "clip_range": args.clip_coef}


def paired_layers(suite: str, policy, agent) -> list[tuple]:
    """Pairs of modules, SB3's and ours, that hold the same weights."""
    if suite == "mujoco":
        hidden = policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net
        ours = agent.actor[:-1], agent.critic[:-1]
    else:
        hidden = policy.pi_features_extractor.cnn, policy.vf_features_extractor.cnn
        ours = agent.actor[0], agent.critic[0]
    heads = [(policy.action_net, agent.actor[-1]), (policy.value_net, agent.critic[-1])]
    return [*zip(hidden, ours, strict=True), *heads]


def make_teacher(suite: str, path: str, envs, settings: dict):
    """One of our teachers as SB3's PPO; on MuJoCo `envs` are given its observation statistics."""
    from stable_baselines3 import PPO

    agent, header = getattr(import_module(f"ppo_teacher_{suite}"), f"load_{suite}_agent")(path)
    size = header["hidden_sizes" if suite == "mujoco" else "size"]
    teacher = PPO(env=envs, **make_policy(suite, size), **settings)
    for theirs, ours in paired_layers(suite, teacher.policy, agent):
        theirs.load_state_dict(ours.state_dict())
    if suite == "mujoco":
        teacher.policy.log_std.data.copy_(agent.log_std)
        envs.obs_rms.mean, envs.obs_rms.var = agent.obs_mean.numpy(), agent.obs_var.numpy()
        envs.obs_rms.count = float(agent.obs_count)
    return teacher
