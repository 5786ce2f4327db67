"""A small stand-in for a training script: it counts steps and saves every fifth."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

parser = argparse.ArgumentParser(allow_abbrev=False)
for flag, kind in {"run-dir": Path, "resume": Path, "distill-lambda": float}.items():
    parser.add_argument(f"--{flag}", type=kind)
parser.add_argument("--total-timesteps", type=int)
args, _ = parser.parse_known_args()
folder, state = args.resume or args.run_dir, {"step": 0, "total": args.total_timesteps}
time.sleep(0.2)  # the real scripts import for seconds
try:
    if args.resume is None:
        assert args.distill_lambda >= 0, "--distill-lambda: must be 0 or more"
        folder.mkdir(parents=True)
    lock = FileLock(folder / "lock")
    lock.acquire(timeout=1)
    if args.resume is not None:
        assert not (folder / "result.json").exists(), f"{folder}: this run is finished"
        state = json.loads((folder / "training_state.pt").read_text())
except (AssertionError, FileExistsError, Timeout) as error:
    sys.exit(print(f"stand_in: error: {error}", file=sys.stderr) or 2)
except ValueError:
    print(f"--resume {folder}: its training_state.pt is missing or damaged", file=sys.stderr)
    sys.exit(2)
while state["step"] < state["total"]:
    time.sleep(0.02)
    state["step"] += 1
    print(f"process {os.getpid()} at step {state['step']}")
    if state["step"] % 5 == 0:
        (folder / "partial").write_text(json.dumps(state))
        (folder / "partial").replace(folder / "training_state.pt")
names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MALLOC_MMAP_MAX_")
facts = {name: os.environ.get(name) for name in names}
(folder / "result.json").write_text(json.dumps({"score": {"mean": 1.0}} | facts))
