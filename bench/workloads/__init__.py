"""The workloads, in the order in which they are run."""

from bench.workloads.udp_latency import UdpLatency
from bench.workloads.udp_rate import UdpRate
from bench.workloads.workload import Workload

WORKLOADS: tuple[Workload, ...] = (UdpRate(), UdpLatency())
