"""evaluate.py: repeats a run's own score, makes one table, films, refuses what it cannot score."""

import importlib
import json
import sys
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import ppo_teacher_mujoco as script
from experiments import curves, film


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("evaluate") / "run"
    small = {"num_envs": 2, "num_steps": 8, "minibatch_size": 16, "hidden_sizes": (8,)}
    length = {"total_timesteps": 1, "episodes": 12, "num_workers": 1, "torch_threads": 1}
    script.train(script.Args(run_dir=str(run_dir), **small, **length))
    return run_dir


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    status = 0
    try:
        evaluate.main()
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_repeats_the_final_score_of_the_run(run, monkeypatch, capsys):
    checkpoint = run / "agent.safetensors"
    status, out, _ = call(monkeypatch, capsys, checkpoint, checkpoint, "--episodes", 12)
    rows = [line.split(" | ") for line in out.splitlines()[2:]]
    score = json.loads((run / "result.json").read_text())["score"]
    assert status == 0 and len(rows) == 2 and rows[0] == rows[1]
    assert rows[0][5] == f"{score['mean']:.1f} ± {score['standard_error']:.1f}"


def test_refusals_of_any_script_are_one_line(run, tmp_path, monkeypatch, capsys):
    """Each script has a UserError of its own."""
    tensors, header = script.read_checkpoint(run / "agent.safetensors")
    agent = SimpleNamespace(state_dict=lambda: tensors)
    for name in ("ppo_teacher_mujoco", "student_distill"):
        path = tmp_path / f"{name}.safetensors"
        script.save_agent(agent, path, header | {"script": name, "hidden_sizes": [9]})
        status, _, errors = call(monkeypatch, capsys, path)
        assert status == 2 and len(errors.splitlines()) == 1
        assert f"checkpoint {path}: its weights do not have the sizes" in errors
    status, _, errors = call(monkeypatch, capsys, run / "agent.safetensors", "--seed", -1)
    assert status == 2 and "--seed -1: must be from 0" in errors


def test_another_seed_plays_other_episodes(run, monkeypatch, capsys):
    checkpoint = run / "agent.safetensors"
    _, out, _ = call(monkeypatch, capsys, checkpoint, "--episodes", 12, "--seed", 7)
    score = json.loads((run / "result.json").read_text())["score"]
    assert f"{score['mean']:.1f} ± {score['standard_error']:.1f}" not in out


