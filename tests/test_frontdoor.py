"""What all front doors share: the first byte, targets, credentials, Proxy-Status, failure pages, and the table in the spec."""

import re
from html import unescape
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tuunel.errors import ANSWERS, Failure, Reason, RemoteProtocolError, Speaker
from tuunel.frontdoor import Credentials, failed_hop, failure_page, opening, page_policy, read_target, under_tuunel
from tuunel.proxystatus import MAX_DETAIL, parse_proxy_status, proxy_status

SPEC = Path(__file__).resolve().parents[1] / "docs" / "spec" / "front-doors.md"
# RFC 9209 section 2.3
ERROR_TYPES = {
    "connection_limit_reached", "connection_refused", "connection_terminated", "connection_timeout", "destination_ip_prohibited",
    "destination_ip_unroutable", "destination_unavailable", "dns_error", "http_request_denied", "http_request_error",
    "proxy_internal_error", "tls_certificate_error",
}  # fmt: skip


def test_the_first_byte_tells_the_protocol_and_the_rest_is_http() -> None:
    kinds = [opening(byte) for byte in range(256)]
    assert kinds[5] == "socks5"
    assert kinds[4] == "socks4"
    assert {kind for byte, kind in enumerate(kinds) if byte not in {4, 5}} == {"http"}


class TestTargets:
    @pytest.mark.parametrize(
        ("host", "text"),
        [("home.tuunel", "home.tuunel:80"), ("10.0.0.1", "10.0.0.1:80"), ("0:0::1", "[::1]:80"), ("a_b.lan.", "a_b.lan.:80")],
    )
    def test_names_and_addresses_are_read(self, host: str, text: str) -> None:
        assert str(read_target(host, 80)) == text

    @pytest.mark.parametrize(
        "host", ["", " ", "a b", "a/b", "a@b", "-a", "fe80::1%eth0", "[::1]", "::1]", "1:2", "a\r\nb", "a\0", "ä", "a" * 254]
    )
    def test_what_is_no_host_is_refused(self, host: str) -> None:
        with pytest.raises(RemoteProtocolError):
            read_target(host, 80)

    @pytest.mark.parametrize("port", [-1, 0, 65536])
    def test_what_is_no_port_is_refused(self, port: int) -> None:
        with pytest.raises(RemoteProtocolError):
            read_target("home.tuunel", port)

    @pytest.mark.parametrize("host", ["home.tuunel", "HOME.TUUNEL.", "a.b.tuunel", "tuunel", "-.tuunel"])
    def test_under_tuunel(self, host: str) -> None:
        assert under_tuunel(host)

    @pytest.mark.parametrize("host", ["", "tuunel.com", "nottuunel", "home.tuunel.example", "home.tuunel.."])
    def test_not_under_tuunel(self, host: str) -> None:
        assert not under_tuunel(host)


class TestCredentials:
    @pytest.mark.parametrize(
        ("user", "password", "right"),
        [
            (b"ann", b"pw", True),
            (b"ann", b"px", False),
            (b"anm", b"pw", False),
            (b"", b"", False),
            (b"annp", b"w", False),
            (b"ann", b"pw ", False),
        ],
    )
    def test_both_must_be_right(self, user: bytes, password: bytes, right: bool) -> None:
        assert Credentials("ann", "pw").match(user, password) is right

    def test_the_password_is_not_shown(self) -> None:
        assert "geheim" not in repr(Credentials("ann", "geheim"))


