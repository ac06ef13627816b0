"""The workloads, in the order in which they are run."""

from bench.workloads.bulk import Bulk
from bench.workloads.pingpong import PingPong
from bench.workloads.udp_latency import UdpLatency
from bench.workloads.udp_rate import UdpRate
from bench.workloads.workload import Workload

WORKLOADS: tuple[Workload, ...] = (Bulk(1), Bulk(8), PingPong(), UdpRate(), UdpLatency())
