"""evaluate.py: repeats a run's own score, makes one table, films, refuses what it cannot score."""

import io
import json
import runpy
import subprocess
import sys
from fractions import Fraction

import av
import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import ROOT, load, make_args, make_teacher, run_main, save_agent, shorten_episodes
from PIL import Image
from safetensors.torch import save_file

import evaluate
from experiments import curves, film, sb3_ppo

script = load("ppo_teacher_mujoco")
HOPPER = ROOT / "teachers" / "Hopper-v4.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("evaluate") / "run"
    script.train(make_args(script, "mujoco", run_dir, episodes=12))
    return run_dir


def call(monkeypatch, capsys, *arguments):
    """Exit status, stdout and stderr, on one core, as the tests' runs are trained."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    capsys.readouterr()
    return run_main(evaluate, arguments, monkeypatch), *capsys.readouterr()


def test_repeats_the_final_score_of_the_run(suite, monkeypatch, capsys, tmp_path):
    """Number for number, also of two files; another seed plays other episodes."""
    script, played, play = load(f"ppd_{suite}"), [], evaluate.play
    shorten_episodes(script, suite, monkeypatch)
    result = script.train(make_args(script, suite, tmp_path / "run", episodes=6))
    record = lambda *arguments: played.append(play(*arguments)) or played[-1]
    monkeypatch.setattr(evaluate, "play", record)
    path = tmp_path / "run" / "agent.safetensors"
    for flags in ([path, path], [path, "--seed", 7]):
        status, out, _ = call(monkeypatch, capsys, *flags, "--episodes", 6)
        rows = [line.split(" | ") for line in out.splitlines()[2:]]
        assert status == 0 and len(rows) == sum(flag is path for flag in flags)
        assert rows[0][5].startswith(script.score_text(played[-1]))
    assert played[0] == played[1] == result["score"]
    assert played[2] != played[0] or suite == "atari"  # where all short games end 0:0


class OutStream(io.StringIO):
    """As a notebook's: no stream of the system, nothing to be reconfigured."""


@pytest.mark.parametrize("name", ["evaluate", "convert"])
def test_runs_in_a_notebook(name, tmp_path, monkeypatch):
    """By `%run`: the output goes to the cell, and the streams are the notebook's afterwards."""
    commands = {"evaluate": [HOPPER, "--episodes", "1"]}
    commands["convert"] = ["export", HOPPER, "--out", tmp_path / "hopper.onnx"]
    streams = OutStream(), OutStream()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, commands[name])])
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
    assert (sys.stdout, sys.stderr) == streams
    assert {"evaluate": "(n=1)", "convert": "µs"}[name] in streams[0].getvalue()
    unset = {"evaluate": [""], "convert": ["export", str(HOPPER), "--out", ""]}
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *unset[name]])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
    assert stop.value.code == 2 and (sys.stdout, sys.stderr) == streams
    assert streams[1].getvalue().strip().splitlines()[-1].endswith("the value is empty; give one")


