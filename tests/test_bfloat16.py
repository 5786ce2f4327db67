"""In bfloat16 a network acts as it does in float32, in both suites of frames, on a CPU too."""

import pytest
import torch

import ppd_atari
import ppd_procgen

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
