"""Workers start from a server that has the scripts imported; tests leave no handler behind."""

import multiprocessing
import multiprocessing.forkserver
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share the cores with each other's workers

import pytest
import torch
from helpers import MUJOCO_SCRIPTS, SCRIPTS, load


@pytest.fixture(scope="session", autouse=True)
def warm_fork_server():
    multiprocessing.set_forkserver_preload(SCRIPTS)
    multiprocessing.forkserver.ensure_running()


@pytest.fixture(autouse=True)
def restore_process():
    """`train` sets signal handlers and torch's thread count for the process it is alone in."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(params=SCRIPTS)
def script(request):
    return load(request.param)


@pytest.fixture(params=MUJOCO_SCRIPTS)
def mujoco_script(request):
    return load(request.param)
