"""Checkpoints: complete or absent, verified, and the last intact one is never lost."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from llm4gen_core import LLM4GENError
from train.run import MANIFEST, Checkpoints

ROOT = Path(__file__).parents[2]
CONTENT = b"weights" * 1000


def write(folder: Path) -> None:
    (folder / "model.bin").write_bytes(CONTENT)
    (folder / "optimizer").mkdir()
    (folder / "optimizer" / "state.bin").write_bytes(b"moments")


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_a_checkpoint_holds_and_lists_its_files(checkpoints):
    path = checkpoints.save(1000, write, 8000)
    assert path.name == "step-00001000" and Checkpoints.step_of(path) == 1000
    assert (path / "model.bin").read_bytes() == CONTENT
    files = json.loads((path / MANIFEST).read_text())["files"]
    assert [(file["name"], file["bytes"]) for file in files] == [("model.bin", 7000), ("optimizer/state.bin", 7)]
    assert checkpoints.newest() == path and names(checkpoints) == ["step-00001000"]


def test_no_checkpoint(checkpoints):
    assert checkpoints.newest() is None


def flip(path: Path) -> None:
    content = bytearray((path / "model.bin").read_bytes())
    content[500] ^= 1
    (path / "model.bin").write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path / "optimizer" / "state.bin", 3)


def lose_a_file(path: Path) -> None:
    (path / "model.bin").unlink()


def lose_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def tear_manifest(path: Path) -> None:
    os.truncate(path / MANIFEST, 40)


def rename(path: Path) -> None:
    path.rename(path.with_name("step-00000003"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "model.bin does not hold what was written"),
        (truncate, "optimizer/state.bin has 3 bytes, 7 were written"),
        (lose_a_file, "model.bin cannot be read"),
        (lose_manifest, "manifest.json is missing"),
        (tear_manifest, "manifest.json cannot be read"),
        (rename, "manifest.json is of step 2"),
    ],
)
def test_a_broken_one_is_skipped_for_the_one_before_it(checkpoints, caplog, damage, reason):
    sound = checkpoints.save(1, write, 0)
    damage(checkpoints.save(2, write, 0))
    with caplog.at_level(logging.WARNING, "llm4gen"):
        assert checkpoints.newest() == sound
    [message] = caplog.messages
    assert reason in message and "step-0000000" in message


def test_a_broken_one_is_replaced_when_its_step_is_repeated(checkpoints):
    lose_a_file(checkpoints.save(2, write, 0))
    path = checkpoints.save(2, write, 0)
    assert checkpoints.newest() == path and names(checkpoints) == ["step-00000002"]


def test_an_intact_one_of_the_same_step_is_not_written_again(checkpoints):
    first = checkpoints.save(2, write, 0)
    inode = (first / "model.bin").stat().st_ino
    assert checkpoints.save(2, lambda folder: pytest.fail("written again"), 0) == first
    assert (first / "model.bin").stat().st_ino == inode


def test_only_the_newest_are_kept(checkpoints):
    for step in (1, 2, 10, 11):
        checkpoints.save(step, write, 0)
    assert names(checkpoints) == ["step-00000010", "step-00000011"]


def test_without_a_number_all_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=None)
    for step in range(5):
        checkpoints.save(step, write, 0)
    assert len(names(checkpoints)) == 5


def test_broken_ones_do_not_displace_intact_ones(tmp_path):
    """The run was resumed from step 1 because 2 and 3 are broken; then 2 is intact and 3 still broken."""
    checkpoints = Checkpoints(tmp_path, keep=None)
    for step in (0, 1, 2, 3):
        checkpoints.save(step, write, 0)
    flip(tmp_path / "step-00000002")
    flip(tmp_path / "step-00000003")
    checkpoints.keep = 1
    path = checkpoints.save(2, write, 0)
    assert names(checkpoints) == ["step-00000002", "step-00000003"]
    assert checkpoints.newest() == path


@pytest.fixture
def little_space(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 10**12 - 10**9, 10**9))


def test_too_little_space_is_found_before_writing(checkpoints, little_space):
    sound = checkpoints.save(1, write, 0)
    with pytest.raises(LLM4GENError) as error:
        checkpoints.save(2, lambda folder: pytest.fail("written"), 3 * 10**9)
    for part in (str(checkpoints.folder), "too little free space", "3.22 GB", "1.00 GB are free", "checkpoints.keep"):
        assert part in str(error.value)
    assert names(checkpoints) == [sound.name]


def fill(folder: Path) -> None:
    write(folder)
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"more")


def fill_hidden(folder: Path) -> None:
    """Error as torch and safetensors raise it."""
    write(folder)
    raise RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("writer", [fill, fill_hidden])
def test_a_full_disk_leaves_nothing_half_written(checkpoints, writer):
    sound = checkpoints.save(1, write, 0)
    with pytest.raises(LLM4GENError, match="became full while it was written .*No space left"):
        checkpoints.save(2, writer, 1000)
    assert names(checkpoints) == [sound.name] and checkpoints.newest() == sound


def test_another_error_is_raised_and_leaves_nothing(checkpoints):
    def fail(folder: Path) -> None:
        write(folder)
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        checkpoints.save(2, fail, 0)
    assert names(checkpoints) == []


def test_several_processes_may_write_one_checkpoint(checkpoints):
    partial = checkpoints.begin(7, 0)
    for rank in range(2):
        (partial / f"shard_{rank}.bin").write_bytes(bytes([rank]))
    assert checkpoints.newest() is None
    path = checkpoints.commit(partial)
    assert checkpoints.newest() == path and (path / "shard_1.bin").read_bytes() == b"\1"


ENDLESS = """
import sys, time
from pathlib import Path
from train.run import Checkpoints

def write(folder):
    for name in range(4):
        (folder / str(name)).write_bytes(bytes(2_000_000))

checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
for step in range(1, 10**6):
    checkpoints.save(step, write, 0)
    print(step, flush=True)
"""


def test_a_kill_never_loses_the_last_finished_one(tmp_path):
    """A process that saves in a loop is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "2\n":
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    finished = [2, *(int(line) for line in process.stdout)]
    process.wait()
    checkpoints = Checkpoints(tmp_path, keep=2)
    newest = checkpoints.newest()
    assert newest is not None and Checkpoints.step_of(newest) >= finished[-1]
    checkpoints.save(10**6, write, 0)
    assert not [name for name in names(checkpoints) if name.endswith(".partial")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("moment", ["files", "manifest", "rename", "prune"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_killed_between_two_stages(tmp_path, monkeypatch, moment):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, write, 0)
    child = os.fork()
    if child == 0:

        def die(*arguments: object, **options: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        place = {"files": "_seal", "manifest": "_problem", "rename": "os.rename", "prune": "_remove"}[moment]
        monkeypatch.setattr(f"train.run.{place}", die)
        checkpoints.save(2, write, 0)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    newest = checkpoints.newest()
    assert newest is not None and Checkpoints.step_of(newest) == (2 if moment == "prune" else 1)
    checkpoints.save(3, write, 0)
    assert names(checkpoints) == ["step-00000003"]


def test_one_checkpoint_can_be_verified_by_itself(checkpoints):
    path = checkpoints.save(1, write, 0)
    Checkpoints.verify(path)
    flip(path)
    with pytest.raises(LLM4GENError, match="step-00000001 is broken: model.bin does not hold what was written"):
        Checkpoints.verify(path)


def test_a_name_without_a_step(tmp_path):
    with pytest.raises(LLM4GENError, match="no step in its name"):
        Checkpoints.step_of(tmp_path / "latest")
