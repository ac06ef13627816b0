"""What is read from the kernel about processes."""

import os
import socket
import sys
from pathlib import Path

import pytest

from bench.ports import await_listener, free_port, listening_in
from bench.process import Process, Processes, ProcessFailed, descendants, parent_in, proportional_in

_TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1
   1: 0100007F:0050 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 12346 1
"""

_BUSY = "import sys, time\nwhile time.process_time() < 0.2: pass\nprint('done', flush=True)\nsys.stdin.read()"


def test_only_what_listens_is_a_listener() -> None:
    assert listening_in(_TABLE) == {8080}


def test_a_listener_of_this_machine_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Process(["sleep", "60"]) as process:
        await_listener(process, listener.getsockname()[1])


def test_a_listener_that_does_not_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.ports._LISTEN_SECONDS", 0.05)
    port = free_port()
    with Process(["sleep", "60"]) as process, pytest.raises(ProcessFailed, match=f"nobody listens on port {port}"):
        await_listener(process, port)


def test_the_parent_stands_behind_a_name_with_brackets_and_blanks() -> None:
    assert parent_in("12 (a) S (b) R 77 12 12 0 -1") == 77
    assert parent_in(Path("/proc/self/stat").read_text()) == os.getppid()


def test_the_cpu_time_of_what_a_process_has_started_is_its_own() -> None:
    with Process(["sh", "-c", f'{sys.executable} -c "{_BUSY}"; exit']) as process:
        assert process.line() == b"done\n"
        assert len(descendants(process.pid)) == 1
        assert process.cpu_seconds() >= 0.2
        assert Processes(process, process).cpu_seconds() >= 0.4


def test_memory_is_what_is_its_own_and_a_share_of_the_rest() -> None:
    assert proportional_in("00400000-7ff ---p 00000000 00:00 0 [rollup]\nRss:  900 kB\nPss:  300 kB\nPss_Dirty:  200 kB\n") == 300 * 1024
    assert proportional_in("") == 0
    with Process(["sleep", "60"]) as process:
        assert 0 < Processes(process).memory_bytes() < 50_000_000
