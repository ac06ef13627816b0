"""What a process holds, and where: the measures that must not grow with faults."""

from dataclasses import dataclass
from pathlib import Path

from tests.journeys.processes import Running
from tests.journeys.sockets import live_connections
from tests.journeys.world import Machine


@dataclass(frozen=True)
class Held:
    """Descriptors of a process that are no live connections (of these it has as many as are in demand), its threads, the files of its
    state directory, and its memory in KiB.
    """

    descriptors: int
    threads: int
    files: tuple[str, ...]
    memory: int

    @classmethod
    def by(cls, process: Running, machine: Machine) -> "Held":
        """What it holds at this moment. `process` may run behind `ip netns exec`, which becomes the program itself."""
        proc = Path("/proc") / str(process.pid)
        status = dict(line.split(":", 1) for line in (proc / "status").read_text(encoding="ascii", errors="replace").splitlines())
        files = tuple(sorted(str(path.relative_to(machine.home)) for path in machine.home.rglob("*")))
        descriptors = len(list((proc / "fd").iterdir())) - len(live_connections(process.pid))
        return cls(descriptors, int(status["Threads"]), files, int(status["VmRSS"].split()[0]))

    def shown(self) -> str:
        """In a few words."""
        return f"{self.descriptors} descriptors, {self.threads} threads, {len(self.files)} files, {self.memory // 1024} MiB"
