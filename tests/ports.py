"""UDP services of the tests: on ports that no role has for anything else."""

import contextlib
import socket


def udp_socket(host: str = "127.0.0.1") -> socket.socket:
    """A UDP socket on a free port where nobody is on TCP, either; the caller closes it.

    An agent refuses the port numbers of its relay and of tuunel's other roles for both (docs/spec/policy.md section 4), and the kernel
    gives a UDP socket one of those now and then.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        with contextlib.ExitStack() as unless_kept, socket.socket(family, socket.SOCK_STREAM) as twin:
            sock = unless_kept.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.bind((host, 0))
            with contextlib.suppress(OSError):
                twin.bind((host, sock.getsockname()[1]))
                unless_kept.pop_all()
                return sock