def test_confidence_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    intervals = [evaluate.confidence_interval(random.normal(3, 1, 50), 1000) for _ in range(400)]
    covered = np.mean([low <= 3 <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.98


def read_video(folder):
    """The frames of the one film there, and its pace."""
    (video,) = folder.glob("*.mp4")
    with av.open(str(video)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        return frames, file.streams.video[0].average_rate


def test_video_plays(run, tmp_path, monkeypatch, capsys):
    checkpoint = run / "agent.safetensors"
    arguments = (checkpoint, "--episodes", 1, "--video", tmp_path)
    status, _, err = call(monkeypatch, capsys, *arguments)
    if status == 2 and "MuJoCo cannot draw here" in err:
        pytest.skip("no OpenGL on this machine: " + err)
    frames, rate = read_video(tmp_path)
    assert rate == 125  # Hopper's own speed
    assert len(frames) > 10 and frames[0].shape == (480, 480, 3)
    assert frames[0].std() > 10 and np.abs(frames[0].astype(int) - frames[-1]).max() > 50
    # The hopper, the only thing that is orange, stays in the picture.
    orange = [(f[..., 0].astype(int) - f[..., 2] > 60).mean() for f in frames]
    assert min(orange) > 0.2 * max(orange) > 0


def test_films_of_one_environment_and_seed_lie_side_by_side(tmp_path, monkeypatch):
    """Each under its folder's name."""
    films = []
    monkeypatch.setattr(evaluate, "write_video", lambda path, *_: films.append(path))
    monkeypatch.setattr(evaluate, "film_mujoco", lambda *_: (iter([]), 100))
    for folder in ("smaller", "larger"):
        (tmp_path / folder).mkdir()
        make_teacher("mujoco", tmp_path / folder / "agent.safetensors")
    paths = [str(tmp_path / folder / "agent.safetensors") for folder in ("smaller", "larger")]
    args = evaluate.Args(tuple(paths), episodes=1, video=str(tmp_path / "films"))
    for path in paths:
        evaluate.film_checkpoint(path, args)
    names = ["smaller__agent__Hopper-v4.mp4", "larger__agent__Hopper-v4.mp4"]
    assert films == [tmp_path / "films" / name for name in names]


def test_film_shows_checkpoints_side_by_side_in_real_time(run, tmp_path, monkeypatch, capsys):
    checkpoint, out = str(run / "agent.safetensors"), str(tmp_path / "film.webp")
    frames = [np.full((10, 20, 3), shade, np.uint8) for shade in range(0, 250, 10)]
    monkeypatch.setattr(evaluate, "film_mujoco", lambda *_: ((f for f in frames), 100))
    flags = ["--out", out, "--seconds", "0.4", "--frames-per-second", "20", "--width", "60"]
    monkeypatch.setattr(sys, "argv", ["film", checkpoint, checkpoint, *flags])
    film.main()
    with Image.open(out) as pictures:
        assert pictures.size == (120, 80)  # 60 x 30 in a square, and a line of text, twice
        shades = []
        for index in range(pictures.n_frames):
            pictures.seek(index)
            picture = np.array(pictures.convert("L"))
            assert picture[:12].min() > 240 and picture[48:58].min() > 240  # not stretched to fit
            shades.append(picture[15:45].mean())
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
    assert stopped["steps"] == finished["steps"] == 192
    assert stopped["args"]["seed"] == finished["args"]["seed"]


BAD_FLAGS = [
    ([], "no checkpoint given"),
    (["nowhere.safetensors"], "No such file"),
    ([ROOT / "pyproject.toml"], "not an agent of this project"),
    ([ROOT / "pyproject.toml"], "import the policy of another library with convert.py"),
    (["nowhere.safetensors", "--episodes", "0"], "at least 1"),
    (["nowhere.safetensors", "--seed", "-1"], "--seed -1: must be from 0"),
    ([""], "--checkpoints: the value is empty; give one"),  # an unset variable of the shell
    (["nowhere.safetensors", " "], "--checkpoints: the value is empty; give one"),
    (["nowhere.safetensors", "--env-id", ""], "--env-id: the value is empty; give one"),
    (["nowhere.safetensors", "--video", ""], "--video: the value is empty; give one"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_FLAGS)
def test_wrong_input_is_one_line(arguments, words, refused):
    refused(evaluate, arguments, words)
    if not arguments or arguments == ["nowhere.safetensors"]:
        refused(film, [*arguments, "--out", "film.webp"])
        refused(film, ["x", "--out", "film.webp", "--seconds", "0"], "is too small")


@pytest.mark.parametrize(
    ("suite", "env_id"),
    [("mujoco", "Ant-v4"), ("mujoco", "CartPole-v1"), ("atari", "BeamRiderNoFrameskip-v4")],
)
def test_an_environment_of_other_sizes_is_one_line(suite, env_id, tmp_path, refused):
    make_teacher(suite, tmp_path / "agent.safetensors")
    arguments = [tmp_path / "agent.safetensors", "--episodes", "1", "--env-id", env_id]
    refused(evaluate, arguments, f"--env-id {env_id}: has other", "give one of the same sizes")


def test_what_cannot_be_drawn_or_written_is_one_line(tmp_path, refused, monkeypatch):
    path = tmp_path / "agent.safetensors"
    make_teacher("mujoco", path)
    played = []
    monkeypatch.setattr(evaluate, "play", lambda *_: played.append(None))
    refused(evaluate, [path, "--video", path], "File exists")
    assert not played  # before any episode
    make = script.make_mujoco_env
    missing = gym.error.DependencyNotInstalled("pygame is not installed")

    def draw_nothing(env_id, **options):
        env = make(env_id, **options)
        env.render = lambda: (_ for _ in ()).throw(missing)
        return env

    monkeypatch.setattr(script, "make_mujoco_env", draw_nothing)
    with pytest.raises(evaluate.UserError, match="cannot draw here .pygame"):
        evaluate.film_mujoco(script, None, {"env_id": "Hopper-v4"}, 1)


class Odd(gym.Env):
    """It draws, gives NaN or says how fast it is to be shown, as `settings` has it."""

    settings: dict = {}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (11,))
    action_space = gym.spaces.Box(-1, 1, (3,))

    def __init__(self, render_mode=None):
        self.metadata = {"render_modes": ["rgb_array"], **self.settings.get("metadata", {})}

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(11, np.float32), {}

    def step(self, action):
        self.steps += 1
        obs = np.full(11, self.settings.get("obs", 0), np.float32)
        return obs, self.settings.get("reward", 1.0), self.steps == 3, False, {}

    def render(self):
        return self.settings.get("picture", np.zeros((64, 64, 3), np.uint8))


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """Give `Odd` its settings; returns a checkpoint for it."""

    def odd(**settings):
        monkeypatch.setattr(Odd, "settings", settings)
        make_teacher("mujoco", path := tmp_path / "agent.safetensors", env_id="Odd-v0")
        return path

    gym.register("Odd-v0", Odd, disable_env_checker=True)
    yield odd
    gym.registry.pop("Odd-v0")


NAN = [{"reward": np.nan}, {"reward": -np.inf}, {"obs": np.nan}]


@pytest.mark.parametrize("settings", NAN, ids=str)
@pytest.mark.parametrize("episodes", [1, 3])
def test_an_environment_that_gives_nan_is_one_line(settings, episodes, odd, refused, monkeypatch):
    """It says which environment, and what: neither training nor agent is at fault."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # this process has the settings
    what = "observation" if "obs" in settings else "reward"
    arguments = [odd(**settings), "--episodes", episodes]
    refused(evaluate, arguments, f"Odd-v0 gave a NaN or infinite {what}")


RATES = [({}, 30), ({"render_fps": None}, 30), ({"render_fps": 25}, 25)]
RATES += [({"render_fps": np.float32(12.5)}, Fraction(25, 2)), ({"render_fps": np.int64(60)}, 60)]


@pytest.mark.parametrize(("metadata", "rate"), RATES)
def test_any_frame_rate_is_filmed(metadata, rate, odd, tmp_path, monkeypatch, capsys):
    """Also none, and none that is whole."""
    path = odd(metadata=metadata)
    status, out, _ = call(monkeypatch, capsys, path, "--episodes", 1, "--video", tmp_path)
    assert status == 0 and "video: " in out
    frames, found = read_video(tmp_path)
    assert len(frames) == 4 and found == rate


def test_an_environment_without_pictures_is_one_line(odd, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Odd, "__init__", lambda self: None)
    path = odd()
    status, out, err = call(monkeypatch, capsys, path, "--episodes", 1, "--video", tmp_path)
    assert status == 2 and "3.0 (n=1)" in out
    assert len(err.strip().splitlines()) == 1 and "--video: Odd-v0 cannot draw here" in err
    monkeypatch.undo()
    monkeypatch.setattr(Odd, "settings", {"picture": None})
    status, _, err = call(monkeypatch, capsys, path, "--episodes", 1, "--video", tmp_path)
    assert status == 2 and "gives no picture" in err


def test_an_agent_of_a_modules_environment_asks_for_the_module(tmp_path, refused, monkeypatch):
    """Before the first episode, also of the other checkpoints."""
    played = []
    monkeypatch.setattr(evaluate, "play", lambda *_: played.append(None))
    make_teacher("mujoco", first := tmp_path / "hopper.safetensors")
    make_teacher("mujoco", second := tmp_path / "mine.safetensors", env_id="Mine-v3")
    advice = "give the module that registers it, --env-id your_module:Mine-v3"
    refused(evaluate, [first, second], f"{second}: Gymnasium has no environment Mine-v3; {advice}")
    assert not played


def test_an_imported_agent_names_its_library(odd, monkeypatch, capsys):
    path = odd()
    assert (
        call(monkeypatch, capsys, path)[1].splitlines()[2].split(" | ")[2] == "ppo_teacher_mujoco"
    )
    agent, header = script.load_mujoco_agent(path)
    save_agent(agent, path, header | {"trained_by": "stable-baselines3"})
    status, out, _ = call(monkeypatch, capsys, path)
    titles, _, row = [line.split(" | ") for line in out.splitlines()]
    assert status == 0 and (titles[2], row[2]) == ("trained by", "stable-baselines3")


def test_the_folder_of_a_run_will_do(odd, monkeypatch, capsys):
    folder = odd().parent
    status, out, _ = call(monkeypatch, capsys, folder, "--episodes", 1)
    assert status == 0 and "3.0 (n=1)" in out


BAD_HEADERS = [
    ({"script": "os"}, "this project has no script os.py"),
    ({"script": "student_distill", "hidden_sizes": [9]}, "agent.safetensors: no sound mujoco"),
    ({"suite": "chess"}, "ppo_teacher_mujoco.py has no agents for chess"),
    ({"suite": "atari", "frame_skip": 4}, "ppo_teacher_mujoco.py has no agents for atari"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_HEADERS)
def test_a_strange_checkpoint_is_one_line(changes, words, tmp_path, refused):
    """Each script has a UserError of its own."""
    path = tmp_path / "agent.safetensors"
    agent = make_teacher("mujoco", path)
    save_agent(agent, path, evaluate.read_header(path) | changes)
    refused(evaluate, [path], words)


def test_no_header_and_one_nested_without_end_are_one_line(tmp_path, refused):
    path = tmp_path / "agent.safetensors"
    save_file({"a": torch.zeros(1)}, path)  # a model from elsewhere
    refused(evaluate, [path], "the file has no header")
    save_file({"a": torch.zeros(1)}, path, {"header": "[" * 200_000})
    refused(evaluate, [path], "not an agent of this project")


def test_an_odd_picture_is_cropped(tmp_path):
    """By a pixel: H.264 wants even sides. An environment of one's own draws as it likes."""
    evaluate.write_video(tmp_path / "odd.mp4", [np.zeros((101, 75, 3), np.uint8)] * 3, 30)
    assert [frame.shape for frame in read_video(tmp_path)[0]] == [(100, 74, 3)] * 3


def test_a_film_that_fails_costs_no_score(tmp_path, monkeypatch, capsys):
    """Nor do two films break the table into pieces."""
    make_teacher("mujoco", path := tmp_path / "agent.safetensors")
    score = {"mean": 1.0, "standard_error": None, "returns": [1.0], "lengths": [1]}
    monkeypatch.setattr(evaluate, "play", lambda *_: score)
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    monkeypatch.setattr(evaluate, "film_mujoco", lambda *_: (iter([]), 100))
    status, out, err = call(monkeypatch, capsys, path, path, "--video", tmp_path)
    assert status == 2 and len(out.splitlines()) == 4 and out.count("1.0 (n=1)") == 2
    assert len(err.splitlines()) == 1 and "av" in err


def test_a_copied_scripts_agents_are_loaded(tmp_path, monkeypatch):
    """Each is the whole method, to be copied: by a name like ppd_mine.py, beside evaluate.py."""
    (tmp_path / "ppd_mine.py").write_text((ROOT / "ppd_mujoco.py").read_text())
    path, header = tmp_path / "agent.safetensors", {"script": "ppd_mine"}
    agent = make_teacher("mujoco", path)
    save_agent(agent, path, evaluate.read_header(path) | header)
    with pytest.raises(evaluate.UserError, match="this project has no script ppd_mine.py"):
        evaluate.load(path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(evaluate, "__file__", str(tmp_path / "evaluate.py"))
    assert evaluate.read_header(path)["script"] == "ppd_mine"
    script, loaded, _ = evaluate.load(path)
    assert script.__name__ == "ppd_mine" and (loaded.log_std == agent.log_std).all()


def test_atari_game(tmp_path, monkeypatch, capsys):
    """Whole games, and in the film the colours and the pace of the console."""
    path = tmp_path / "agent.safetensors"
    agent = make_teacher("atari", path)
    agent.actor[1].weight.data.zero_()  # it stands still, and loses soon
    save_agent(agent, path, evaluate.read_header(path))
    status, out, _ = call(monkeypatch, capsys, path, "--episodes", 1, "--video", tmp_path)
    assert status == 0 and "-21.0 (n=1) (human-normalised -0.01)" in out and "1 distinct" in out
    (frame, *others), rate = read_video(tmp_path)
    assert frame.shape == (210, 160, 3) and rate == 15 and len(others) > 700  # 21 lost points
    assert np.ptp(frame.mean((0, 1))) > 30  # Pong is brown


def test_procgen_levels(tmp_path, monkeypatch, capsys):
    path = tmp_path / "agent.safetensors"
    make_teacher("procgen", path)
    for levels in ("unseen", "training"):
        arguments = (path, "--episodes", 2, "--levels", levels)
        status, out, _ = call(monkeypatch, capsys, *arguments)
        assert status == 0 and f"{levels} levels" in out.splitlines()[2]
    call(monkeypatch, capsys, path, "--episodes", 1, "--video", tmp_path)
    frames, rate = read_video(tmp_path)
    assert frames[0].shape == (512, 512, 3) and rate == 15


def test_actions_are_the_protocols_unless_said(suite, tmp_path, monkeypatch, capsys):
    """On Procgen sampled, elsewhere deterministic; where given, they are in the table."""
    make_teacher(suite, path := tmp_path / "agent.safetensors")
    asked, score = [], {"mean": 1.0, "standard_error": None, "returns": [1.0], "lengths": [1]}
    score["distinct"] = 1
    play = lambda _, __, header, *rest: asked.append(header["deterministic"]) or score
    monkeypatch.setattr(evaluate, "play", play)
    for flags in ([], ["--actions", "deterministic"], ["--actions", "sampled"]):
        status, out, _ = call(monkeypatch, capsys, path, *flags)
        assert status == 0 and ("sampled actions" in out) == ("sampled" in flags)
    assert asked == [suite != "procgen", True, False]


def test_sampled_actions_are_played(run, monkeypatch, capsys):
    """With the seed's own noise: again, the same; by deterministic actions, another score."""
    scores = []
    for flags in ([], ["--actions", "sampled"], ["--actions", "sampled"]):
        arguments = (run / "agent.safetensors", "--episodes", 5, *flags)
        _, out, _ = call(monkeypatch, capsys, *arguments)
        scores.append(out.splitlines()[2].split(" | ")[5])
    assert scores[0] != scores[1] == scores[2]


@pytest.mark.parametrize(("levels", "first", "count"), [("training", 7, 3), ("unseen", 10, None)])
def test_levels_are_those_of_the_checkpoint(levels, first, count, tmp_path, monkeypatch, capsys):
    make_teacher("procgen", path := tmp_path / "agent.safetensors", start_level=7, num_levels=3)
    made, make = [], evaluate.make_envs
    record = lambda *arguments: made.append(make(*arguments)) or made[-1]
    monkeypatch.setattr(evaluate, "make_envs", record)
    assert call(monkeypatch, capsys, path, "--episodes", 1, "--levels", levels)[0] == 0
    ((options,),) = [[envs.options for envs in made]]
    assert options["start_level"] == first
    assert options["num_levels"] == (count or 2**31 - 1 - 10)


def test_a_run_of_sb3_is_scored_as_ours(tmp_path):
    """Its weights in one of our agents, by the same protocol."""
    values = {"total_timesteps": 1, "eval_every": 4608, "episodes": 3}
    result = sb3_ppo.train(sb3_ppo.Args(run_dir=str(tmp_path / "run"), **values))
    assert result["steps"] == 4608 and result["curve"]
    assert [point[0] for point in result["evaluations"]] == [4608]
    agent, header = script.load_mujoco_agent(tmp_path / "run" / "agent.safetensors")
    assert header["trained_by"] == "stable-baselines3" and agent.obs_count > 4608
    again = script.evaluate(agent, script.MujocoVectorEnv("Hopper-v4", 10, 1), 3, 100)
    assert again == result["score"]


STAND_IN = """
from stable_baselines3 import PPO

class ProximalPolicyDistillation(PPO):
    def set_teacher(self, teacher, distill_lambda, kl_mode):
        print("taught:", type(teacher).__name__, distill_lambda, kl_mode)
"""


def test_the_authors_library_is_taught_and_scored(tmp_path):
    """With one of the same interface that is plain PPO: theirs is not on PyPI."""
    (tmp_path / "sb3_distill").mkdir()
    (tmp_path / "sb3_distill" / "__init__.py").write_text(STAND_IN)
    command = [sys.executable, ROOT / "experiments" / "sb3_distill_ppd.py", "--run-dir"]
    command += [tmp_path / "run", "--distill-lambda", "2", "--total-timesteps", "1"]
    command += ["--eval-every", "1152", "--episodes", "3", "--sb3-distill"]
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "taught: PPO 2.0 forward" in done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 1152 and len(result["score"]["returns"]) == 3
    student, header = script.load_mujoco_agent(tmp_path / "run" / "agent.safetensors")
    assert (header["trained_by"], header["hidden_sizes"]) == ("sb3_distill", [512, 512])
    teacher, _ = script.load_mujoco_agent(ROOT / "teachers" / "Hopper-v4.safetensors")
    assert (student.obs_mean == teacher.obs_mean).all()  # frozen
    done = subprocess.run([*command, ROOT], capture_output=True, text=True)
    assert done.returncode == 2 and "no package sb3_distill in it; clone" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
