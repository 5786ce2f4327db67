"""Other tasks for Gymnasium's MuJoCo robots: another direction, another gravity.

    python ppo_teacher_mujoco.py --env-id experiments.tasks:HalfCheetahBackward-v4

Gymnasium imports this module for an id that begins with `experiments.tasks:`. All tasks of a robot
have its observations and actions, so one student can learn several of them (`ppd_mujoco_multi.py`).
The robots' own v4 environments stay as they are.
"""

import math

import gymnasium as gym
from gymnasium.envs.mujoco.ant_v4 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v4 import HalfCheetahEnv


class HalfCheetahGravity(HalfCheetahEnv):
    """HalfCheetah with its gravity multiplied by `gravity`."""

    def __init__(self, gravity: float, **kwargs):
        super().__init__(**kwargs)
        self.model.opt.gravity[:] *= gravity


class AntHeading(AntEnv):
    """Ant, rewarded for its speed towards `heading`: degrees, counted from ahead to its left."""

    def __init__(self, heading: float, **kwargs):
        super().__init__(**kwargs)
        self.direction = math.cos(math.radians(heading)), math.sin(math.radians(heading))

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        x, y = self.direction
        speed = x * info["x_velocity"] + y * info["y_velocity"]
        reward += speed - info["reward_forward"]  # in place of the speed along x
        return obs, reward, terminated, truncated, info | {"reward_forward": speed}


def register(env_id: str, entry_point: type[gym.Env], **kwargs) -> None:
    """Add a task whose episodes have 1,000 steps, as those of the v4 robots."""
    gym.register(env_id, entry_point, max_episode_steps=1000, kwargs=kwargs)


register("HalfCheetahBackward-v4", HalfCheetahEnv, forward_reward_weight=-1.0)
register("HalfCheetahLight-v4", HalfCheetahGravity, gravity=0.5)
register("HalfCheetahHeavy-v4", HalfCheetahGravity, gravity=1.5)
register("AntLeft-v4", AntHeading, heading=90.0)
register("AntBackward-v4", AntHeading, heading=180.0)
register("AntRight-v4", AntHeading, heading=270.0)
