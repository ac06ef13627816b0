"""The HTTP door and the origin's side, bytes in and events out: what is asked, refused, rewritten and answered."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.address import HostPort
from tuunel.errors import ANSWERS, Failure, LocalProtocolError, Reason, RemoteProtocolError
from tuunel.frontdoor import Credentials, Refused, Request
from tuunel.httpproxy import HEAD_LIMIT, Closed, DoorEvent, Forward, HttpDoor, HttpOrigin, Served
from tuunel.proxystatus import CONNECTION_HEADER

PAC = "function FindProxyForURL() {}"
ANN = Credentials("ann", "p:w")
CONNECT = b"CONNECT home.tuunel:22 HTTP/1.1\r\nHost: home.tuunel:22\r\n\r\n"


def door(*, credentials: Credentials | None = None, local: bool = True) -> HttpDoor:
    return HttpDoor(credentials, local=local, pac=lambda: PAC)


def ask(request: bytes, *, credentials: Credentials | None = None, local: bool = True) -> tuple[DoorEvent | None, bytes]:
    """The first event, and the answer that the door gave by itself."""
    asked = door(credentials=credentials, local=local)
    asked.receive_data(request)
    return asked.next_event(), asked.data_to_send()


def forward(target: str, fields: str = "", method: str = "GET", version: str = "1.1") -> Forward:
    event, _ = ask(f"{method} {target} HTTP/{version}\r\nHost: wrong\r\n{fields}\r\n".encode())
    assert isinstance(event, Forward), event
    return event


def refusal(request: bytes, **how: object) -> Reason:
    event, answer = ask(request, **how)  # type: ignore[arg-type]
    assert isinstance(event, Refused), event
    assert answer.startswith(b"HTTP/1.1 %d " % ANSWERS[event.reason].http)
    assert b"\r\nConnection: close\r\n" in answer
    return event.reason


class TestConnect:
    def test_a_request_and_its_early_bytes(self) -> None:
        assert ask(CONNECT + b"early") == (Request(HostPort("home.tuunel", 22), "http-connect", b"early", local=True), b"")

    def test_early_bytes_that_look_like_a_request_stay_the_targets(self) -> None:
        connected = door()
        connected.receive_data(CONNECT + CONNECT)
        assert isinstance(connected.next_event(), Request)
        assert connected.next_event() is None
        connected.accept()
        assert connected.data_to_send() == b"HTTP/1.1 200 Connection established\r\n\r\n"
        assert connected.trailing_data == CONNECT

    def test_the_connections_number(self) -> None:
        connected = door()
        connected.receive_data(CONNECT)
        connected.next_event()
        connected.accept(connection=7)
        assert f"{CONNECTION_HEADER}: 7\r\n".encode() in connected.data_to_send()

    @pytest.mark.parametrize(
        "target", ["home.tuunel", "home.tuunel:", ":80", "home.tuunel:0", "::1:80", "[::1]", "a@b:80", "http://a:80", "/"]
    )
    def test_a_malformed_target_is_refused(self, target: str) -> None:
        assert refusal(f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()) is Reason.BAD_REQUEST

    @pytest.mark.parametrize("field", ["Content-Length: 5", "Transfer-Encoding: chunked"])
    def test_a_body_is_refused(self, field: str) -> None:
        assert refusal(f"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n".encode()) is Reason.BAD_REQUEST

    @pytest.mark.parametrize("reason", Reason)
    def test_each_failure_ends_the_connection(self, reason: Reason) -> None:
        refused = door()
        refused.receive_data(CONNECT + CONNECT)
        refused.next_event()
        refused.refuse(Failure(reason))
        assert refused.data_to_send().startswith(b"HTTP/1.1 %d " % ANSWERS[reason].http)
        assert not refused.start_next_cycle()


class TestTargets:
    @pytest.mark.parametrize(
        ("address", "host", "path"),
        [
            ("http://home.tuunel", "home.tuunel", "/"),
            ("HTTP://Home.Tuunel:8080/a/../b?c=d", "Home.Tuunel:8080", "/a/../b?c=d"),
            ("http://home.tuunel?q", "home.tuunel", "/?q"),
            ("http://[fd00::1]:81/", "[fd00::1]:81", "/"),
            ("http://home.tuunel:/", "home.tuunel:", "/"),
        ],
    )
    def test_host_and_origin_form_come_from_the_address(self, address: str, host: str, path: str) -> None:
        head = forward(address).head
        assert head.target == path.encode()
        assert head.headers.raw_items()[0] == (b"Host", host.encode())

    def test_port_80_is_the_default(self) -> None:
        assert forward("http://home.tuunel/").request == Request(HostPort("home.tuunel", 80), "http", local=True)

    def test_options_for_the_whole_server(self) -> None:
        assert forward("http://home.tuunel", method="OPTIONS").head.target == b"*"
        assert forward("http://home.tuunel/", method="OPTIONS").head.target == b"/"

    @pytest.mark.parametrize(
        "target",
        [
            "https://a/",
            "ftp://a/",
            "http:/a",
            "http:a",
            "http://",
            "http:///x",
            "http://u:p@a/",
            "http://a/#f",
            "http://a:99999/",
            "http://a:0/",
            "a",
        ],
    )
    def test_what_cannot_be_fetched_is_refused(self, target: str) -> None:
        assert refusal(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()) is Reason.BAD_REQUEST

    def test_https_is_told_what_to_use(self) -> None:
        _, answer = ask(b"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"https:// needs CONNECT" in answer


class TestSmuggling:
    @pytest.mark.parametrize(
        "fields",
        [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5, 6",
            "Content-Length: +5",
            "Content-Length: 5 5",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding:\x0bchunked",
            "X: a\0b",
            "Host: second",
        ],
    )
    def test_a_head_that_two_readers_could_read_in_two_ways_is_refused(self, fields: str) -> None:
        assert refusal(f"POST http://a/ HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n".encode("latin-1")) is Reason.BAD_REQUEST

    def test_a_folded_line_is_passed_on_unfolded(self) -> None:
        assert (b"x", b"a b") in forward("http://a/", "X: a\r\n b\r\n").head.headers

    def test_chunks_in_http_1_0_are_refused(self) -> None:
        assert refusal(b"POST http://a/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n") is Reason.BAD_REQUEST

    def test_no_host_is_refused(self) -> None:
        assert refusal(b"GET http://a/ HTTP/1.1\r\n\r\n") is Reason.BAD_REQUEST

    def test_connection_cannot_remove_what_frames_or_routes(self) -> None:
        head = forward("http://a/", "Connection: Content-Length, Host\r\nContent-Length: 2\r\n", "POST").head
        assert head.headers.raw_items() == [(b"Host", b"a"), (b"Content-Length", b"2")]

    def test_a_head_has_a_ceiling(self) -> None:
        start = b"GET http://a/ HTTP/1.1\r\nHost: a\r\nX: "
        asked = door()
        asked.receive_data(start + b"x" * (HEAD_LIMIT - len(start)))
        assert asked.next_event() is None
        asked.receive_data(b"x")
        event = asked.next_event()
        assert isinstance(event, Refused)
        assert event.reason is Reason.BAD_REQUEST

    @given(st.binary(max_size=200), st.integers(0, 200))
    def test_garbage_is_refused_or_waits(self, garbage: bytes, cut: int) -> None:
        asked = door()
        for piece in (garbage[:cut], garbage[cut:]):
            if piece:
                asked.receive_data(piece)
                assert isinstance(asked.next_event(), Refused | None)
                if asked.data_to_send():
                    return

    @given(st.data())
    def test_pieces_do_not_matter(self, data: st.DataObject) -> None:
        whole = b"PUT http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
        asked = door()
        events: list[DoorEvent] = []
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            if start < end:
                asked.receive_data(whole[start:end])
            while (event := asked.next_event()) is not None:
                events.append(event)
        assert isinstance(events[0], Forward)
        assert b"".join(bytes(event.data) for event in events if isinstance(event, h11.Data)) == b"abc"
        assert isinstance(events[-1], h11.EndOfMessage)


class TestFields:
    def test_upgrade_is_made_anew(self) -> None:
        head = forward("http://a/", "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n").head
        assert head.headers.raw_items()[1:] == [(b"Sec-WebSocket-Key", b"k"), (b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")]

    @pytest.mark.parametrize(
        ("fields", "version"),
        [
            ("Upgrade: websocket\r\n", "1.1"),
            ("Connection: upgrade\r\nUpgrade: websocket\r\n", "1.0"),
            ("Connection: Upgrade\r\nUpgrade: h2c\r\n", "1.1"),
        ],
    )
    def test_an_offer_that_does_not_hold_stays_behind(self, fields: str, version: str) -> None:
        assert forward("http://a/", fields, version=version).head.headers.raw_items() == [(b"Host", b"a")]

    def test_expect_is_passed_on_unless_the_client_is_http_1_0(self) -> None:
        fields = "Expect: 100-continue\r\nContent-Length: 1\r\n"
        assert (b"expect", b"100-continue") in forward("http://a/", fields, "PUT").head.headers
        assert all(name != b"expect" for name, _ in forward("http://a/", fields, "PUT", "1.0").head.headers)

    def test_max_forwards_is_counted_down(self) -> None:
        assert (b"max-forwards", b"4") in forward("http://a/", "Max-Forwards: 5\r\n", "TRACE").head.headers
        assert (b"max-forwards", b"5") in forward("http://a/", "Max-Forwards: 5\r\n").head.headers
        assert refusal(b"OPTIONS http://a/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n") is Reason.UNSUPPORTED

    @pytest.mark.parametrize("value", [b"", b" ", b"5, 6", b"5,", b"-1", b"1e3", b"9999999999"])
    def test_max_forwards_that_is_no_number_is_refused(self, value: bytes) -> None:
        assert refusal(b"OPTIONS http://a/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: " + value + b"\r\n\r\n") is Reason.BAD_REQUEST

    @pytest.mark.parametrize(
        ("method", "fields", "repeatable"),
        [("GET", "", True), ("POST", "", False), ("PUT", "Content-Length: 3\r\n", False), ("DELETE", "Content-Length: 0\r\n", True)],
    )
    def test_what_may_be_sent_twice(self, method: str, fields: str, repeatable: bool) -> None:
        assert forward("http://a/", fields, method).repeatable is repeatable


class TestOrigins:
    @pytest.mark.parametrize(
        "origin",
        [
            "http://evil.example",
            "null",
            "",
            "http://tuunel.evil",
            "http://home.tuunel.evil",
            "http://evil\\.tuunel",
            "http://[::1]",
            "x",
            "http://u@a.tuunel",
        ],
    )
    @pytest.mark.parametrize("host", ["home.tuunel", "HOME.Tuunel.", "bad..tuunel"])
    @pytest.mark.parametrize("upgrade", ["", "Connection: Upgrade\r\nUpgrade: websocket\r\n"])
    def test_a_page_from_elsewhere_does_not_reach_tuunel(self, origin: str, host: str, upgrade: str) -> None:
        request = f"GET http://{host}/ HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\n{upgrade}\r\n".encode()
        assert refusal(request) is Reason.FORBIDDEN_ORIGIN

    def test_one_foreign_origin_of_two_is_enough(self) -> None:
        request = b"GET http://home.tuunel/ HTTP/1.1\r\nHost: x\r\nOrigin: http://home.tuunel\r\nOrigin: http://evil.example\r\n\r\n"
        assert refusal(request) is Reason.FORBIDDEN_ORIGIN

    @pytest.mark.parametrize("origin", ["http://home.tuunel", "https://a.home.tuunel:8443", "http://HOME.TUUNEL"])
    def test_tuunel_reaches_tuunel(self, origin: str) -> None:
        assert forward("http://other.tuunel/", f"Origin: {origin}\r\n")

    def test_other_hosts_are_not_guarded(self) -> None:
        assert forward("http://example.com/", "Origin: http://evil.example\r\n")


class TestCredentials:
    @pytest.mark.parametrize("token", ["Basic YW5uOnA6dw==", "bASIC  YW5uOnA6dw=="])
    def test_the_right_ones_open(self, token: str) -> None:
        for request in ("CONNECT a:80", "GET http://a/"):
            event, _ = ask(f"{request} HTTP/1.1\r\nHost: a\r\nProxy-Authorization: {token}\r\n\r\n".encode(), credentials=ANN)
            assert isinstance(event, Request | Forward)

    @pytest.mark.parametrize(
        "field",
        [
            "",
            "Basic",
            "Basic ????",
            "Basic YW5u",
            "Basic YW5uOnB4",
            "Bearer YW5uOnA6dw==",
            "Basic YW5uOnA6dw==\r\nProxy-Authorization: Basic eA==",
        ],
    )
    def test_others_do_not(self, field: str) -> None:
        line = f"Proxy-Authorization: {field}\r\n" if field else ""
        for request in ("CONNECT a:80", "GET http://a/"):
            assert refusal(f"{request} HTTP/1.1\r\nHost: a\r\n{line}\r\n".encode(), credentials=ANN) is Reason.BAD_CREDENTIALS

    def test_a_missing_one_is_asked_for(self) -> None:
        _, answer = ask(CONNECT, credentials=ANN)
        assert answer.startswith(b"HTTP/1.1 407 Proxy Authentication Required\r\n")
        assert b'\r\nProxy-Authenticate: Basic realm="tuunel", charset="UTF-8"\r\n' in answer


class TestOwnPages:
    @pytest.mark.parametrize("host", ["127.0.0.1:1080", "[::1]:1080", "127.0.0.1", "localhost:1080"])
    def test_the_pac_file(self, host: str) -> None:
        event, answer = ask(f"GET /proxy.pac HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert event == Served()
        assert answer.endswith(PAC.encode())

    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil", "", "\xff", "home.tuunel"])
    def test_the_pac_file_is_not_for_other_names(self, host: str) -> None:
        event, answer = ask(f"GET /proxy.pac HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))
        assert event == Served()
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert PAC.encode() not in answer

    def test_the_pac_file_is_not_for_other_machines(self) -> None:
        _, answer = ask(b"GET /proxy.pac HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", local=False)
        assert answer.startswith(b"HTTP/1.1 403 ")

    @pytest.mark.parametrize(
        ("line", "status"), [("GET /", 200), ("GET /x", 404), ("OPTIONS *", 405), ("POST /", 405), ("GET /../proxy.pac", 404)]
    )
    def test_the_help_page(self, line: str, status: int) -> None:
        event, answer = ask(f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert event == Served()
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nX-Content-Type-Options: nosniff\r\n" in answer

    def test_head_has_no_body(self) -> None:
        _, answer = ask(b"HEAD /proxy.pac HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n")
        assert b"\r\nContent-Length: %d\r\n" % len(PAC) in answer


class TestEnds:
    def test_an_end_between_requests_is_clean(self) -> None:
        asked = door()
        asked.receive_eof()
        assert asked.next_event() == Closed()

    def test_an_end_in_a_head_is_refused(self) -> None:
        asked = door()
        asked.receive_data(b"GET http://a/ HT")
        asked.receive_eof()
        assert isinstance(asked.next_event(), Refused)

    def test_an_end_in_a_body_breaks_the_protocol(self) -> None:
        asked = door()
        asked.receive_data(b"PUT http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab")
        asked.receive_eof()
        assert isinstance(asked.next_event(), Forward)
        assert isinstance(asked.next_event(), h11.Data)
        with pytest.raises(RemoteProtocolError):
            asked.next_event()

    def test_a_second_response_is_a_bug_of_ours(self) -> None:
        asked = door()
        asked.receive_data(b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n")
        asked.next_event()
        asked.respond(h11.Response(status_code=204, headers=[]))
        with pytest.raises(LocalProtocolError):
            asked.refuse(Failure(Reason.INTERNAL))


class TestOrigin:
    REQUEST = h11.Request(method="GET", target="/", headers=[("Host", "a")])

    def asked(self, answer: bytes) -> HttpOrigin:
        origin = HttpOrigin()
        assert origin.request(self.REQUEST) + origin.end(h11.EndOfMessage()) == b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        origin.receive_data(answer)
        return origin

    def test_a_kept_connection_takes_the_next_request(self) -> None:
        origin = self.asked(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert isinstance(origin.next_event(), h11.Response)
        assert isinstance(origin.next_event(), h11.EndOfMessage)
        assert origin.start_next_cycle()

    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ],
    )
    def test_an_answer_whose_end_two_readers_would_see_in_two_places_is_refused(self, head: bytes) -> None:
        with pytest.raises(RemoteProtocolError):
            self.asked(head).next_event()

    @pytest.mark.parametrize(
        "answer", [b"HTTP/1.1 204 No\r\nConnection: close\r\n\r\n", b"HTTP/1.0 204 No\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\nsurplus"]
    )
    def test_these_do_not(self, answer: bytes) -> None:
        origin = self.asked(answer)
        origin.next_event()
        origin.next_event()
        assert not origin.start_next_cycle()

    @given(st.binary(min_size=1, max_size=300), st.booleans())
    def test_garbage_breaks_the_protocol_or_waits(self, garbage: bytes, valid_start: bool) -> None:
        origin = self.asked(b"HTTP/1.1 200 OK\r\n" * valid_start + garbage)
        origin.receive_eof()
        try:
            while not isinstance(origin.next_event(), h11.EndOfMessage):
                pass
        except RemoteProtocolError:
            pass


REQUEST_KINDS = [
    b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a/ HTTP/1.0\r\n\r\n",
    b"HEAD http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    b"GET http://a/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"PUT http://a/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
]
STATUSES = [
    b"HTTP/%b %d X\r\n" % (version, status) for version in (b"1.0", b"1.1") for status in (100, 101, 103, 200, 204, 205, 304, 407, 426, 999)
]
FIELD_LINES = [
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade, content-length\r\n",
    b"Upgrade: x\r\n",
    b"Trailer: X\r\n",
    b"X: \xff\r\n",
    b"\r\n",
]
BODIES = [b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\nContent-Length: 1\r\n\r\n", b"3;ext=1\r\nabc\r\n0\r\n\r\n"]


@given(
    st.sampled_from(REQUEST_KINDS), st.lists(st.sampled_from([*STATUSES, *FIELD_LINES, *BODIES]), max_size=12), st.sampled_from(STATUSES)
)
def test_no_answer_of_an_origin_server_makes_the_door_misuse_its_core(request: bytes, parts: list[bytes], first: bytes) -> None:
    asked, origin = door(), HttpOrigin()
    asked.receive_data(request)
    event = asked.next_event()
    assert isinstance(event, Forward)
    origin.request(event.head)
    while not isinstance(piece := asked.next_event(), h11.EndOfMessage):
        assert isinstance(piece, h11.Data)
        origin.body(piece)
    origin.end(piece)
    origin.receive_data(first + b"".join(parts))
    origin.receive_eof()
    try:
        carry(origin, asked)
    except RemoteProtocolError:
        return
    asked.data_to_send()


def carry(origin: HttpOrigin, asked: HttpDoor) -> None:
    while True:
        match origin.next_event():
            case h11.InformationalResponse() as event:
                asked.inform(event)
                if event.status_code == 101:
                    return
            case h11.Response() as event:
                asked.respond(event)
            case h11.Data() as event:
                asked.body(event)
            case h11.EndOfMessage() as event:
                asked.end(event)
                return
