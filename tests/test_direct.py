"""What the proxy dials by itself: never itself, and nothing of this machine for a client from elsewhere."""

from ipaddress import ip_address

import pytest

from tuunel.direct import direct_addresses
from tuunel.errors import Failure, Reason

OWN = (1080,)


def allowed(address: str, port: int = 80, *, local: bool = True) -> bool:
    try:
        found = direct_addresses([ip_address(address)], port, own_ports=OWN, client_is_local=local)
    except Failure as failure:
        if failure.reason is not Reason.REFUSED_BY_SETTING:
            raise
        return False
    return [str(each) for each in found] == [str(ip_address(address))]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "0.0.0.0", "::", "::ffff:0.0.0.0"]
)
def test_the_proxy_never_dials_itself(address: str) -> None:
    assert not allowed(address, 1080)


def test_another_port_of_this_machine_is_fine_for_a_local_client() -> None:
    assert allowed("127.0.0.1", 8080)
    assert allowed("::1", 8080)


def test_the_same_port_of_another_machine_is_fine() -> None:
    assert allowed("192.0.2.1", 1080)
    assert allowed("2001:db8::1", 1080)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1", "::ffff:169.254.1.1", "100.100.100.200",
     "168.63.129.16", "fd00:ec2::254", "::ffff:100.100.100.200"],
)  # fmt: skip
def test_a_client_from_elsewhere_reaches_neither_loopback_nor_link_local_nor_metadata(address: str) -> None:
    assert allowed(address)
    assert not allowed(address, local=False)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:224.0.0.1"])
def test_nobody_dials_what_is_no_machine(address: str) -> None:
    assert not allowed(address)


def test_what_is_left_of_several_addresses_is_dialled() -> None:
    addresses = [ip_address("127.0.0.1"), ip_address("192.0.2.1")]
    assert direct_addresses(addresses, 1080, own_ports=OWN, client_is_local=True) == [ip_address("192.0.2.1")]
