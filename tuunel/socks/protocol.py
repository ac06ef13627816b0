"""The server's side of SOCKS5, SOCKS4 and SOCKS4a up to the answer: bytes in, one request or one refusal out.

Source: RFC 1928, RFC 1929, docs/spec/front-doors.md sections 3 and 4.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tuunel.address import HostPort
from tuunel.errors import ANSWERS, Failure, LocalProtocolError, Reason, RemoteProtocolError
from tuunel.frontdoor import Credentials, Door, Refused, Request, read_target
from tuunel.socks import wire

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """What a SOCKS5 client asks with UDP ASSOCIATE: a way for its datagrams, RFC 1928 section 7.

    `port` is the one that it says it will send them from, 0 when it does not know yet. `local` as in `Request`.
    """

    port: int
    local: bool


class SocksDoor(ABC):
    """One client's SOCKS negotiation. Memory is bounded by the longest message and the largest piece of input."""

    _door: Door

    def __init__(self, credentials: Credentials | None = None, *, local: bool = False) -> None:
        self._credentials = credentials
        self._local = local
        self._buffer = b""
        self._ended = False
        self._answers: list[bytes] = []
        self._step: Callable[[], bool] | None = self._read_first
        self._outcome: Request | AssociateRequest | Refused | None = None
        self._owes_answer = False

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the client, in pieces of any size."""
        self._buffer += data

    def receive_eof(self) -> None:
        """Take note that the client sends no more."""
        self._ended = True

    def next_event(self) -> Request | AssociateRequest | Refused | None:
        """Return the request or the refusal that ends the negotiation, once; None when more bytes are needed.

        A request wants one `accept` or `refuse`. RemoteProtocolError when the client ended too early: close and say nothing.
        """
        while self._step is not None and self._advance(self._step):
            pass
        outcome, self._outcome = self._outcome, None
        if outcome is None and self._ended and self._step is not None:
            raise RemoteProtocolError("the client ended in the middle of its request")
        return outcome

    def data_to_send(self) -> bytes:
        """Hand out the answers so far, once."""
        data = b"".join(self._answers)
        self._answers.clear()
        return data

    @property
    def trailing_data(self) -> bytes:
        """What followed the request: of a Request the same as its `early`, of an AssociateRequest nothing that means anything."""
        return self._buffer

    def accept(self, bound: HostPort | None = None, connection: int | None = None) -> None:
        """Answer that all is ready. `bound` is the address that the target sees, if known; of an association, where to send datagrams."""
        self._answer(self._success(bound))

    def refuse(self, failure: Failure) -> None:
        """Answer why there is no connection or association. The client's connection must then be closed."""
        self._answer(self._refusal(failure.reason))

    @abstractmethod
    def _read_first(self) -> bool:
        """Handle the first message; whether it was complete."""

    @abstractmethod
    def _success(self, bound: HostPort | None) -> bytes:
        """Write the answer to a request whose target is connected."""

    @abstractmethod
    def _refusal(self, reason: Reason) -> bytes:
        """Write the answer to a request that fails."""

    def _advance(self, step: Callable[[], bool]) -> bool:
        try:
            return step()
        except RemoteProtocolError as error:
            self._turn_down(self._refusal(Reason.BAD_REQUEST), Reason.BAD_REQUEST, str(error))
            return False

    def _answer(self, answer: bytes) -> None:
        if not self._owes_answer:
            raise LocalProtocolError("one request has one answer")
        self._owes_answer = False
        self._answers.append(answer)

    def _turn_down(self, answer: bytes, reason: Reason, detail: str) -> None:
        self._step = None
        self._answers.append(answer)
        self._outcome = Refused(reason, detail)

    def _ask(self, command: int, host: str, port: int) -> None:
        if command != wire.Command.CONNECT:
            self._turn_down(self._refusal(Reason.UNSUPPORTED), Reason.UNSUPPORTED, f"command {command:#04x} is not supported")
            return
        self._expect_answer(Request(read_target(host, port), self._door, self._buffer, self._local))

    def _expect_answer(self, request: Request | AssociateRequest) -> None:
        self._outcome = request
        self._step = None
        self._owes_answer = True

    def _take(self, message: tuple[T, int]) -> T:
        content, size = message
        self._buffer = self._buffer[size:]
        return content


class Socks5Door(SocksDoor):
    """SOCKS5: with `credentials` only RFC 1929 is accepted, without them only "no authentication"."""

    _door = "socks5"

    def _read_first(self) -> bool:
        message = wire.read_methods(self._buffer)
        if message is None:
            return False
        offered = self._take(message)
        wanted = wire.Method.NO_AUTH if self._credentials is None else wire.Method.PASSWORD
        if wanted not in offered:
            reason = Reason.UNSUPPORTED if self._credentials is None else Reason.BAD_CREDENTIALS
            self._turn_down(wire.write_method(wire.Method.NONE_ACCEPTABLE), reason, "the client does not offer the method that is wanted")
            return True
        self._answers.append(wire.write_method(wanted))
        self._step = self._read_request if self._credentials is None else self._read_password
        return True

    def _read_password(self) -> bool:
        try:
            message = wire.read_password(self._buffer)
        except RemoteProtocolError as error:
            self._turn_down(wire.write_password_status(right=False), Reason.BAD_REQUEST, str(error))
            return True
        if message is None:
            return False
        if self._credentials is None or not self._credentials.match(*self._take(message)):
            self._turn_down(wire.write_password_status(right=False), Reason.BAD_CREDENTIALS, "")
            return True
        self._answers.append(wire.write_password_status(right=True))
        self._step = self._read_request
        return True

    def _read_request(self) -> bool:
        try:
            message = wire.read_socks5_request(self._buffer)
        except wire.UnknownAddressType as error:
            self._turn_down(wire.write_socks5_reply(wire.Reply.ADDRESS_TYPE_NOT_SUPPORTED), Reason.UNSUPPORTED, str(error))
            return True
        if message is None:
            return False
        request = self._take(message)
        if request.command == wire.Command.UDP_ASSOCIATE:  # its host says nothing that the client's own address does not say better
            self._expect_answer(AssociateRequest(request.port, self._local))
        else:
            self._ask(request.command, request.host, request.port)
        return True

    def _success(self, bound: HostPort | None) -> bytes:
        return wire.write_socks5_reply(wire.Reply.SUCCEEDED, bound)

    def _refusal(self, reason: Reason) -> bytes:
        return wire.write_socks5_reply(ANSWERS[reason].socks)


class Socks4Door(SocksDoor):
    """SOCKS4 and SOCKS4a. They have no password: with `credentials` every request is refused."""

    _door = "socks4a"

    def _read_first(self) -> bool:
        message = wire.read_socks4_request(self._buffer)
        if message is None:
            return False
        request = self._take(message)
        if self._credentials is not None:
            self._turn_down(
                self._refusal(Reason.BAD_CREDENTIALS), Reason.BAD_CREDENTIALS, "SOCKS4a has no password, and this proxy demands one"
            )
            return True
        self._ask(request.command, request.host, request.port)
        return True

    def _success(self, bound: HostPort | None) -> bytes:
        return wire.write_socks4_reply(wire.Reply4.GRANTED)

    def _refusal(self, reason: Reason) -> bytes:
        return wire.write_socks4_reply(wire.Reply4.REJECTED)
