"""The forward side's book: the devices that this machine can reach under a name, and the relays it knows. docs/spec/names.md section 5."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tuunel.address import IP6, HostPort
from tuunel.errors import Failure, Reason, UsageError
from tuunel.identity import COMPACT_LENGTH, DeviceID
from tuunel.links import PIN_LENGTH, RelayLink
from tuunel.statefile import StateFile

VERSION: Final = 1
MAX_ALIAS: Final = 63  # one DNS label
LOOKS_LIKE_ID: Final = COMPACT_LENGTH - 4  # a name this long is a device ID with a typo rather than an alias
_ALIAS: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class KnownRelay:
    """A relay: its id (the 32 bytes that a link pins), where it is, and whether this machine is enrolled there."""

    id: bytes
    address: HostPort
    enrolled: bool


@dataclass(frozen=True, slots=True)
class Device:
    """A device and the relays at which to ask for it, the best first. `name` is its alias, or its ID where it has none."""

    name: str
    id: DeviceID
    relays: tuple[KnownRelay, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    id: DeviceID
    relays: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Book:
    relays: tuple[KnownRelay, ...] = ()
    entries: tuple[_Entry, ...] = ()

    def find(self, name: str) -> _Entry | None:
        return next((entry for entry in self.entries if entry.name == name.lower()), None)

    def relay(self, relay_id: bytes) -> KnownRelay | None:
        return next((relay for relay in self.relays if relay.id == relay_id), None)

    def device(self, entry: _Entry) -> Device:
        return Device(entry.name, entry.id, tuple(relay for relay in map(self.relay, entry.relays) if relay is not None))


class Devices:
    """The book at `path`. A running process sees what another one writes. Any method raises StateError when the file is unusable."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path, VERSION, _decode, _encode)

    def devices(self) -> list[Device]:
        """Return the devices that have an alias, in the order in which they came."""
        book = self._file.read()
        return [book.device(entry) for entry in book.entries]

    def relays(self) -> list[KnownRelay]:
        """Return the known relays, the one remembered last first."""
        return list(self._file.read().relays)

    def remember_relay(self, link: RelayLink, *, enrolled: bool) -> None:
        """Remember a relay and where it is; one that moved gets its new address. Who was enrolled once stays so."""

        def step(book: _Book) -> tuple[_Book, None]:
            old = book.relay(link.pin)
            relay = KnownRelay(link.pin, link.address, enrolled or (old is not None and old.enrolled))
            return replace(book, relays=(relay, *(each for each in book.relays if each.id != link.pin))), None

        self._file.change(step)

    def add(self, name: str, device: DeviceID, relay_id: bytes) -> Device:
        """Remember that the device is reached at this relay, under this alias. UsageError when the alias is bad or another device's."""
        alias = check_alias(name)

        def step(book: _Book) -> tuple[_Book, Device]:
            if book.relay(relay_id) is None:
                raise ValueError("the relay must be remembered before its devices")
            old = _check_not_another(book, alias, device)
            others = tuple(each for each in (old.relays if old else ()) if each != relay_id)
            entry = _Entry(alias, device, (relay_id, *others))
            after = replace(book, entries=(*book.entries, entry)) if old is None else _exchange(book, old, entry)
            return after, after.device(entry)

        return self._file.change(step)

    def check_free(self, name: str, device: DeviceID) -> None:
        """Check that `add` would take this alias for this device: UsageError when it is bad or another device's."""
        _check_not_another(self._file.read(), check_alias(name), device)

    def rename(self, old: str, new: str) -> None:
        """Give a device another alias. UsageError when `old` is unknown, or `new` is bad or taken."""
        alias = check_alias(new)

        def step(book: _Book) -> tuple[_Book, None]:
            entry = _find(book, old)
            taken = book.find(alias)
            if taken is not None and taken is not entry:
                raise UsageError(f"{alias!r} is another device already", f"choose another name, or 'tuunel forget {alias}' first")
            return _exchange(book, entry, replace(entry, name=alias)), None

        self._file.change(step)

    def forget(self, name: str) -> None:
        """Drop an alias. UsageError when it is unknown."""

        def step(book: _Book) -> tuple[_Book, None]:
            entry = _find(book, name)
            return replace(book, entries=tuple(each for each in book.entries if each is not entry)), None

        self._file.change(step)

    def resolve(self, name: str) -> Device:
        """Return the device of an alias or a full device ID, in any case, with the relays where this machine is enrolled.

        A device ID needs no alias: it is asked for at the relays of its alias, if it has one, then at every other.
        Failure(UNKNOWN_NAME) with the nearest known name; Failure(NOT_PAIRED) when this machine is enrolled at no relay of the device.
        """
        book = self._file.read()
        entry = book.find(name)
        device = self._by_id(book, name) if entry is None else book.device(entry)
        enrolled = tuple(relay for relay in device.relays if relay.enrolled)
        if not enrolled:
            raise Failure(Reason.NOT_PAIRED, detail="it is enrolled at no relay where that device waits")
        return device if enrolled == device.relays else replace(device, relays=enrolled)

    def free_alias(self, label: str) -> str:
        """Return an unused alias made from a device's own label, which is untrusted text."""
        plain = re.sub(r"[^a-z0-9]+", "-", label.lower()[:MAX_ALIAS]).strip("-")
        base = plain if plain and _is_alias(plain) else "device"
        book = self._file.read()
        alias, number = base, 1
        while book.find(alias) is not None:
            number += 1
            suffix = f"-{number}"
            alias = base[: MAX_ALIAS - len(suffix)] + suffix
        return alias

    def _by_id(self, book: _Book, name: str) -> Device:
        try:
            device = DeviceID.parse(name)
        except UsageError as error:
            detail = str(error) if len(name) >= LOOKS_LIKE_ID else _nearest(book, name)
            raise Failure(Reason.UNKNOWN_NAME, detail=detail) from error
        known = next((book.device(entry) for entry in book.entries if entry.id == device), Device(str(device), device, ()))
        return replace(known, relays=(*known.relays, *(relay for relay in book.relays if relay not in known.relays)))


