"""A folder has one holder, which is named; it is free again when the holder ends, or is killed."""

import os
import subprocess
import sys

import pytest

from ldm_morph_jax.files.locking import held


class Taken(Exception):
    pass


def refuse(holder):
    raise Taken(holder)


def test_holder_is_named_and_leaves_the_folder_free(tmp_path):
    with held(tmp_path, refuse):
        with pytest.raises(Taken, match=rf"^process {os.getpid()} on \S+$"), held(tmp_path, refuse):
            pass
    with held(tmp_path, refuse):
        pass
    assert not (tmp_path / ".lock-holder").exists()


def test_other_processes_hold_it_and_one_that_was_killed_does_not(tmp_path):
    program = (
        "import sys, time, pathlib\n"
        "from ldm_morph_jax.files.locking import held\n"
        "with held(pathlib.Path(sys.argv[1]), print):\n"
        "    print('holding', flush=True)\n"
        "    time.sleep(600)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "holding\n"
        with pytest.raises(Taken, match=rf"^process {other.pid} on "), held(tmp_path, refuse):
            pass
    finally:
        other.kill()
        other.wait()
    waited = []
    with held(tmp_path, waited.append):  # its name is still there, its lock is not
        assert f"process {os.getpid()} " in (tmp_path / ".lock-holder").read_text()
    assert waited == []


def test_what_is_no_folder_is_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), held(tmp_path / "file", refuse):
        pass
