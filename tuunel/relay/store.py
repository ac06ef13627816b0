"""The relay's device registry on disk: SQLite, written by a worker thread, one transaction per promise; a login's look-up is read at once.

Files, schema and rules: docs/spec/relay.md, "Device registry".
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker, StateError, UsageError
from tuunel.identity import DeviceID
from tuunel.statefile import check_private

T = TypeVar("T")

SCHEMA_VERSION: Final = 1
#: "tuun" in ASCII: tells a registry from any other SQLite file.
APPLICATION_ID: Final = 0x7475756E
SCHEMA: Final = """
CREATE TABLE device (
    id         BLOB PRIMARY KEY CHECK (length(id) = 25),
    public_key BLOB NOT NULL CHECK (length(public_key) = 65),
    label      TEXT NOT NULL,
    created    INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    can_mint   INTEGER NOT NULL CHECK (can_mint IN (0, 1)),
    banned     INTEGER NOT NULL DEFAULT 0 CHECK (banned IN (0, 1))
) WITHOUT ROWID;
CREATE TABLE sponsor (
    device  BLOB NOT NULL REFERENCES device (id) ON DELETE CASCADE,
    sponsor BLOB NOT NULL CHECK (length(sponsor) IN (0, 25)),
    PRIMARY KEY (device, sponsor)
) WITHOUT ROWID;
CREATE INDEX sponsored ON sponsor (sponsor);
CREATE TABLE token (
    hash     BLOB PRIMARY KEY CHECK (length(hash) = 32),
    uses     INTEGER NOT NULL CHECK (uses > 0),
    expires  INTEGER NOT NULL,
    sponsor  BLOB NOT NULL CHECK (length(sponsor) IN (0, 25)),
    can_mint INTEGER NOT NULL CHECK (can_mint IN (0, 1))
) WITHOUT ROWID;
CREATE INDEX minted ON token (sponsor);
"""

#: The sponsor of what the operator enrolled: nobody but the operator can take that back.
OPERATOR: Final = b""
#: Devices that one device may bring in: those it sponsors plus the uses left on its tokens.
MAX_SPONSORED: Final = 256
#: A minted token lives no longer than this: it must die with its invite even if the agent never comes back to drop it.
MAX_MINT_LIFETIME: Final = 30 * 86400
#: `last_seen` is written at most this often per device: a login costs a read, not a disk write.
SEEN_RESOLUTION: Final = 60
#: Characters of a label that are kept; it comes from the device and is shown to the operator.
MAX_LABEL: Final = 64


@dataclass(frozen=True, slots=True)
class StoredDevice:
    """One enrolled device. `sponsors` holds who brought it in, None standing for the operator; times are unix seconds."""

    id: DeviceID
    public_key: bytes
    label: str
    created: int
    last_seen: int
    can_mint: bool
    banned: bool
    sponsors: tuple[DeviceID | None, ...]


class Store:
    """The registry, open. Methods run one after another in a worker thread; each is one transaction that cancellation cannot tear.

    `device` alone reads on a connection of its own, without a thread: every connection of every device asks it, the thread costs eight
    times what the look-up does, and in WAL mode no writer makes a reader wait. It sees all that was stored before it is called.
    Raises `StateError` from any method when the file is damaged or cannot be read or written; nothing was changed then.
    """

    def __init__(self, path: Path, writer: sqlite3.Connection, reader: sqlite3.Connection, clock: Callable[[], float]) -> None:
        self._path = path
        self._db = writer
        self._reader = reader
        self._clock = clock
        self._turn = anyio.CapacityLimiter(1)

    @classmethod
    async def open(cls, path: Path, clock: Callable[[], float]) -> "Store":
        """Open the registry at `path`, made anew (0600) where there is none; `clock` gives unix time. The caller closes it."""
        writer, reader = await anyio.to_thread.run_sync(_connect, path)
        return cls(path, writer, reader, clock)

    async def aclose(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        self._reader.close()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._db.close, limiter=self._turn)

    async def device(self, device: DeviceID) -> StoredDevice | None:
        """Look up one device."""
        with _translated(self._path):
            return self._load(device, self._reader)

    async def devices(self) -> list[StoredDevice]:
        """Every device, oldest first."""
        return await self._run(self._load_all)

    async def count(self) -> int:
        """How many devices are enrolled."""
        return await self._run(lambda: int(self._db.execute("SELECT count(*) FROM device").fetchone()[0]))

    async def is_empty(self) -> bool:
        """Whether no device is enrolled yet."""
        return await self._run(lambda: self._db.execute("SELECT 1 FROM device LIMIT 1").fetchone() is None)

    async def register(self, public_key: bytes, label: str, token_hash: bytes | None, *, open_enrolment: bool) -> tuple[StoredDevice, bool]:
        """Store the device that has just proved to hold `public_key`; returns it and whether it is new.

        The token is consumed in the same transaction. A stored device consumes nothing, unless the token is good and brings
        it a sponsor or the right to mint that it did not have. Raises ENROLMENT_REQUIRED or DEVICE_BANNED.
        """
        return await self._run(lambda: self._register(public_key, label, token_hash, open_enrolment=open_enrolment))

    async def seen(self, *devices: DeviceID) -> None:
        """Note that these devices were here now (to within a minute)."""
        if devices:
            await self._run(lambda: self._seen(devices))

    async def add_operator_token(self, token_hash: bytes, *, uses: int, lifetime: int) -> None:
        """Add an enrolment token of the operator's own: devices that it enrols may mint. `lifetime` in seconds."""
        await self._run(lambda: self._add_token(token_hash, uses, self._now() + lifetime, OPERATOR, can_mint=True))

    async def mint(self, sponsor: DeviceID, token_hash: bytes, *, uses: int, expires: int) -> None:
        """Add an enrolment token that `sponsor` made. Raises ENROLMENT_REQUIRED when it may not mint, QUOTA when it asks too much."""
        await self._run(lambda: self._mint(sponsor, token_hash, uses, expires))

    async def drop_token(self, sponsor: DeviceID, token_hash: bytes) -> None:
        """Remove a token that `sponsor` made; one that is gone, or of somebody else, is left alone."""
        await self._run(
            lambda: self._db.execute("DELETE FROM token WHERE hash = ? AND sponsor = ?", (token_hash, sponsor.raw)) and None,
        )

    async def unenrol(self, sponsor: DeviceID, device: DeviceID) -> bool:
        """Take back `sponsor`'s word for `device`; returns True when nobody else vouches for it and it is therefore gone."""
        return await self._run(lambda: self._unenrol(sponsor, device))

    async def ban(self, device: DeviceID) -> StoredDevice | None:
        """Ban a device and drop the tokens it made; returns it, None when it is not enrolled. Its row stays, so it cannot come back."""
        return await self._run(lambda: self._ban(device))

    # -- everything below runs in the worker thread ---------------------------------------------------------------

    async def _run(self, work: Callable[[], T]) -> T:
        def transaction() -> T:
            with _translated(self._path), _transaction(self._db):
                return work()

        return await anyio.to_thread.run_sync(transaction, limiter=self._turn)

    def _now(self) -> int:
        return int(self._clock())

    def _load(self, device: DeviceID, connection: sqlite3.Connection) -> StoredDevice | None:
        row = connection.execute("SELECT * FROM device WHERE id = ?", (device.raw,)).fetchone()
        return None if row is None else self._stored(row, connection)

    def _load_all(self) -> list[StoredDevice]:
        rows = self._db.execute("SELECT * FROM device ORDER BY created, id").fetchall()
        return [self._stored(row, self._db) for row in rows]

    def _stored(self, row: sqlite3.Row, connection: sqlite3.Connection) -> StoredDevice:
        raw = row["id"]
        if DeviceID.from_public_key(row["public_key"]).raw != raw:
            raise StateError(f"{self._path} is damaged: a stored key is not that of its device", _REMEDY_DAMAGED)
        sponsors = connection.execute("SELECT sponsor FROM sponsor WHERE device = ? ORDER BY sponsor", (raw,)).fetchall()
        return StoredDevice(
            id=DeviceID(raw),
            public_key=row["public_key"],
            label=row["label"],
            created=row["created"],
            last_seen=row["last_seen"],
            can_mint=bool(row["can_mint"]),
            banned=bool(row["banned"]),
            sponsors=tuple(DeviceID(s) if s != OPERATOR else None for (s,) in sponsors),
        )

    def _register(self, public_key: bytes, label: str, token_hash: bytes | None, *, open_enrolment: bool) -> tuple[StoredDevice, bool]:
        device = DeviceID.from_public_key(public_key)
        token = self._good_token(token_hash)
        known = self._load(device, self._db)
        if known is not None:
            self._vouch_again(known, token)
            return self._reload(device), False
        if token is not None:
            self._consume(token)
        elif not open_enrolment:
            raise Failure(Reason.ENROLMENT_REQUIRED, Speaker.RELAY)
        now = self._now()
        can_mint = token is not None and token["can_mint"]
        self._db.execute(
            "INSERT INTO device (id, public_key, label, created, last_seen, can_mint) VALUES (?, ?, ?, ?, ?, ?)",
            (device.raw, public_key, _clean(label), now, now, can_mint),
        )
        self._sponsor(device, OPERATOR if token is None else token["sponsor"])
        return self._reload(device), True

    def _vouch_again(self, known: StoredDevice, token: sqlite3.Row | None) -> None:
        if known.banned:
            raise Failure(Reason.DEVICE_BANNED, Speaker.RELAY)
        if token is None:
            return
        sponsor = DeviceID(token["sponsor"]) if token["sponsor"] != OPERATOR else None
        if sponsor in known.sponsors and known.can_mint >= token["can_mint"]:
            return
        self._consume(token)
        self._sponsor(known.id, token["sponsor"])
        self._db.execute("UPDATE device SET can_mint = max(can_mint, ?) WHERE id = ?", (token["can_mint"], known.id.raw))

    def _reload(self, device: DeviceID) -> StoredDevice:
        stored = self._load(device, self._db)
        if stored is None:
            raise StateError(f"{self._path} lost a row that it had just stored", _REMEDY_DAMAGED)
        return stored

    def _good_token(self, token_hash: bytes | None) -> sqlite3.Row | None:
        if token_hash is None:
            return None
        row = self._db.execute("SELECT * FROM token WHERE hash = ? AND expires > ?", (token_hash, self._now())).fetchone()
        return row if isinstance(row, sqlite3.Row) else None

    def _consume(self, token: sqlite3.Row) -> None:
        if token["uses"] > 1:
            self._db.execute("UPDATE token SET uses = uses - 1 WHERE hash = ?", (token["hash"],))
        else:
            self._db.execute("DELETE FROM token WHERE hash = ?", (token["hash"],))

    def _sponsor(self, device: DeviceID, sponsor: bytes) -> None:
        self._db.execute("INSERT OR IGNORE INTO sponsor (device, sponsor) VALUES (?, ?)", (device.raw, sponsor))

    def _seen(self, devices: Sequence[DeviceID]) -> None:
        now = self._now()
        rows = [(now, device.raw, now - SEEN_RESOLUTION) for device in devices]
        self._db.executemany("UPDATE device SET last_seen = ? WHERE id = ? AND last_seen <= ?", rows)

    def _add_token(self, token_hash: bytes, uses: int, expires: int, sponsor: bytes, *, can_mint: bool) -> None:
        self._db.execute("DELETE FROM token WHERE expires <= ?", (self._now(),))
        self._db.execute(
            "INSERT INTO token (hash, uses, expires, sponsor, can_mint) VALUES (?, ?, ?, ?, ?)",
            (token_hash, uses, expires, sponsor, can_mint),
        )

    def _mint(self, sponsor: DeviceID, token_hash: bytes, uses: int, expires: int) -> None:
        known = self._load(sponsor, self._db)
        if known is None or known.banned or not known.can_mint:
            raise Failure(Reason.ENROLMENT_REQUIRED, Speaker.RELAY, "only a device enrolled with the operator's link may enrol others")
        now = self._now()
        if not now < expires <= now + MAX_MINT_LIFETIME:
            raise Failure(Reason.QUOTA, Speaker.RELAY, "an enrolment token lives at most 30 days")
        (sponsored,) = self._db.execute("SELECT count(*) FROM sponsor WHERE sponsor = ?", (sponsor.raw,)).fetchone()
        (pending,) = self._db.execute(
            "SELECT coalesce(sum(uses), 0) FROM token WHERE sponsor = ? AND expires > ? AND hash != ?", (sponsor.raw, now, token_hash)
        ).fetchone()
        if not 1 <= uses <= MAX_SPONSORED - sponsored - pending:
            raise Failure(Reason.QUOTA, Speaker.RELAY, f"a device may bring in {MAX_SPONSORED} others")
        owner = self._db.execute("SELECT sponsor FROM token WHERE hash = ?", (token_hash,)).fetchone()
        if owner is None:
            self._add_token(token_hash, uses, expires, sponsor.raw, can_mint=False)
        elif owner["sponsor"] != sponsor.raw:
            raise Failure(Reason.QUOTA, Speaker.RELAY, "that token exists")

    def _unenrol(self, sponsor: DeviceID, device: DeviceID) -> bool:
        removed = self._db.execute("DELETE FROM sponsor WHERE device = ? AND sponsor = ?", (device.raw, sponsor.raw)).rowcount
        if not removed or self._db.execute("SELECT 1 FROM sponsor WHERE device = ?", (device.raw,)).fetchone() is not None:
            return False
        # a banned device keeps its row: it must not come back with a new link
        gone = self._db.execute("DELETE FROM device WHERE id = ? AND banned = 0", (device.raw,)).rowcount
        self._db.execute("DELETE FROM token WHERE sponsor = ?", (device.raw,))
        return bool(gone)

    def _ban(self, device: DeviceID) -> StoredDevice | None:
        self._db.execute("UPDATE device SET banned = 1 WHERE id = ?", (device.raw,))
        self._db.execute("DELETE FROM token WHERE sponsor = ?", (device.raw,))
        return self._load(device, self._db)


