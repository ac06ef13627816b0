"""What tuunel wants to reach, judged by the ratios of one run: each goal has a floor, which must hold, and an aim.

A goal that the run has no figures for is left out: its workload or all that it compares with did not run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.results import Results
from bench.systems import LIMIT
from bench.systems.system import System
from bench.systems.tuunel import Tuunel

ROUND_TRIP_SLACK = 0.25  # round trips are counted: this much is processing, and no further exchange


@dataclass(frozen=True)
class Bound:
    """One side of a goal: what it is measured against, and whether it holds."""

    text: str
    met: bool


@dataclass(frozen=True)
class Goal:
    what: str
    measured: str
    floor: Bound
    aim: Bound


def goals(results: Results, systems: Sequence[System]) -> list[Goal]:
    """Return the goals that this run can judge."""
    return list(_Judge(results, systems).all())


class _Judge:
    def __init__(self, results: Results, systems: Sequence[System]) -> None:
        self._results = results
        self._own = {system.name: system for system in systems if isinstance(system, Tuunel)}
        self._peers = [system for system in systems if system.name not in self._own and system.name != LIMIT]

    def all(self) -> Iterator[Goal]:
        yield from self._bulk()
        yield from self._relay_cpu()
        yield from self._round_trip()
        yield from self._connections()
        yield from self._first_byte()
        yield from self._distance()
        yield from self._memory()
        yield from self._netcat()

    def _median(self, workload: str, system: str, key: str) -> float | None:
        summary = self._results.figure(workload, system, key)
        return summary.median if summary else None

    def _of_peers(self, workload: str, key: str, peers: Sequence[System]) -> dict[str, float]:
        found = {peer.name: self._median(workload, peer.name, key) for peer in peers}
        return {name: value for name, value in found.items() if value is not None}

    def _bulk(self) -> Iterator[Goal]:
        for key, direction in (("up_gbit", "to the service"), ("down_gbit", "from it")):
            own, raw = self._median("bulk-1", Tuunel.name, key), self._median("bulk-1", LIMIT, key)
            peers = self._of_peers("bulk-1", key, self._peers)
            blind = self._of_peers("bulk-1", key, [peer for peer in self._peers if peer.readable == "nobody"])
            if own is None or raw is None or not blind:
                continue
            best_blind, best = max(blind.values()), max(peers.values())
            yield Goal(
                f"bulk, one stream {direction}",
                f"{own / raw:.2f} of raw, {own / best_blind:.2f}x the best with a blind relay, {own / best:.2f}x the best peer",
                Bound("0.25 of raw, and ahead of each peer whose relay cannot read", own >= 0.25 * raw and own > best_blind),
                Bound("2x the best peer", own >= 2 * best),
            )

    def _relay_cpu(self) -> Iterator[Goal]:
        used = {system: self._results.cpu("bulk-1", system).get("relay") for system in (Tuunel.name, *(peer.name for peer in self._peers))}
        own = used.pop(Tuunel.name)
        peers = [summary.median for summary in used.values() if summary]
        if own and peers:
            ratio = own.median / min(peers)
            yield Goal(
                "relay CPU per GB",
                f"{ratio:.2f} of the best peer's relay",
                Bound("half of it", ratio <= 1 / 2),
                Bound("a third", ratio <= 1 / 3),
            )

    def _round_trip(self) -> Iterator[Goal]:
        yield from self._against_peers("round trip p50", "pingpong", "p50_us", Tuunel.name, "openssh", more=False)

    def _connections(self) -> Iterator[Goal]:
        for own, openssh, form in (("tuunel", "openssh", ""), ("tuunel-socks", "openssh-socks", ", asked by SOCKS")):
            for key, way in (("sequential", "one by one"), ("at_once", "50 at once")):
                yield from self._against_peers(f"new connections, {way}{form}", "connections", key, own, openssh, more=True)

    def _against_peers(self, what: str, workload: str, key: str, own_name: str, openssh_name: str, *, more: bool) -> Iterator[Goal]:
        """Compare with OpenSSH, and with the best of the peers that are asked in the same way."""
        own = self._median(workload, own_name, key)
        socks = own_name in self._own and self._own[own_name].socks
        peers = self._of_peers(workload, key, [peer for peer in self._peers if peer.socks == socks])
        if own is None or openssh_name not in peers:
            return
        openssh, best = peers[openssh_name], (max if more else min)(peers.values())
        yield Goal(
            what,
            f"{own / openssh:.2f}x OpenSSH, {own / best:.2f}x the best peer",
            Bound(f"{'at least' if more else 'at most'} 1x OpenSSH", own >= openssh if more else own <= openssh),
            Bound("1x the best peer", own >= best if more else own <= best),
        )

    def _first_byte(self) -> Iterator[Goal]:
        for workload, rtt in (("delay-25", 100), ("delay-50", 200)):
            for key, state, most in (("next_rtt", "hot", 1.0), ("first_rtt", "warm", 1.5)):
                own = self._median(workload, Tuunel.name, key)
                if own is not None:
                    bound = Bound(f"{most:g} (and {ROUND_TRIP_SLACK:g} for processing)", own <= most + ROUND_TRIP_SLACK)
                    yield Goal(f"first byte at {rtt} ms, {state}", f"{own:.2f} round trips from end to end", bound, bound)

    def _distance(self) -> Iterator[Goal]:
        for key, direction in (("up_mbit", "to the service"), ("down_mbit", "from it")):
            own, raw = self._median("delay-25", Tuunel.name, key), self._median("delay-25", LIMIT, key)
            if own is not None and raw is not None:
                yield Goal(
                    f"one stream at 100 ms {direction}",
                    f"{own / raw:.2f} of plain TCP",
                    Bound("0.9", own >= 0.9 * raw),
                    Bound("more than 1", own > raw),
                )

    def _memory(self) -> Iterator[Goal]:
        for what, workload, key, most in (
            ("idle tunnel at the relay", "idle", "relay_kb", 24),
            ("parked agent of 1,000", "parked-1000", "agent_kb", 40),
            ("parked agent of 5,000", "parked-5000", "agent_kb", 40),
        ):
            own = self._median(workload, Tuunel.name, key)
            if own is not None:
                yield Goal(what, f"{own:.1f} KB", Bound(f"{most} KB", own <= most), Bound(f"{most // 2} KB", own <= most / 2))

    def _netcat(self) -> Iterator[Goal]:
        beside, alone, python = (self._median("nc", Tuunel.name, key) for key in ("proxy_ms", "alone_ms", "python_ms"))
        if beside is not None and python is not None:
            ratio = beside / python
            yield Goal("nc beside a proxy", f"{ratio:.1f}x Python's start", Bound("4x", ratio <= 4), Bound("3x", ratio <= 3))
        if alone is not None:
            bound = Bound("250 ms", alone <= 250)
            yield Goal("nc alone", f"{alone:.0f} ms", bound, bound)
