"""The device registry keeps its promises across restarts, races and damage."""

import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from tuunel.errors import Failure, Reason, StateError
from tuunel.identity import IdentityKey
from tuunel.relay import store as module
from tuunel.relay.store import MAX_LABEL, MAX_SPONSORED, SEEN_RESOLUTION, Store

pytestmark = pytest.mark.anyio

DAY = 86400
KEYS = [IdentityKey.from_private_value(number) for number in range(1, 6)]
HOME, LAPTOP, PHONE, TABLET, _ = KEYS
TOKEN, OTHER_TOKEN = b"t" * 32, b"o" * 32


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "devices.db"


@asynccontextmanager
async def opened(path: Path, clock: Clock) -> AsyncIterator[Store]:
    store = await Store.open(path, clock)
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
async def store(path: Path, clock: Clock) -> AsyncIterator[Store]:
    async with opened(path, clock) as store:
        yield store


async def register(store: Store, key: IdentityKey, token: bytes | None = None, label: str = "") -> bool:
    _, new = await store.register(key.public_bytes, label, token, open_enrolment=False)
    return new


async def enrol_with_operator_link(store: Store, key: IdentityKey) -> None:
    token = key.public_bytes[1:33]
    await store.add_operator_token(token, uses=1, lifetime=DAY)
    assert await register(store, key, token)


async def is_refused(store: Store, key: IdentityKey, token: bytes | None) -> bool:
    with pytest.raises(Failure) as caught:
        await register(store, key, token)
    return caught.value.reason is Reason.ENROLMENT_REQUIRED


async def test_enrolment_is_closed_without_a_good_token(store: Store) -> None:
    assert await is_refused(store, HOME, None)
    assert await is_refused(store, HOME, TOKEN)
    assert await store.is_empty()


async def test_a_token_enrols_as_many_devices_as_it_has_uses(store: Store) -> None:
    await store.add_operator_token(TOKEN, uses=2, lifetime=DAY)
    assert await register(store, HOME, TOKEN)
    assert await register(store, LAPTOP, TOKEN)
    assert await is_refused(store, PHONE, TOKEN)
    assert [device.id for device in await store.devices()] == sorted([HOME.device_id, LAPTOP.device_id], key=lambda device: device.raw)


async def test_a_single_use_is_given_to_one_of_many_who_race_for_it(store: Store) -> None:
    await store.add_operator_token(TOKEN, uses=1, lifetime=DAY)
    won = []

    async def race(key: IdentityKey) -> None:
        try:
            won.append(await register(store, key, TOKEN))
        except Failure:
            won.append(False)

    async with anyio.create_task_group() as group:
        for key in KEYS:
            group.start_soon(race, key)
    assert sorted(won) == [False] * 4 + [True]


async def test_a_token_dies_at_its_hour(store: Store, clock: Clock) -> None:
    await store.add_operator_token(TOKEN, uses=1, lifetime=DAY)
    clock.now += DAY
    assert await is_refused(store, HOME, TOKEN)


async def test_registration_is_idempotent_and_consumes_nothing(store: Store) -> None:
    await enrol_with_operator_link(store, HOME)
    await store.add_operator_token(TOKEN, uses=1, lifetime=DAY)
    assert not await register(store, HOME, TOKEN)
    assert not await register(store, HOME, None)
    assert not await register(store, HOME, OTHER_TOKEN)
    assert await register(store, LAPTOP, TOKEN)


async def test_open_enrolment_takes_everybody_and_gives_no_right_to_mint(store: Store) -> None:
    device, new = await store.register(HOME.public_bytes, "home", None, open_enrolment=True)
    assert new
    assert not device.can_mint
    assert device.sponsors == (None,)


async def test_a_restart_keeps_every_device_and_token(path: Path, clock: Clock) -> None:
    async with opened(path, clock) as store:
        await enrol_with_operator_link(store, HOME)
        await store.add_operator_token(TOKEN, uses=1, lifetime=DAY)
        before = await store.devices()
    async with opened(path, clock) as store:
        assert await store.devices() == before
        assert await store.device(HOME.device_id) == before[0]
        assert before[0].public_key == HOME.public_bytes
        assert await register(store, LAPTOP, TOKEN)


async def test_labels_are_cleaned_and_bounded(store: Store) -> None:
    await store.add_operator_token(TOKEN, uses=1, lifetime=DAY)
    device, _ = await store.register(HOME.public_bytes, "\x1b[2Jhome\n" + "x" * 100, TOKEN, open_enrolment=False)
    assert device.label == ("[2Jhome" + "x" * 100)[:MAX_LABEL]


async def test_last_seen_is_written_at_most_once_a_minute(store: Store, clock: Clock) -> None:
    await enrol_with_operator_link(store, HOME)
    created = int(clock.now)

    async def last_seen() -> int:
        await store.seen(HOME.device_id)
        device = await store.device(HOME.device_id)
        assert device is not None
        assert device.created == created
        return device.last_seen

    clock.now += SEEN_RESOLUTION - 1
    assert await last_seen() == created
    clock.now += 1
    assert await last_seen() == int(clock.now)


