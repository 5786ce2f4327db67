"""What to run first on a GPU: where the time of a minibatch and of an act step goes.

    python benchmarks/first_gpu.py                  # five minutes; writes first_gpu.json
    python benchmarks/first_gpu.py --sizes larger --suites procgen --minutes 10

For each suite, network size and combination of compile, bfloat16, channels-last weights and
cudnn.benchmark: milliseconds of each phase of PPD's act step and minibatch, as `learn` has them,
and how many kernels and graphs the host launches for them. Between two phases lies an event on the
device, no waiting: where the sum is far above the kernels' own time, the launches are what takes
long. Also the simulator's step alone. What compiles comes last, since it takes minutes; what the
time did not allow is listed as not measured. Medians; the JSON is written after each combination.
"""

import itertools
import json
import statistics
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SETTINGS = ("compile", "bfloat16", "channels_last", "cudnn_benchmark")


@dataclass
class Args:
    suites: tuple[Literal["atari", "procgen"], ...] = ("atari", "procgen")  # whose networks
    sizes: tuple[Literal["smaller", "same", "larger"], ...] = ("smaller", "same", "larger")
    minutes: float = 5.0  # no combination is begun after so many
    device: Literal["cpu", "cuda"] = "cuda"  # cpu: to try this file
    num_envs: int = 18  # frames of an act step, N
    minibatch_size: int = 512  # frames of a minibatch, M
    rounds: int = 20  # of which each phase's median is taken
    out: Path = Path("first_gpu.json")  # file to write


class Laps:
    """Times phases on the device, without waiting for it in between."""

    def __init__(self, device: str):
        self.on_gpu, self.marks = device == "cuda", []

    def mark(self, phase: str) -> None:
        """A phase ends here; the first mark is the start."""
        if self.on_gpu:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.marks.append((phase, now))

    def milliseconds(self) -> dict[str, float]:
        """Of each phase since the first mark."""
        if self.on_gpu:
            torch.cuda.synchronize()
        spans = itertools.pairwise(self.marks)
        if self.on_gpu:
            return {phase: start.elapsed_time(end) for (_, start), (phase, end) in spans}
        return {phase: 1000 * (end - start) for (_, start), (phase, end) in spans}


def make_steps(script, args: Args, size: str, settings: dict):
    """The act step and the minibatch of PPD's `learn`, as functions that mark their phases."""
    shape, actions = {"ppd_atari": ((4, 84, 84), 6), "ppd_procgen": ((3, 64, 64), 15)}[
        script.__name__
    ]
    torch.backends.cudnn.benchmark = settings["cudnn_benchmark"]
    agent = script.PixelAgent(shape, actions, size).to(args.device)
    agent.bfloat16 = settings["bfloat16"]
    if settings["channels_last"]:
        agent.to(memory_format=torch.channels_last)
    for network in (agent.actor, agent.critic) if settings["compile"] else ():
        options = {"mode": "reduce-overhead", "dynamic": False, "isolate_recompiles": True}
        network.forward = torch.compile(network.forward, **options)
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-4, eps=1e-5, fused=True)
    M, pixels = args.minibatch_size, (*shape[1:], shape[0])
    b_obs = torch.randint(0, 256, (2 * M, *pixels), dtype=torch.uint8).to(args.device)
    b_obs = b_obs.permute(0, 3, 1, 2)  # in pixel order, as rollouts are kept
    frames = b_obs[: args.num_envs].cpu().numpy()
    b_actions = torch.randint(actions, (2 * M,), device=args.device)
    b_logprobs, b_advantages, b_returns = torch.randn((3, 2 * M), device=args.device)
    b_teacher_logits = torch.randn((2 * M, actions), device=args.device)

    @torch.no_grad()
    def act(laps: Laps) -> None:
        laps.mark("start")
        obs = torch.from_numpy(frames).to(args.device)
        laps.mark("frames to the device")
        logits = agent.logits(obs)
        laps.mark("policy")
        sampled = agent.distribution(logits).sample()
        laps.mark("sampling")
        agent.env_actions(sampled)
        laps.mark("actions to the host")

    def minibatch(laps: Laps) -> None:
        laps.mark("start")
        mb = torch.randperm(2 * M, device=args.device)[:M]
        normalized = agent.normalize(b_obs[mb], agent.bfloat16)  # once for both networks
        laps.mark("frames")
        dist = agent.distribution(agent.compute(agent.actor, normalized))
        laps.mark("policy")
        values = agent.compute(agent.critic, normalized).squeeze(-1)
        laps.mark("critic")
        ratio = (dist.log_prob(b_actions[mb]) - b_logprobs[mb]).exp()
        advantages = script.normalize_advantages(b_advantages[mb])
        kl = script.policy_kl(agent.distribution(b_teacher_logits[mb]), dist, "forward")
        loss = script.clipped_surrogate_loss(ratio, advantages, 0.2)
        v_loss = script.value_loss(values, b_returns[mb])
        loss = loss - 0.0 * dist.entropy().mean() + 0.5 * v_loss
        loss = loss + script.distillation_loss(kl, ratio, 0.2)
        laps.mark("losses")
        loss.backward()
        laps.mark("backward")
        torch.nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        laps.mark("clipping")
        optimizer.step()
        optimizer.zero_grad()
        laps.mark("Adam")

    return {"act": act, "minibatch": minibatch}


