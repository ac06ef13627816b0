"""Every way tuunel can fail: the exception tree, and one table of answers.

    TuunelError                  has a message, advice and an exit code
    ├── UsageError               the person asked for something that cannot be meant
    ├── StateError               a file of ours is damaged, unsafe or cannot be written
    ├── NotRunning               the command needs a running tuunel role that is not there
    ├── ListenError              an address could not be listened on
    ├── Failure                  a connection could not be made, or was lost: reason + speaker
    │   └── PeerMismatch         the identity at the far end is wrong: an attack alarm
    └── ProtocolError
        ├── LocalProtocolError   our own caller misused a core
        └── RemoteProtocolError  bytes from outside broke the rules

`Reason` is the one failure vocabulary. `ANSWERS` translates each reason to every interface that people and programs
meet: SOCKS5 reply, HTTP status, `Proxy-Status` error type, process exit code, and the sentence that says what to do.
Source: docs/spec/front-doors.md (failure table), docs/reference/errors.md (remedies).
"""

from enum import StrEnum
from typing import Final, NamedTuple


class Speaker(StrEnum):
    """Who said it failed: nothing the relay says is authenticated end to end, what the agent says is."""

    LOCAL = "local"
    RELAY = "relay"
    AGENT = "agent"


class Reason(StrEnum):
    """Why a connection could not be made, or ended before its time."""

    # not allowed
    NOT_PAIRED = "NOT_PAIRED"
    INVITE_INVALID = "INVITE_INVALID"
    POLICY_DENIED = "POLICY_DENIED"
    POLICY_REVOKED = "POLICY_REVOKED"
    # the target
    CONNECTION_REFUSED = "CONNECTION_REFUSED"
    HOST_UNREACHABLE = "HOST_UNREACHABLE"
    NET_UNREACHABLE = "NET_UNREACHABLE"
    NAME_NOT_RESOLVED = "NAME_NOT_RESOLVED"
    CONNECT_TIMEOUT = "CONNECT_TIMEOUT"
    UNSUPPORTED = "UNSUPPORTED"
    LIMIT = "LIMIT"
    SHUTDOWN = "SHUTDOWN"
    KILLED = "KILLED"
    # the way to the agent
    PEER_UNAVAILABLE = "PEER_UNAVAILABLE"
    OPEN_TIMEOUT = "OPEN_TIMEOUT"
    RELAY_UNREACHABLE = "RELAY_UNREACHABLE"
    RELAY_UNTRUSTED = "RELAY_UNTRUSTED"
    PEER_MISMATCH = "PEER_MISMATCH"
    TUNNEL_LOST = "TUNNEL_LOST"
    # what the relay answers to a device
    PROTOCOL = "PROTOCOL"
    VERSION = "VERSION"
    AUTH_FAILED = "AUTH_FAILED"
    DEVICE_UNKNOWN = "DEVICE_UNKNOWN"
    ENROLMENT_REQUIRED = "ENROLMENT_REQUIRED"
    DEVICE_BANNED = "DEVICE_BANNED"
    RATE_LIMITED = "RATE_LIMITED"
    QUOTA = "QUOTA"
    DUPLICATE_DEVICE = "DUPLICATE_DEVICE"
    INTERNAL = "INTERNAL"
    # this machine
    UNKNOWN_NAME = "UNKNOWN_NAME"
    BAD_CREDENTIALS = "BAD_CREDENTIALS"
    BAD_REQUEST = "BAD_REQUEST"
    BAD_RESPONSE = "BAD_RESPONSE"
    FORBIDDEN_ORIGIN = "FORBIDDEN_ORIGIN"
    FORBIDDEN_HOST = "FORBIDDEN_HOST"
    FORBIDDEN_USER = "FORBIDDEN_USER"
    REFUSED_BY_SETTING = "REFUSED_BY_SETTING"


class Answer(NamedTuple):
    """What one reason looks like on every interface."""

    socks: int  #: SOCKS5 reply byte, RFC 1928 section 6
    http: int  #: HTTP status code
    proxy_status: str  #: `error` type of Proxy-Status, RFC 9209 section 2.3
    exit: int  #: exit code of a command that ends for this reason
    message: str  #: what happened, for a person
    advice: str  #: what to do now