async def test_many_are_seen_at_once(store: Store, clock: Clock) -> None:
    await store.register(HOME.public_bytes, "", None, open_enrolment=True)
    await store.register(LAPTOP.public_bytes, "", None, open_enrolment=True)
    clock.now += SEEN_RESOLUTION
    await store.seen(HOME.device_id, LAPTOP.device_id)
    await store.seen()
    assert {device.last_seen for device in await store.devices()} == {int(clock.now)}


async def test_a_device_of_the_operator_may_mint_and_what_it_mints_cannot_mint_on(store: Store, clock: Clock) -> None:
    await enrol_with_operator_link(store, HOME)
    await store.mint(HOME.device_id, TOKEN, uses=1, expires=int(clock.now) + 900)
    await store.mint(HOME.device_id, TOKEN, uses=1, expires=int(clock.now) + 900)  # asked again: the answer may have been lost
    assert await register(store, LAPTOP, TOKEN)
    laptop = await store.device(LAPTOP.device_id)
    assert laptop is not None
    assert laptop.sponsors == (HOME.device_id,)
    with pytest.raises(Failure) as caught:
        await store.mint(LAPTOP.device_id, OTHER_TOKEN, uses=1, expires=int(clock.now) + 900)
    assert caught.value.reason is Reason.ENROLMENT_REQUIRED


@pytest.mark.parametrize(("uses", "lifetime"), [(0, 900), (MAX_SPONSORED + 1, 900), (1, 0), (1, module.MAX_MINT_LIFETIME + 1)])
async def test_a_mint_has_a_quota(store: Store, clock: Clock, uses: int, lifetime: int) -> None:
    await enrol_with_operator_link(store, HOME)
    with pytest.raises(Failure) as caught:
        await store.mint(HOME.device_id, TOKEN, uses=uses, expires=int(clock.now) + lifetime)
    assert caught.value.reason is Reason.QUOTA


