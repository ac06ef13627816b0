"""The systems that are compared, in the order in which they take turns."""

from bench.systems.chisel import Chisel
from bench.systems.frp import Frp
from bench.systems.gost import Gost
from bench.systems.openssh import OpenSsh
from bench.systems.pproxy import Pproxy
from bench.systems.rathole import Rathole
from bench.systems.raw import Raw
from bench.systems.system import System
from bench.systems.tuunel import Tuunel

SYSTEMS: tuple[System, ...] = (
    Raw(),
    Tuunel(),
    Tuunel(socks=True),
    OpenSsh(),
    OpenSsh(socks=True),
    Frp(),
    Rathole(),
    Gost(),
    Chisel(),
    Pproxy(),
)
LIMIT = Raw.name  # what nothing that stands between can beat
