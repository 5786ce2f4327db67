"""Fixtures: suites, tiny runs, refusals. Tests share the cores with each other's processes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from helpers import RUNS, SUITES, NoWriter, load, make_args, no_score, run_main


@pytest.fixture(autouse=True)
def restore_threads():
    """`train` sets torch's thread count for the process it is alone in."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=SUITES)
def suite(request):
    return request.param


@pytest.fixture(params=RUNS, ids=" ".join)
def run(request):
    """A script and the suite it is to run in: each script in each of its suites."""
    name, suite = request.param
    return load(name), suite


@pytest.fixture
def train(monkeypatch, tmp_path):
    """A tiny run of a script, with `no_score`; what it logs is in `NoWriter.scalars`."""

    def train(script, suite, folder="run", **changes):
        monkeypatch.setattr(script, "SummaryWriter", NoWriter)
        monkeypatch.setattr(script, "evaluate", no_score)
        return script.train(make_args(script, suite, tmp_path / folder, **changes))

    return train


@pytest.fixture
def refused(monkeypatch, capsys):
    """Call a main that must end with status 2 and one line; it holds each of the words."""

    def refused(script, arguments, *words) -> str:
        capsys.readouterr()
        status = run_main(script, arguments, monkeypatch)
        out, err = capsys.readouterr()
        lines = err.strip().splitlines()
        assert status == 2 and len(lines) == 1 and "Traceback" not in out, err
        name = script.__name__.removeprefix("experiments.")
        assert lines[0].removeprefix("experiments.").startswith(f"{name}: error: "), err
        assert not [word for word in words if str(word).lower() not in lines[0].lower()], err
        return lines[0]

    return refused
