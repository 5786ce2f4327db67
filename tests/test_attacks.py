"""Hostile places and files: a run trains, or ends with one line; no file's code is ever run."""

import base64
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import time
import zipfile

import numpy as np
import pytest
import torch
from helpers import Malicious, Process, command, load, make_args, make_teacher, run_python
from stable_baselines3 import PPO

KINDS = ["a signal.py in the current folder", "a long TMPDIR"]


def surroundings(kind, folder) -> dict:
    """What `Process` gives a run of two worker processes in this kind of place."""
    options = {"cwd": folder, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    if kind == "a signal.py in the current folder":
        (folder / "signal.py").write_text("open('executed', 'w')")
    elif kind == "a long TMPDIR":
        options["env"]["TMPDIR"] = str(folder / ("x" * 104))
        os.mkdir(options["env"]["TMPDIR"])
    return options


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on(kind, tmp_path):
    script = load("ppd_mujoco")
    args = make_args(script, "mujoco", tmp_path / "run", num_workers=2)
    with Process(command(script, "mujoco", args), **surroundings(kind, tmp_path)) as process:
        assert process.wait(300) == 0
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "executed").exists()


def test_a_run_whose_folder_is_deleted_ends_with_one_line(tmp_path):
    script = load("ppd_mujoco")
    args = make_args(script, "mujoco", tmp_path / "run", total_timesteps=10**7, save_every=0.0)
    words = command(script, "mujoco", args)
    with Process(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("run/events*")):
            assert process.poll() is None
            time.sleep(0.05)
        (tmp_path / "run").rename(tmp_path / "gone")  # at once: a file more would keep the folder
        shutil.rmtree(tmp_path / "gone")
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.count("ppd_mujoco: error: ") == 1


def test_equal_runs_write_equal_files(tmp_path):
    """Whatever order safetensors' own header has in this process."""
    script, path = load("ppd_mujoco"), tmp_path / "teacher.safetensors"
    make_teacher("mujoco", path)
    agent, header = script.load_mujoco_agent(path)
    contents = {script.pack_agent(agent.state_dict(), header) for _ in range(8)}
    assert len(contents) == 1
    path.write_bytes(*contents)
    assert script.load_mujoco_agent(path)[1] == header


# ------------------------------------------------------------------------------- Hostile pickles
class Flagged:
    """NumPy's dtype of objects, its flags wiped: NumPy would take an array's bytes for pointers."""

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)


class Pointers:
    """An array, or a number, of that dtype; its pointer leads nowhere."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        if self.kind == "an array":
            return *np.zeros(1).__reduce__()[:2], (1, (1,), Flagged(), False, b"A" * 8)
        if self.kind == "a buffer":
            return np.core.numeric._frombuffer, (b"A" * 8, Flagged(), (1,), "C")
        return np.core.multiarray.scalar, (Flagged(), b"A" * 8)


class VecNormalize:
    """What SB3's statistics say of themselves."""

    def __init__(self, **state):
        vars(self).update(state)


VecNormalize.__module__ = "stable_baselines3.common.vec_env.vec_normalize"
NESTED = b"}" + b")" + b"\x85" * 2_000_000 + b"K\x01s."  # a key of tuples in tuples
HUGE_MEMO = b"K\x01r" + struct.pack("<I", 2**32 - 2) + b"."


def hostile_pickles(path, monkeypatch) -> dict[str, bytes]:
    """By what they would do to whoever unpickles them: follow pointers, overflow, run code."""
    from stable_baselines3.common.vec_env import vec_normalize

    monkeypatch.setattr(vec_normalize, "VecNormalize", VecNormalize)
    pickles = {"nested": b"\x80\x02" + NESTED, "memo": b"\x80\x02" + HUGE_MEMO}
    for kind in ("an array", "a buffer", "a number"):
        rms = VecNormalize(mean=Pointers(kind), var=Pointers(kind))
        state = {"norm_obs": True, "obs_rms": rms, "clip_obs": 10.0, "epsilon": Pointers(kind)}
        pickles[f"statistics of {kind}"] = pickle.dumps(VecNormalize(**state))
        pickles[f"{kind} as statistics"] = pickle.dumps(Pointers(kind))
        pickles[f"episodes of {kind}"] = pickle.dumps([{"r": Pointers(kind)}] * 2)
    for protocol in (2, 4):
        pickles[f"code, protocol {protocol}"] = pickle.dumps([{"r": Malicious(path)}], protocol)
    return pickles


def torch_file(content: bytes) -> bytes:
    """A torch file with this pickle in it."""
    torch.save({"a": torch.zeros(1)}, sound := io.BytesIO())
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(out := io.BytesIO(), "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


def sb3_zips(content: bytes) -> list[bytes]:
    """A sound SB3 zip with this pickle for its episodes, and one whose weights have it."""
    PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}).save(sound := io.BytesIO())
    with zipfile.ZipFile(sound) as archive:
        data, policy = json.loads(archive.read("data")), archive.read("policy.pth")
    data["ep_info_buffer"] = {":serialized:": base64.b64encode(content).decode()}
    zips = []
    for members in ((json.dumps(data), policy), (json.dumps(data), torch_file(content))):
        with zipfile.ZipFile(out := io.BytesIO(), "w") as archive:
            archive.writestr("data", members[0])
            archive.writestr("policy.pth", members[1])
        zips.append(out.getvalue())
    return zips


IMPORT = """
    import contextlib, io, json, sys
    from pathlib import Path
    import convert
    folder, sound = map(Path, sys.argv[1:])
    statuses = {}
    for path in sorted(folder.iterdir()):
        print(path.name, flush=True)  # the last one, if this process crashes
        words = [sound, "--vecnormalize", path] if "vecnormalize" in path.name else [path]
        words += ["--env-id", "Pendulum-v1", "--episodes", 1, "--out", folder.parent / "out"]
        sys.argv = ["convert.py", "import", *map(str, words)]
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                statuses[path.name] = convert.main() or 0
            except SystemExit as stop:
                statuses[path.name] = stop.code
    print(json.dumps(statuses))
"""


def test_hostile_pickles_run_and_crash_nothing(tmp_path, monkeypatch):
    """Wherever convert.py reads one: statistics, weights, SB3's weights and episodes.

    Only the episodes may be imported: they are compared with, and left out when they are odd.
    """
    folder, created = tmp_path / "files", tmp_path / "created"
    folder.mkdir()
    for name, content in hostile_pickles(created, monkeypatch).items():
        in_episodes, in_weights = sb3_zips(content)
        (folder / f"{name} in episodes").write_bytes(in_episodes)
        (folder / f"{name} in SB3's weights").write_bytes(in_weights)
        (folder / f"{name} in weights").write_bytes(torch_file(content))
        (folder / f"{name} as an old torch file").write_bytes(content)
        (folder / f"{name} as vecnormalize").write_bytes(content)
    objects = np.array([Malicious(created)], object)
    with (folder / "objects in vecnormalize.npz").open("wb") as file:
        np.savez(file, mean=objects, var=objects)
    (tmp_path / "sound.zip").write_bytes(sb3_zips(pickle.dumps([]))[0])
    with run_python(IMPORT, folder, tmp_path / "sound.zip") as process:
        out, err = process.communicate(timeout=300)
    wanted = {path.name: 0 if "in episodes" in path.name else 2 for path in folder.iterdir()}
    last = out.splitlines()[-1]
    assert process.returncode == 0, (last, err[-500:])
    assert json.loads(last) == wanted
    assert len(err.strip().splitlines()) == list(wanted.values()).count(2), err
    assert not created.exists()