ANSWERS: Final[dict[Reason, Answer]] = {
    Reason.NOT_PAIRED: Answer(
        2, 403, "destination_ip_prohibited", 10,
        "this machine is not paired with that device",
        "run 'tuunel invite' on the device and 'tuunel pair' here",
    ),
    Reason.INVITE_INVALID: Answer(
        2, 403, "destination_ip_prohibited", 11,
        "the invite is used up, expired or not of this device",
        "make a new one on the device with 'tuunel invite'",
    ),
    Reason.POLICY_DENIED: Answer(
        2, 403, "destination_ip_prohibited", 12,
        "the device does not allow this target for this machine",
        "on the device, see 'tuunel clients'; a new 'tuunel invite --target' can name it",
    ),
    Reason.POLICY_REVOKED: Answer(
        2, 403, "destination_ip_prohibited", 13,
        "the device has taken back this machine's access, or it has expired",
        "ask for a new invite, made on the device with 'tuunel invite'",
    ),
    Reason.CONNECTION_REFUSED: Answer(
        5, 502, "connection_refused", 20,
        "the target refused the connection",
        "check that the service runs and listens on that port",
    ),
    Reason.HOST_UNREACHABLE: Answer(
        4, 502, "destination_ip_unroutable", 21,
        "the target host cannot be reached",
        "check that the host is switched on and in the network of the machine that dials it",
    ),
    Reason.NET_UNREACHABLE: Answer(
        3, 502, "destination_ip_unroutable", 22,
        "there is no route to the target's network",
        "check the address, and the network of the machine that dials it",
    ),
    Reason.NAME_NOT_RESOLVED: Answer(
        4, 502, "dns_error", 23,
        "the target's name could not be resolved",
        "check the spelling; the name is looked up by the machine that dials it",
    ),
    Reason.CONNECT_TIMEOUT: Answer(
        6, 504, "connection_timeout", 24,
        "the target did not answer in time",
        "check the address and any firewall in front of it",
    ),
    Reason.UNSUPPORTED: Answer(
        7, 501, "http_request_error", 25,
        "this kind of request is not supported",
        "use CONNECT, or SOCKS5 UDP ASSOCIATE for datagrams",
    ),
    Reason.LIMIT: Answer(
        1, 503, "connection_limit_reached", 26,
        "a limit has been reached",
        "close some connections, or try again in a moment",
    ),
    Reason.SHUTDOWN: Answer(
        1, 503, "destination_unavailable", 27,
        "the other side is shutting down",
        "try again in a moment",
    ),
    Reason.KILLED: Answer(
        1, 503, "connection_terminated", 28,
        "a person has ended this connection",
        "ask whoever watches the proxy, the device or the relay; nothing is in the way of a new one",
    ),
    Reason.PEER_UNAVAILABLE: Answer(
        4, 504, "destination_unavailable", 30,
        "the device is offline, or does not admit this machine",
        "check that 'tuunel agent' runs there, and that this machine is paired with it",
    ),
    Reason.OPEN_TIMEOUT: Answer(
        4, 504, "connection_timeout", 31,
        "the device did not take the connection in time",
        "check the device's network, then try again",
    ),
    Reason.RELAY_UNREACHABLE: Answer(
        1, 502, "destination_unavailable", 32,
        "the relay cannot be reached",
        "check this machine's network, and that 'tuunel relay serve' runs",
    ),
    Reason.RELAY_UNTRUSTED: Answer(
        1, 502, "tls_certificate_error", 33,
        "the relay is not the one that the link names, so nothing was sent to it",
        "if the relay was set up anew, ask for a new link; if not, somebody may be in between",
    ),
    Reason.PEER_MISMATCH: Answer(
        1, 502, "tls_certificate_error", 34,
        "ALARM: the far end could not prove that it is the device; somebody may be in between",
        "do not retry blindly: compare the device ID with the one that the agent shows",
    ),
    Reason.TUNNEL_LOST: Answer(
        1, 502, "connection_terminated", 35,
        "the tunnel was lost",
        "try again; if it happens often, look at the relay and the agent",
    ),
    Reason.PROTOCOL: Answer(
        1, 503, "proxy_internal_error", 36,
        "the relay and this machine do not understand each other",
        "check that the address is a tuunel relay, and that both run a current version",
    ),
    Reason.VERSION: Answer(
        1, 503, "proxy_internal_error", 37,
        "the relay speaks another version of the protocol",
        "bring tuunel up to date on the older side",
    ),
    Reason.AUTH_FAILED: Answer(
        1, 503, "proxy_internal_error", 38,
        "the relay did not accept this machine's key",
        "check that this state directory was not copied or mixed up",
    ),
    Reason.DEVICE_UNKNOWN: Answer(
        1, 503, "proxy_internal_error", 39,
        "the relay does not know this machine, or no longer does",
        "its access may have been revoked; to enrol again, ask for a new link or invite",
    ),
    Reason.ENROLMENT_REQUIRED: Answer(
        1, 503, "proxy_internal_error", 40,
        "the relay enrols nobody without a link or invite that is valid and unused",
        "ask for a new link ('tuunel relay link') or invite ('tuunel invite')",
    ),
    Reason.DEVICE_BANNED: Answer(
        1, 503, "proxy_internal_error", 41,
        "the relay's operator has banned this machine",
        "ask the operator of the relay",
    ),
    Reason.RATE_LIMITED: Answer(
        1, 503, "connection_limit_reached", 42,
        "the relay asks this machine to slow down",
        "wait a little, then try again",
    ),
    Reason.QUOTA: Answer(
        1, 503, "connection_limit_reached", 43,
        "this machine's quota at the relay is used up",
        "close some tunnels or invites, or ask the operator of the relay",
    ),
    Reason.DUPLICATE_DEVICE: Answer(
        1, 503, "proxy_internal_error", 44,
        "another live agent uses the same device identity",
        "stop the other one; never copy a state directory to a second machine",
    ),
    Reason.INTERNAL: Answer(
        1, 503, "proxy_internal_error", 45,
        "something went wrong inside tuunel",
        "look at the log of the side that said so, and report it",
    ),
    Reason.UNKNOWN_NAME: Answer(
        4, 502, "dns_error", 50,
        "no device of that name is known here",
        "see 'tuunel devices' for the known names",
    ),
    Reason.BAD_CREDENTIALS: Answer(
        1, 407, "http_request_denied", 51,
        "the proxy's user name or password is wrong or missing",
        "give the credentials that the proxy was started with",
    ),
    Reason.BAD_REQUEST: Answer(
        1, 400, "http_request_error", 52,
        "the request to the proxy is malformed",
        "check the client's proxy settings",
    ),
    Reason.BAD_RESPONSE: Answer(
        1, 502, "connection_terminated", 55,
        "the target took the connection, but ended it before it gave a valid HTTP answer",
        "check that the service on that port speaks HTTP, and look at its log",
    ),
    Reason.FORBIDDEN_ORIGIN: Answer(
        2, 403, "http_request_denied", 53,
        "a web page from elsewhere may not reach a .tuunel host through the proxy",
        "open the .tuunel address directly in the browser",
    ),
    Reason.FORBIDDEN_HOST: Answer(
        2, 403, "http_request_denied", 56,
        "this forward serves no request under that Host",
        "open it under a name that its --http-hosts lists, or add this one there",
    ),
    Reason.FORBIDDEN_USER: Answer(
        2, 403, "http_request_denied", 57,
        "this proxy serves the programs of the user who started it, and root's",
        "start a proxy of your own, or that one with --all-users or --auth",
    ),
    Reason.REFUSED_BY_SETTING: Answer(
        2, 403, "http_request_denied", 54,
        "this proxy carries nothing but .tuunel names and its routes to that place",
        "see the --other and --route options of 'tuunel proxy'",
    ),
}  # fmt: skip