def test_confidence_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    intervals = [evaluate.confidence_interval(random.normal(3, 1, 50), 1000) for _ in range(400)]
    covered = np.mean([low <= 3 <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.98


def test_video_plays(run, tmp_path, monkeypatch, capsys):
    checkpoint = run / "agent.safetensors"
    arguments = (checkpoint, "--episodes", 1, "--video", tmp_path)
    status, _, err = call(monkeypatch, capsys, *arguments)
    if status == 2 and "MuJoCo cannot draw here" in err:
        pytest.skip("no OpenGL on this machine: " + err)
    (video,) = tmp_path.glob("*.mp4")
    with av.open(str(video)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert file.streams.video[0].average_rate == 125  # Hopper's own speed
    assert len(frames) > 10 and frames[0].shape == (480, 480, 3)
    assert frames[0].std() > 10 and np.abs(frames[0].astype(int) - frames[-1]).max() > 50
    # The hopper, the only thing that is orange, stays in the picture.
    orange = [(f[..., 0].astype(int) - f[..., 2] > 60).mean() for f in frames]
    assert min(orange) > 0.2 * max(orange) > 0


def test_film_shows_checkpoints_side_by_side_in_real_time(run, tmp_path, monkeypatch, capsys):
    checkpoint, out = str(run / "agent.safetensors"), str(tmp_path / "film.webp")
    frames = [np.full((10, 20, 3), shade, np.uint8) for shade in range(0, 250, 10)]
    monkeypatch.setattr(evaluate, "film_mujoco", lambda *_: ((f for f in frames), 100))
    flags = ["--out", out, "--seconds", "0.4", "--frames-per-second", "20", "--width", "60"]
    monkeypatch.setattr(sys, "argv", ["film", checkpoint, checkpoint, *flags])
    film.main()
    with Image.open(out) as pictures:
        assert pictures.size == (120, 50)  # 60 x 30 and a line of text, twice
        shades = []
        for index in range(pictures.n_frames):
            pictures.seek(index)
            shades.append(np.array(pictures.convert("L"))[:30].mean())
    assert len(shades) >= 6
    # Every fifth of 100 frames a second; from the fifth picture on, the last of the episode's 25.
    assert np.abs(np.array(shades) - [0, 50, 100, 150, 200, 240, 240, 240][: len(shades)]).max() < 4
    assert "film.webp: 0.0 MB" in capsys.readouterr().out


def test_curves_of_a_finished_and_of_a_stopped_run_are_the_same(run, tmp_path):
    """A stopped run has no result.json and no score, but the same curve in its training state."""
    (tmp_path / "training_state.pt").write_bytes((run / "training_state.pt").read_bytes())
    finished, stopped = curves.read_run(run), curves.read_run(tmp_path)
    assert "score" in finished and "score" not in stopped
    assert stopped["script"] == finished["script"] and stopped["curve"] == finished["curve"]
    assert stopped["iteration"] == finished["iteration"] == 1
    assert stopped["args"]["seed"] == finished["args"]["seed"]


@pytest.mark.parametrize("arguments", [[], ["nowhere.safetensors"]])
def test_film_refuses_in_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["film", *arguments, "--out", "film.webp"])
    with pytest.raises(SystemExit, match="2"):
        film.main()
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1 and err.startswith("film: error: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no checkpoint given"),
        (["nowhere.safetensors"], "No such file"),
        (["pyproject.toml"], "not safetensors"),
        (["nowhere.safetensors", "--episodes", "0"], "at least 1"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(arguments, words, monkeypatch, capsys):
    status, out, err = call(monkeypatch, capsys, *arguments)
    assert status == 2 and not out and len(err.splitlines()) == 1 and words in err


def test_a_checkpoint_cannot_name_a_foreign_script(run, tmp_path, monkeypatch, capsys):
    agent, header = script.load_mujoco_agent(run / "agent.safetensors")
    script.save_agent(agent, tmp_path / "agent.safetensors", header | {"script": "os"})
    status, _, err = call(monkeypatch, capsys, tmp_path / "agent.safetensors")
    assert status == 2 and "script 'os' is none of" in err


def save_pixel_agent(path, suite, **header):
    script = importlib.import_module(f"ppo_teacher_{suite}")
    shape, num_actions = {"atari": ((4, 84, 84), 6), "procgen": ((3, 64, 64), 15)}[suite]
    torch.manual_seed(0)
    agent = script.PixelAgent(shape, num_actions, "smaller")
    header |= {"format": "ppd-agent-1", "suite": suite, "script": script.__name__, "steps": 0}
    script.save_agent(agent, path, header | {"size": "smaller", "seed": 1})


def first_frame(folder):
    (video,) = folder.glob("*.mp4")
    with av.open(str(video)) as file:
        frame = next(file.decode(video=0)).to_ndarray(format="rgb24")
        return frame, file.streams.video[0].average_rate, file.streams.video[0].frames


def test_atari_game(tmp_path, monkeypatch, capsys):
    """Whole games, and in the film the colours and the pace of the console."""
    path = tmp_path / "agent.safetensors"
    env = {"env_id": "PongNoFrameskip-v4", "frame_skip": 4, "deterministic": True}
    save_pixel_agent(path, "atari", **env)
    status, out, _ = call(monkeypatch, capsys, path, "--episodes", 1, "--video", tmp_path)
    assert status == 0 and "-21.0 (n=1) (human-normalised -0.01)" in out and "1 distinct" in out
    frame, rate, count = first_frame(tmp_path)
    assert frame.shape == (210, 160, 3) and rate == 15 and count > 700  # 21 lost points
    assert np.ptp(frame.mean((0, 1))) > 30  # Pong is brown


def test_procgen_levels(tmp_path, monkeypatch, capsys):
    path = tmp_path / "agent.safetensors"
    env = {"env_id": "coinrun", "num_levels": 200, "start_level": 0, "distribution_mode": "easy"}
    save_pixel_agent(path, "procgen", deterministic=False, **env)
    rows = {}
    for levels in ("unseen", "training"):
        arguments = (path, "--episodes", 2, "--levels", levels)
        status, out, _ = call(monkeypatch, capsys, *arguments)
        rows[levels] = out.splitlines()[2]
        assert status == 0 and f"{levels} levels" in rows[levels]
    call(monkeypatch, capsys, path, "--episodes", 1, "--video", tmp_path)
    frame, rate, _ = first_frame(tmp_path)
    assert frame.shape == (512, 512, 3) and rate == 15
