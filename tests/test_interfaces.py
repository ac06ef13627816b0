"""The networks that this machine is part of."""

from ipaddress import ip_address

import ifaddr
import pytest

from tuunel.interfaces import MAX_AGE, Interfaces


def test_loopback_is_among_them() -> None:
    assert any(ip_address("127.0.0.1") in network for network in Interfaces().networks())


def test_the_kernel_is_not_asked_at_every_open(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    interfaces = Interfaces()
    first = interfaces.networks()
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: asked.append(True) or [])
    assert interfaces.networks() == first
    assert not asked
    interfaces._asked -= MAX_AGE + 1
    assert interfaces.networks() == ()
    assert asked