class TuunelError(Exception):
    """An error that a person can meet: `str()` is what happened, `advice` what to do now, `exit_code` what a command ends with."""

    exit_code = 1

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


class UsageError(TuunelError):
    """The command, link, name or setting given cannot be meant."""

    exit_code = 2


class StateError(TuunelError):
    """A file in the state directory is damaged, has unsafe modes, or cannot be read or written. Nothing was changed."""

    exit_code = 60


class NotRunning(TuunelError):
    """The command talks to a running tuunel role, and none is running here."""

    exit_code = 61


class ListenError(TuunelError):
    """An address could not be listened on."""

    exit_code = 62


class Failure(TuunelError):
    """A connection could not be made or was lost: `reason`, who says so (`speaker`), and `detail` for a person.

    `detail` may hold text from a peer: strip control characters before showing it. `advice` stands in the place of the reason's own
    where more is known about what went wrong.
    """

    def __init__(
        self, reason: Reason, speaker: Speaker = Speaker.LOCAL, detail: str = "", *, retry_after: int = 0, advice: str = ""
    ) -> None:
        answer = ANSWERS[reason]
        super().__init__(f"{answer.message}: {detail}" if detail else answer.message, advice or answer.advice)
        self.reason = reason
        self.speaker = speaker
        self.detail = detail
        self.retry_after = retry_after  #: seconds to wait before the next try; 0 when nothing was said
        self.exit_code = answer.exit

    @property
    def answer(self) -> Answer:
        """The row of the failure table for this reason."""
        return ANSWERS[self.reason]


class PeerMismatch(Failure):
    """The far end is not who it must be: loud, never retried, never downgraded."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(Reason.PEER_MISMATCH, Speaker.LOCAL, detail)


class ProtocolError(TuunelError):
    """A rule of a protocol was broken: nothing that a person could mend, so it carries no advice."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "")


class LocalProtocolError(ProtocolError):
    """Our own code used a protocol core in a state that does not allow it: a bug in tuunel."""


class RemoteProtocolError(ProtocolError):
    """Bytes from outside broke the protocol. The core that raised it is dead; close the connection and say nothing about why."""
