"""Tests share the cores with each other's processes, and the process's number of threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from helpers import RUNS, SUITES, load


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
