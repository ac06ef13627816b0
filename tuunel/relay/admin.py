"""What the operator may ask a running relay: link, devices, revoke, status. docs/reference/control-socket.md, docs/spec/relay.md."""

import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from tuunel.address import HostPort
from tuunel.control import Handler
from tuunel.errors import Reason, UsageError
from tuunel.events import DeviceSeen, Use
from tuunel.identity import DeviceID
from tuunel.links import SECRET_LENGTH, RelayLink
from tuunel.oversight import Oversight
from tuunel.relay.store import StoredDevice
from tuunel.relay.switchboard import Switchboard
from tuunel.relay.wire import token_hash

LINK_LIFETIME: Final = 24 * 3600  #: seconds, unless asked otherwise
MAX_USES: Final = 65535
MAX_FULLEST: Final = 20  #: devices and prefixes in `status`, those that are nearest to their limits: `relay devices` has all
MAX_LIFETIME: Final = 10 * 365 * 86400

Request = Mapping[str, Any]
Document = dict[str, Any]


class Admin:
    """Answers the relay's control socket. `address` is what links carry, `relay_id` what they pin."""

    def __init__(self, switchboard: Switchboard, *, listen: HostPort, address: HostPort, relay_id: bytes) -> None:
        self._switchboard = switchboard
        self.listen = listen
        self.address = address
        self._relay_id = relay_id

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The commands by name."""
        oversight = Oversight("relay", self._switchboard.ledger, self._facts).handlers
        return {"link": self._link, "devices": self._devices, "revoke": self._revoke, **oversight}

    async def make_link(self, uses: int = 1, lifetime: int = LINK_LIFETIME) -> RelayLink:
        """Mint an enrolment token of the operator's, and the link that carries it. The relay keeps only the token's hash."""
        token = secrets.token_bytes(SECRET_LENGTH)
        await self._switchboard.store.add_operator_token(token_hash(token), uses=uses, lifetime=lifetime)
        return RelayLink(self.address, self._relay_id, token)

    async def _link(self, request: Request) -> Document:
        uses = _number(request, "uses", 1, MAX_USES)
        lifetime = _number(request, "for", LINK_LIFETIME, MAX_LIFETIME)
        return {"link": str(await self.make_link(uses, lifetime))}

    async def _devices(self, _: Request) -> Document:
        limiter = self._switchboard.limiter
        return {
            "devices": [self._describe(device) for device in await self._switchboard.store.devices()],
            "prefixes": [{"prefix": use.holder, "use": _used(use)} for use in limiter.prefixes.uses()],
            "limits": self._limits(),
        }

    def _describe(self, device: StoredDevice) -> Document:
        registry = self._switchboard.registry
        return {
            "device_id": str(device.id),
            "label": device.label,
            "created": device.created,
            "last_seen": device.last_seen,
            "online": registry.online(device.id),
            "agent": registry.agent_online(device.id),
            "banned": device.banned,
            "sponsor": ", ".join("operator" if sponsor is None else str(sponsor) for sponsor in device.sponsors),
            "use": _used(self._switchboard.limiter.devices.use(str(device.id))),
        }

    def _limits(self) -> Document:
        allowances = self._switchboard.limiter.allowances
        return {
            holder: {"tunnels": most.tunnels, "opens_per_second": most.opens, "bytes_per_second": most.rate}
            for holder, most in (("device", allowances.device), ("prefix", allowances.prefix))
        }

    async def _revoke(self, request: Request) -> Document:
        device = DeviceID.parse(str(request.get("device", "")))
        if await self._switchboard.store.ban(device) is None:
            raise UsageError(f"no device {device} is enrolled at this relay", "see 'tuunel relay devices'")
        cut = self._switchboard.cut_device(device, Reason.DEVICE_BANNED)
        self._switchboard.emit(DeviceSeen(str(device), "banned"))
        return {"revoked": str(device), "cut": cut}

    def _facts(self) -> Document:
        registry = self._switchboard.registry
        return {
            "listen": [str(self.listen)],
            "address": str(self.address),
            "devices": [
                {"name": "", "device_id": str(device), "tunnels": tunnels, "agent": registry.agent_online(device)}
                for device, tunnels in self._tunnels_of_devices().items()
            ],
            "hops": len(registry),
            "limits": self._limits(),
            "uses": [{"kind": use.kind, "holder": use.holder, "use": _used(use)} for use in self._switchboard.limiter.fullest(MAX_FULLEST)],
        }

    def _tunnels_of_devices(self) -> Counter[DeviceID]:
        """The devices that are online, and how many tunnels each has; the names of devices are not the relay's to know."""
        numbers = Counter({control.device: 0 for control in self._switchboard.registry.controls()})
        for pipe in self._switchboard.pipes:
            numbers.update({pipe.forward.device, pipe.agent.device})
        return numbers


def _used(use: Use) -> Document:
    return {
        "tunnels": use.tunnels,
        "opens_per_second": use.opens,
        "bytes_per_second": use.rate,
        "refused": use.refused,
        "at_limit": list(use.at_limit),
    }


def _number(request: Request, name: str, default: int, ceiling: int) -> int:
    value = request.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= ceiling:
        raise UsageError(f"'{name}' is a whole number from 1 to {ceiling}", f"leave it away for {default}")
    return value