_REMEDY_DAMAGED: Final = "restore it from a backup; or move it away and start again: every device must then be enrolled anew"
_REMEDY_UNUSABLE: Final = "check the free space of the disk, and the owner and modes of the file and its directory"


def _connect(path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """A connection that writes, and one that only reads and never waits for a lock."""
    with _translated(path), ExitStack() as opened:
        path.touch(mode=0o600)
        check_private(path, path.stat())
        # the thread changes between calls, their order does not: one limiter lets one call in at a time
        writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        opened.callback(writer.close)
        _prepare(path, writer)
        reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
        opened.callback(reader.close)
        reader.row_factory = sqlite3.Row
        reader.execute("PRAGMA query_only = ON")
        opened.pop_all()
        return writer, reader


def _prepare(path: Path, connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a welcomed device is on disk: a power cut must not lose it
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version == 0 and tables == 0:
        script = f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        connection.executescript(script)
        return
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise StateError(f"{path} is not a tuunel device registry", _REMEDY_DAMAGED)
    if version != SCHEMA_VERSION:
        raise StateError(f"{path} was written by another version of tuunel (schema {version})", "run the version of tuunel that wrote it")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StateError(f"{path} is damaged: {verdict}", _REMEDY_DAMAGED)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StateError(f"{path} cannot be used: {error}", _REMEDY_UNUSABLE) from error
    except sqlite3.DatabaseError as error:
        raise StateError(f"{path} is damaged: {error}", _REMEDY_DAMAGED) from error
    except OSError as error:
        raise StateError(f"{path} cannot be used: {error.strerror}", _REMEDY_UNUSABLE) from error
    except (UsageError, RemoteProtocolError) as error:
        # a stored key or ID that is not one
        raise StateError(f"{path} is damaged: {error}", _REMEDY_DAMAGED) from error


def _clean(label: str) -> str:
    return "".join(c for c in label if c.isprintable())[:MAX_LABEL]
