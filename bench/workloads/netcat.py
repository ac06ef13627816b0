"""How long `tuunel nc` takes from its start to the first byte: what ssh waits for at every connection that goes through it."""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.apps import stream
from bench.place import LOOPBACK, ON_LOOPBACK
from bench.process import Process, Processes, ProcessFailed, environment, python
from bench.systems.system import System, Transport
from bench.systems.tuunel import NAME, Tuunel, running
from bench.workloads.workload import Figure, Measurement, cpu_now, cpu_used

_DEADLINE = 20.0
_ANSWER = 1


class Netcat:
    name = "nc"
    transport = Transport.TCP
    only: str | None = Tuunel.name
    in_quick = True
    what = "`tuunel nc` from its start to the first byte of the answer; beside it, the whole run of a Python that does nothing."
    figures: tuple[Figure, ...] = (
        Figure("proxy_ms", "beside a proxy, ms"),
        Figure("alone_ms", "alone, ms"),
        Figure("python_ms", "python -c pass, ms", 1),
        Figure("bare_ms", "python -I -S -c pass, ms", 1),
    )
    cpu_title = "CPU seconds per nc beside a proxy"

    def measure(self, system: System, *, quick: bool) -> Measurement:
        times = 3 if quick else 10
        with Process(python("bench.apps.tcp_service", LOOPBACK)) as service, running(ON_LOOPBACK) as started:
            port = service.line().decode().strip()
            nc = [str(Path(sys.executable).with_name("tuunel")), "nc", NAME, port]
            alone = [_first_byte(nc, started.laptop) for _ in range(times)]
            started.start("proxy", ON_LOOPBACK.app, started.laptop, "proxy", "--listen", f"{LOOPBACK}:0")
            _first_byte(nc, started.laptop)  # the first use of the proxy opens the tunnels that all others find ready
            roles = {**started.roles, "service": Processes(service)}
            before = cpu_now(roles)
            beside = [_first_byte(nc, started.laptop) for _ in range(times)]
            cpu = cpu_used(roles, before)
        figures = {
            "proxy_ms": beside,
            "alone_ms": alone,
            "python_ms": [_run([sys.executable, "-c", "pass"]) for _ in range(times)],
            "bare_ms": [_run([sys.executable, "-I", "-S", "-c", "pass"]) for _ in range(times)],
        }
        return Measurement(
            {key: statistics.median(seconds) * 1000 for key, seconds in figures.items()},
            {role: used / times for role, used in cpu.items()},
        )


def _first_byte(argv: Sequence[str], home: Path) -> float:
    """Return the seconds from the start of `argv` to its first byte of output; the order for an answer waits at its stdin."""
    start = time.monotonic()
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=environment(TUUNEL_HOME=str(home))
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(stream.order(stream.ANSWER, _ANSWER))
        answer = process.stdout.read(_ANSWER)
        seconds = time.monotonic() - start
        process.stdin.close()
        process.wait(_DEADLINE)
        if not answer:
            raise ProcessFailed(f"tuunel nc ended without an answer: {process.stderr.read().decode('utf-8', 'replace')}")
    return seconds


def _run(argv: Sequence[str]) -> float:
    """Return the seconds from the start of `argv` to its end."""
    start = time.monotonic()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, timeout=_DEADLINE)
    return time.monotonic() - start
