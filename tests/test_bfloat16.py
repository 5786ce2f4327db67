"""In bfloat16 a network acts as it does in float32, in both suites of frames, on a CPU too."""

from pathlib import Path

import pytest
import torch

import ppd_atari
import ppd_procgen

TEACHER = Path(__file__).parents[1] / "teachers" / "coinrun.safetensors"
SHAPES = {ppd_atari: ((4, 84, 84), 6), ppd_procgen: ((3, 64, 64), 15)}


@pytest.mark.parametrize("size", ["smaller", "same"])
@pytest.mark.parametrize("script", SHAPES, ids=lambda script: script.__name__)
def test_probabilities_agree(script, size):
    torch.manual_seed(3)
    agent = script.PixelAgent(*SHAPES[script], size)
    obs = torch.randint(0, 256, (16, *SHAPES[script][0]), dtype=torch.uint8)
    with torch.no_grad():  # untrained, all actions would be alike
        agent.actor[1].weight.mul_(2 / agent.logits(obs).std())
    plain = agent.policy(obs).probs
    agent.bfloat16 = True
    low = agent.policy(obs).probs
    assert low.dtype == torch.float32 and not torch.equal(low, plain)
    assert (low - plain).abs().max() < 0.02 < plain.max() - plain.min()
    agent.bfloat16 = False
    assert torch.equal(agent.policy(obs).probs, plain)


@pytest.mark.parametrize("script", SHAPES, ids=lambda script: script.__name__)
def test_frames_are_the_same_numbers(script):
    """As if they had been divided in float32: what a run computes does not depend on where."""
    frames = torch.arange(256, dtype=torch.uint8).view(4, 4, 4, 4)
    agent = script.PixelAgent(*SHAPES[script], "smaller")
    assert agent.normalize(frames).dtype == torch.float32
    assert torch.equal(agent.normalize(frames, True), agent.normalize(frames).bfloat16())


def test_the_shipped_teacher_acts_alike():
    agent, header = ppd_procgen.load_procgen_agent(TEACHER)
    envs = ppd_procgen.ProcgenVectorEnv(ppd_procgen.Args(env_id=header["env_id"]), 16, 1)
    torch.manual_seed(0)
    obs, _ = envs.reset(seed=0)
    differences = []
    for _ in range(50):
        agent.bfloat16 = False
        plain = agent.policy(obs).probs
        agent.bfloat16 = True
        differences.append((agent.policy(obs).probs - plain).abs().max().item())
        obs = envs.step(agent.act(obs, deterministic=False))[0]
    envs.close()
    assert 0 < max(differences) < 0.02