def measure(script, args: Args, size: str, settings: dict) -> dict:
    """Milliseconds of each phase of both steps, and their launches; the first rounds warm up."""
    torch.manual_seed(100)
    found = {}
    for name, step in make_steps(script, args, size, settings).items():
        rounds = []
        for _ in range(args.rounds + 5):
            laps = Laps(args.device)
            step(laps)
            rounds.append(laps.milliseconds())
        median = {p: statistics.median(r[p] for r in rounds[5:]) for p in rounds[0]}
        with torch.profiler.profile() as profile:
            step(Laps(args.device))
        calls = {event.key: event.count for event in profile.key_averages()}
        launches = sum(count for key, count in calls.items() if "Launch" in key)
        found[name] = {"milliseconds": median, "sum": sum(median.values()), "launches": launches}
    return found


def time_simulator(suite: str, num_envs: int, steps: int = 200) -> float:
    """Milliseconds of a vector step."""
    script = import_module(f"ppd_{suite}")
    threads = torch.get_num_threads()
    if suite == "atari":
        envs = script.AtariGames("PongNoFrameskip-v4", num_envs, threads, 4, life_loss=True)
    else:
        levels = {"num_levels": 200, "start_level": 0, "distribution_mode": "easy"}
        envs = script.ProcgenVectorEnv(
            SimpleNamespace(env_id="coinrun", **levels), num_envs, threads
        )
    envs.reset(seed=100)
    actions = torch.randint(envs.single_action_space.n, (steps, num_envs)).numpy()
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    milliseconds = 1000 * (time.perf_counter() - start) / steps
    envs.close()
    return milliseconds


def main() -> None:
    args, started = tyro.cli(Args, description=__doc__), time.monotonic()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("first_gpu: error: torch finds no GPU here; try --device cpu", file=sys.stderr)
        sys.exit(2)
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    report = {"device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
    report |= {"num_envs": args.num_envs, "minibatch_size": args.minibatch_size}
    report["simulator"] = {suite: time_simulator(suite, args.num_envs) for suite in args.suites}
    report |= {"measured": [], "not_measured": []}
    print(device, "simulator, ms a step:", report["simulator"])
    print("| suite | size | " + " | ".join(SETTINGS) + " | act, ms | minibatch, ms | launches |")
    print("|---|---|" + "---|" * (len(SETTINGS) + 3))
    combinations = itertools.product([False, True], repeat=len(SETTINGS))
    for values, suite, size in itertools.product(combinations, args.suites, args.sizes):
        run = {"suite": suite, "size": size} | dict(zip(SETTINGS, values, strict=True))
        if time.monotonic() - started > 60 * args.minutes:
            report["not_measured"].append(run)
        else:
            settings = {name: run[name] for name in SETTINGS}
            found = measure(import_module(f"ppd_{suite}"), args, size, settings)
            report["measured"].append(run | found)
            ticks = ["×" if value else "" for value in values]
            act, minibatch = found["act"], found["minibatch"]
            times = [f"{act['sum']:.2f}", f"{minibatch['sum']:.2f}"]
            launches = f"{act['launches']}, {minibatch['launches']}"
            row = [suite, size, *ticks, *times, launches]
            print("| " + " | ".join(row) + " |", flush=True)
        args.out.write_text(json.dumps(report, indent=1))
    print(f"{args.out}: {len(report['measured'])} combinations measured")


if __name__ == "__main__":
    main()
