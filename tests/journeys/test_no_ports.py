"""A machine that has no port left for another connection to a target: that is told as what it is, and what is connected goes on."""

import sys

import pytest

from tests.journeys.peers import network_namespaces, program
from tests.journeys.processes import run

pytestmark = pytest.mark.real

PORTS = "40000 40003"
LAB = f"""ip link set lo up && echo {PORTS} > /proc/sys/net/ipv4/ip_local_port_range && exec "$@" """
DIAL = """
import socket
import anyio
from tuunel.address import HostPort
from tuunel.dial import dial
from tuunel.errors import Failure

async def main():
    streams = []
    with socket.create_server(("127.0.0.1", 80)) as listener:
        try:
            for _ in range(5):
                streams.append(await dial(HostPort("127.0.0.1", 80), allow=lambda found: found))
        except Failure as failure:
            print(len(streams), failure.reason, failure.detail)
        await streams[0].send_all(b"still here")
        print(listener.accept()[0].recv(10).decode())
    for stream in streams:
        stream.reset()

anyio.run(main)
"""


def test_out_of_ports_is_a_limit_and_no_way_that_is_missing() -> None:
    network_namespaces()
    done = run([program("unshare"), "--net", "sh", "-c", LAB, "sh", sys.executable, "-c", DIAL])
    assert done.stdout.decode().splitlines() == ["4 LIMIT no port is left for this target", "still here"]