def check_alias(name: str) -> str:
    """Return the alias in lower case. UsageError unless it is one DNS label of letters, digits and dashes that can mean nothing else."""
    alias = name.strip().lower()
    if not _is_alias(alias):
        raise UsageError(
            f"{name!r} cannot be the name of a device",
            f"a name has 1 to {MAX_ALIAS} letters, digits and dashes, no dash at its ends, and is neither '{IP6}' nor a device ID",
        )
    return alias


def _check_not_another(book: _Book, alias: str, device: DeviceID) -> _Entry | None:
    entry = book.find(alias)
    if entry is not None and entry.id != device:
        raise UsageError(f"{alias!r} is another device already", f"choose another name, or 'tuunel forget {alias}' first")
    return entry


def _is_alias(text: str) -> bool:
    return len(text) <= MAX_ALIAS and _ALIAS.fullmatch(text) is not None and text != IP6 and not _is_device_id(text)


def _is_device_id(text: str) -> bool:
    try:
        DeviceID.parse(text)
    except UsageError:
        return False
    return True


def _find(book: _Book, name: str) -> _Entry:
    entry = book.find(name)
    if entry is None:
        raise UsageError(f"no device of that name is known here: {_nearest(book, name)}", "see 'tuunel devices'")
    return entry


def _nearest(book: _Book, name: str) -> str:
    names = [entry.name for entry in book.entries]
    near = difflib.get_close_matches(name.lower(), names, n=1)
    if near:
        return f"{name!r}; did you mean {near[0]!r}?"
    return repr(name) if names else f"{name!r}; none is known before 'tuunel pair'"


def _exchange(book: _Book, old: _Entry, new: _Entry) -> _Book:
    return replace(book, entries=tuple(new if entry is old else entry for entry in book.entries))


def _encode(book: _Book) -> Mapping[str, object]:
    return {
        "relays": [{"id": relay.id.hex(), "address": str(relay.address), "enrolled": relay.enrolled} for relay in book.relays],
        "devices": [{"name": each.name, "device": str(each.id), "relays": [relay.hex() for relay in each.relays]} for each in book.entries],
    }


def _decode(content: dict[str, Any]) -> _Book:
    return _Book(
        relays=tuple(
            KnownRelay(_relay_id(relay["id"]), HostPort.parse(relay["address"]), relay["enrolled"] is True)
            for relay in content.get("relays", [])
        ),
        entries=tuple(
            _Entry(check_alias(each["name"]), DeviceID.parse(each["device"]), tuple(map(_relay_id, each["relays"])))
            for each in content.get("devices", [])
        ),
    )


def _relay_id(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != PIN_LENGTH:
        raise ValueError(f"a relay id has {PIN_LENGTH} bytes")
    return value