async def test_the_quota_counts_devices_brought_in_and_uses_left(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SPONSORED", 3)
    await enrol_with_operator_link(store, HOME)
    expires = int(clock.now) + 900
    await store.mint(HOME.device_id, TOKEN, uses=2, expires=expires)
    assert await register(store, LAPTOP, TOKEN)
    with pytest.raises(Failure):
        await store.mint(HOME.device_id, OTHER_TOKEN, uses=2, expires=expires)
    await store.mint(HOME.device_id, OTHER_TOKEN, uses=1, expires=expires)


async def test_a_dropped_token_enrols_nobody_and_only_its_maker_drops_it(store: Store, clock: Clock) -> None:
    for key in (HOME, PHONE):
        await enrol_with_operator_link(store, key)
    await store.mint(HOME.device_id, TOKEN, uses=1, expires=int(clock.now) + 900)
    await store.drop_token(PHONE.device_id, TOKEN)
    with pytest.raises(Failure):
        await store.mint(PHONE.device_id, TOKEN, uses=1, expires=int(clock.now) + 900)
    await store.drop_token(HOME.device_id, TOKEN)
    assert await is_refused(store, LAPTOP, TOKEN)


async def test_a_device_is_gone_when_its_last_sponsor_takes_back_his_word(store: Store, clock: Clock) -> None:
    for key in (HOME, PHONE):
        await enrol_with_operator_link(store, key)
    expires = int(clock.now) + 900
    await store.mint(HOME.device_id, TOKEN, uses=1, expires=expires)
    await store.mint(PHONE.device_id, OTHER_TOKEN, uses=1, expires=expires)
    assert await register(store, LAPTOP, TOKEN)
    assert not await register(store, LAPTOP, OTHER_TOKEN)  # stored already, and now vouched for twice
    assert await is_refused(store, TABLET, OTHER_TOKEN)  # which used it up
    assert not await store.unenrol(HOME.device_id, LAPTOP.device_id)
    assert not await store.unenrol(HOME.device_id, LAPTOP.device_id)
    assert await store.unenrol(PHONE.device_id, LAPTOP.device_id)
    assert await store.device(LAPTOP.device_id) is None


async def test_nobody_but_the_operator_ends_what_the_operator_enrolled(store: Store) -> None:
    for key in (HOME, LAPTOP):
        await enrol_with_operator_link(store, key)
    assert not await store.unenrol(HOME.device_id, LAPTOP.device_id)
    assert await store.device(LAPTOP.device_id) is not None


async def test_the_operators_link_gives_a_stored_device_the_right_to_mint_and_is_used_up(store: Store, clock: Clock) -> None:
    await enrol_with_operator_link(store, HOME)
    await store.mint(HOME.device_id, TOKEN, uses=1, expires=int(clock.now) + 900)
    assert await register(store, LAPTOP, TOKEN)
    await store.add_operator_token(OTHER_TOKEN, uses=1, lifetime=DAY)
    assert not await register(store, LAPTOP, OTHER_TOKEN)
    await store.mint(LAPTOP.device_id, TOKEN, uses=1, expires=int(clock.now) + 900)
    assert await is_refused(store, TABLET, OTHER_TOKEN)


async def test_a_banned_device_does_not_come_back_and_its_tokens_die(store: Store, clock: Clock) -> None:
    await enrol_with_operator_link(store, HOME)
    await store.mint(HOME.device_id, TOKEN, uses=1, expires=int(clock.now) + 900)
    banned = await store.ban(HOME.device_id)
    assert banned is not None
    assert banned.banned
    await store.add_operator_token(OTHER_TOKEN, uses=1, lifetime=DAY)
    for token in (None, OTHER_TOKEN):
        with pytest.raises(Failure) as caught:
            await register(store, HOME, token)
        assert caught.value.reason is Reason.DEVICE_BANNED
    with pytest.raises(Failure):
        await store.mint(HOME.device_id, TOKEN, uses=1, expires=int(clock.now) + 900)
    assert await is_refused(store, LAPTOP, TOKEN)
    assert await store.ban(LAPTOP.device_id) is None


async def test_an_unenrolled_device_that_was_banned_stays_banned(store: Store, clock: Clock) -> None:
    await enrol_with_operator_link(store, HOME)
    await store.mint(HOME.device_id, TOKEN, uses=1, expires=int(clock.now) + 900)
    await register(store, LAPTOP, TOKEN)
    await store.ban(LAPTOP.device_id)
    assert not await store.unenrol(HOME.device_id, LAPTOP.device_id)
    device = await store.device(LAPTOP.device_id)
    assert device is not None
    assert device.banned


async def test_an_enrolment_that_fails_half_way_has_spent_no_token(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.add_operator_token(TOKEN, uses=1, lifetime=DAY)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_sponsor", fail)
        with pytest.raises(StateError):
            await register(store, HOME, TOKEN)

    assert await store.device(HOME.device_id) is None
    assert await register(store, HOME, TOKEN)


async def test_a_cancelled_caller_leaves_a_whole_transaction(store: Store) -> None:
    await store.add_operator_token(TOKEN, uses=1, lifetime=DAY)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await register(store, HOME, TOKEN)
    if await store.is_empty():
        assert await register(store, HOME, TOKEN)
    else:
        assert await is_refused(store, LAPTOP, TOKEN)


# -- the file


async def test_the_file_is_private_and_an_unsafe_one_is_refused(path: Path, clock: Clock) -> None:
    async with opened(path, clock) as store:
        await enrol_with_operator_link(store, HOME)
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    path.chmod(0o644)
    with pytest.raises(StateError, match="mode 0644") as caught:
        await Store.open(path, clock)
    assert "chmod 600" in caught.value.advice


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_a_registry_that_somebody_else_owns_is_refused(path: Path, clock: Clock) -> None:
    async with opened(path, clock) as store:
        await enrol_with_operator_link(store, HOME)
    os.chown(path, 65534, 65534)
    with pytest.raises(StateError, match="another user"):
        await Store.open(path, clock)


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to be read as a header" * 20, b"SQLite format 3\0" + b"\xff" * 4000]
)
async def test_a_damaged_file_is_named_with_its_remedy(path: Path, clock: Clock, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StateError, match="devices") as caught:
        await Store.open(path, clock)
    assert caught.value.advice
    assert path.read_bytes() == content


async def test_a_file_damaged_in_the_middle_is_found_at_start(path: Path, clock: Clock) -> None:
    async with opened(path, clock) as store:
        await enrol_with_operator_link(store, HOME)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StateError, match="damaged"):
        await Store.open(path, clock)


async def test_a_stored_key_that_is_not_its_devices_is_damage(path: Path, clock: Clock) -> None:
    async with opened(path, clock) as store:
        await enrol_with_operator_link(store, HOME)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE device SET public_key = ?", (LAPTOP.public_bytes,))
    connection.close()
    async with opened(path, clock) as store:
        with pytest.raises(StateError, match="damaged"):
            await store.device(HOME.device_id)


async def test_another_schema_or_another_programs_file_is_refused(path: Path, clock: Clock) -> None:
    async with opened(path, clock):
        pass
    for pragma, match in (("user_version = 2", "another version"), ("application_id = 7", "not a tuunel")):
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA {pragma}")
        connection.close()
        with pytest.raises(StateError, match=match):
            await Store.open(path, clock)


async def test_a_full_disk_is_told_and_changes_nothing(path: Path, clock: Clock) -> None:
    async with opened(path, clock) as store:
        await store.add_operator_token(TOKEN, uses=1, lifetime=DAY)
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StateError, match="cannot be used"):
            for number in range(10_000):
                await store.add_operator_token(number.to_bytes(32), uses=1, lifetime=DAY)
        store._db.execute("PRAGMA max_page_count = 100000")
        assert await register(store, HOME, TOKEN)


async def test_a_missing_directory_is_told(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(StateError, match="cannot be used"):
        await Store.open(tmp_path / "no" / "devices.db", clock)
