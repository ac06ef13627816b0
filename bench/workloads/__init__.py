"""The workloads, in the order in which they are run."""

from bench.workloads.bulk import Bulk
from bench.workloads.connections import Connections
from bench.workloads.distance import Distance, LinkLimit
from bench.workloads.idle import Idle
from bench.workloads.netcat import Netcat
from bench.workloads.parked import Parked
from bench.workloads.pingpong import PingPong
from bench.workloads.udp_latency import UdpLatency
from bench.workloads.udp_rate import UdpRate
from bench.workloads.workload import Workload

WORKLOADS: tuple[Workload, ...] = (
    Bulk(1),
    Bulk(8),
    PingPong(),
    Connections(),
    Idle(),
    Parked(1000),
    Parked(5000),
    Netcat(),
    LinkLimit(),
    Distance(25),
    Distance(50),
    UdpRate(),
    UdpLatency(),
)
