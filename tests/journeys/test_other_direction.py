"""The other direction is no feature of its own: an agent on the laptop, and the machine at home pairs back."""

import pytest

from tests.journeys.targets import echo, serving
from tests.journeys.world import Trio

pytestmark = pytest.mark.real


def test_the_machine_at_home_reaches_the_laptop(own_trio: Trio) -> None:
    """Each machine keeps one identity in both of its roles; the laptop's invite has enrolled it, so its agent needs no link."""
    laptop, home = own_trio.laptop, own_trio.agent.machine
    back = own_trio.world.agent(None, machine=laptop)
    assert back.device_id == laptop.ask("devices")["device_id"]
    assert back.invite
    home.ask("pair", back.invite, "--name", "laptop")
    with serving(echo) as target:
        assert home.nc("laptop.tuunel", target.port, stdin=b"from home").stdout == b"from home"
        assert laptop.nc("home.tuunel", target.port, stdin=b"and back").stdout == b"and back"
    assert home.ask("devices")["device_id"] == own_trio.agent.device_id