class TestProxyStatus:
    @pytest.mark.parametrize("reason", Reason)
    @pytest.mark.parametrize("speaker", Speaker)
    def test_each_failure_comes_back(self, speaker: Speaker, reason: Reason) -> None:
        assert parse_proxy_status(proxy_status(Failure(reason, speaker, 'a "quoted" \\ detail'))) == (
            speaker,
            reason,
            'a "quoted" \\ detail',
        )
        assert parse_proxy_status(proxy_status(Failure(reason, speaker))) == (speaker, reason, "")

    def test_its_form(self) -> None:
        failure = Failure(Reason.CONNECTION_REFUSED, Speaker.AGENT, "127.0.0.1:80")
        assert proxy_status(failure) == 'tuunel; error=connection_refused; details="agent CONNECTION_REFUSED: 127.0.0.1:80"'

    @given(st.text(max_size=300))
    @example("\x1b[2J\r\nX: y")
    @example('"; error=none; details="')
    def test_no_detail_breaks_out_of_the_field(self, detail: str) -> None:
        value = proxy_status(Failure(Reason.INTERNAL, Speaker.RELAY, detail))
        assert value.isascii()
        assert value.isprintable()
        parsed = parse_proxy_status(value)
        assert parsed is not None
        assert len(parsed[2]) <= MAX_DETAIL

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "squid; error=x",
            'tuunel; error=x; details="nobody INTERNAL"',
            'tuunel; error=x; details="relay WHAT"',
            'tuunel; error=x; details="relay',
        ],
    )
    def test_what_is_not_ours_is_not_understood(self, value: str) -> None:
        assert parse_proxy_status(value) is None

    @given(st.text())
    def test_garbage_is_not_understood(self, value: str) -> None:
        assert parse_proxy_status(value) is None

    def test_the_error_types_are_the_rfcs(self) -> None:
        assert {answer.proxy_status for answer in ANSWERS.values()} <= ERROR_TYPES


class TestPages:
    @pytest.mark.parametrize("reason", Reason)
    @pytest.mark.parametrize("speaker", Speaker)
    def test_a_page_names_the_hop_and_the_remedy(self, reason: Reason, speaker: Speaker) -> None:
        text = unescape(failure_page(Failure(reason, speaker), "home.tuunel:80"))
        assert failed_hop(Failure(reason, speaker)) in text
        assert ANSWERS[reason].advice in text
        assert "home.tuunel:80" in text

    def test_hops(self) -> None:
        assert failed_hop(Failure(Reason.CONNECTION_REFUSED, Speaker.AGENT)) == "between the device and the target"
        assert failed_hop(Failure(Reason.CONNECTION_REFUSED)) == "between this proxy and the target"
        assert failed_hop(Failure(Reason.RELAY_UNREACHABLE)) == "between this proxy and the relay"
        assert failed_hop(Failure(Reason.PEER_UNAVAILABLE, Speaker.RELAY)) == "between the relay and the device"
        assert failed_hop(Failure(Reason.QUOTA, Speaker.RELAY)) == "at the relay"
        assert failed_hop(Failure(Reason.POLICY_DENIED, Speaker.AGENT)) == "at the device"

    @given(st.text(), st.text())
    @example("<script>1</script>", "<script>2</script>")
    def test_no_text_becomes_markup(self, detail: str, target: str) -> None:
        page = failure_page(Failure(Reason.INTERNAL, Speaker.AGENT, f"<script>{detail}"), f'"><img src=x>{target}')
        assert "<script" not in page
        assert "<img" not in page
        assert set(re.findall(r"<([a-z0-9!]+)", page)) <= {
            "!doctype", "html", "head", "meta", "title", "style", "body", "h1", "p", "code", "strong", "small",
        }  # fmt: skip

    def test_the_policy_lets_nothing_in_but_the_pages_own_style(self) -> None:
        assert re.fullmatch(
            r"default-src 'none'; style-src 'sha256-[A-Za-z0-9+/]{43}='; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            page_policy(),
        )


def test_the_failure_table_in_the_spec_is_the_table_in_the_code() -> None:
    written = re.findall(r"^\| `([A-Z_]+)` \| ([0-9A-F]{2}) \| (\d{3}) \| `([a-z_]+)` \| (\d+) \|$", SPEC.read_text(), re.MULTILINE)
    assert written == [(reason.value, f"{a.socks:02X}", str(a.http), a.proxy_status, str(a.exit)) for reason, a in ANSWERS.items()]
