"""TUN devices in other network namespaces.

They take and give large TCP segments as the kernel builds them, with the header that says how to cut them (struct virtio_net_hdr): a link
in Python then moves 64 KB with one read and one write, while both kernels count packets of the usual size.
"""

import ctypes
import fcntl
import os
import struct
import subprocess
from pathlib import Path

MTU = 1500
LARGEST = 65_536 + 10  #: bytes that one read gives: a segment and the header before it
QUEUE = 20_000  #: packets that wait in the kernel to be read; more than any window of this benchmark

# linux/if_tun.h
_SET_INTERFACE = 0x400454CA
_SET_OFFLOAD = 0x400454D0
_TUN, _NO_PACKET_INFO, _VNET_HEADER = 0x0001, 0x1000, 0x4000
_CHECKSUM, _SEGMENT_4, _SEGMENT_6 = 1, 2, 4
_ANY_NAMESPACE_TYPE = 0

_libc = ctypes.CDLL(None, use_errno=True)


def enter_network_of(pid: int) -> None:
    """Move this thread into the network namespace of `pid`; OSError when it may not."""
    with Path(f"/proc/{pid}/ns/net").open() as namespace:
        if _libc.setns(namespace.fileno(), _ANY_NAMESPACE_TYPE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def open_tun(pid: int, name: str, address: str, peer: str) -> int:
    """Make a TUN device `name` in the network of `pid`, whose way to `peer` it is; return its non-blocking descriptor."""
    enter_network_of(pid)
    number = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(number, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _TUN | _NO_PACKET_INFO | _VNET_HEADER))
    fcntl.ioctl(number, _SET_OFFLOAD, _CHECKSUM | _SEGMENT_4 | _SEGMENT_6)
    for words in (f"address add {address} peer {peer} dev {name}", f"link set {name} mtu {MTU} txqueuelen {QUEUE} up"):
        subprocess.run(["ip", *words.split()], check=True)
    return number
