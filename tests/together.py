"""Two processes that train together, as torchrun starts them, but forked from one that has the packages imported.

torchrun and its two processes each import PyTorch, Lightning and timm, which takes three times as long as the run of a
test. That torchrun itself starts them is seen in tests/training: test_two_processes_train_one_model, and
test_two_processes_stop_and_go_on_together, where it hands on a signal.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerContext
from pathlib import Path

COUNT = 2
_IMPORTED = ["pytest", "vankit.training.run", "vankit.cli.train", "vankit.training.report", "matplotlib.pyplot"]


def forking() -> ForkServerContext:
    """Of processes that fork from one that has been started for that, and has what a run needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def train_together(*words: str) -> "subprocess.CompletedProcess[str]":
    """What two processes say of `python WORDS`, a script or `-m` a module; the status is that of one that failed.

    Their environment is this process's, with what torchrun adds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            forking().Process(target=_run, args=(words, Path(folder), os.environ | _torchruns(rank, port)))
            for rank in range(COUNT)
        ]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(300)
        finally:
            for process in processes:
                process.kill()  # which does nothing to one that has ended
                process.join()
        status = next((process.exitcode for process in processes if process.exitcode), 0)
        said = [(Path(folder) / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(words, status, *said)


def _torchruns(rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(COUNT),
        "LOCAL_WORLD_SIZE": str(COUNT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def _run(words: tuple[str, ...], folder: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if words[0] == "-m":
        sys.argv = [*words[1:]]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [*words]
        runpy.run_path(words[0], run_name="__main__")
