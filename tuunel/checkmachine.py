"""Does this machine give tuunel what it needs, and do its programs find the way? Source: docs/reference/doctor.md."""

import platform
import resource
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Final
from urllib.parse import SplitResult, urlsplit

from tuunel.errors import TuunelError
from tuunel.finding import Finding, failed, ok, warning, wrong
from tuunel.mlkem import require_ml_kem

FEW_FILES: Final = 1024  # some 500 tunnels: a tunnel takes two at each party, and what waits takes one
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
RESOLVES_LOCALLY: Final = {"socks5": "socks5h", "socks4": "socks4a", "socks": "socks5h"}
VARIABLES: Final = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
EXCEPTIONS: Final = ("no_proxy", "NO_PROXY")


def check_versions() -> list[Finding]:
    """The versions of everything that takes part, and whether the encryption is whole."""
    names = ", ".join(f"{name} {version(name)}" for name in ("tuunel", "cryptography", "anyio"))
    versions = ok("versions", f"{names}, Python {platform.python_version()}, {platform.system()} {platform.release()}")
    try:
        require_ml_kem()
    except TuunelError as error:
        return [versions, failed("encryption", error)]
    return [versions, ok("encryption", "ML-KEM-768 works")]


def check_file_limit() -> Finding:
    """How many files and sockets a role may have open: it raises its limit as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= FEW_FILES:
        return ok("open files", "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard}")
    return warning(
        "open files",
        f"at most {hard}: enough for some {max(hard - 32, 0) // 2} tunnels at a time",
        "raise it: LimitNOFILE= of a systemd service, or 'nofile' in /etc/security/limits.conf",
    )


def check_environment(environ: Mapping[str, str], listens: Sequence[str]) -> list[Finding]:
    """Where the proxy variables send programs; `listens` is where the proxy is, or would be, as `host:port`.

    Passwords in them are not shown.
    """
    set_here = {name: environ[name] for name in VARIABLES if environ.get(name)}
    if not set_here:
        return [ok("environment", "no proxy variables are set: programs reach .tuunel names where they are told to")]
    ports = {listen.rpartition(":")[2] for listen in listens}
    findings = [finding for name, value in set_here.items() if (finding := _variable(name, value, ports)) is not None]
    findings += _exceptions(environ)
    return findings or [ok("environment", f"{', '.join(set_here)}: to the proxy, names included")]


def _variable(name: str, value: str, ports: set[str]) -> Finding | None:
    try:
        url = urlsplit(value if "://" in value else f"http://{value}")
        port = str(url.port)
    except ValueError:
        return wrong("environment", f"{name} is no address", f"unset {name}, or take what 'tuunel setup env' prints")
    shown = f"{name}={url.scheme}://{'***@' if '@' in url.netloc else ''}{_place(url)}"
    if url.hostname not in LOOPBACK or port not in ports:
        return warning(
            "environment",
            f"{shown} is not the tuunel proxy: programs ask it for .tuunel names, which it does not know",
            "in the shells where you want them, take what 'tuunel setup env' prints",
        )
    if url.scheme == "https":
        return wrong(
            "environment", f"{shown} wants TLS, which the proxy does not speak", f"write http:// in {name}: tuunel encrypts by itself"
        )
    if better := RESOLVES_LOCALLY.get(url.scheme):
        return wrong(
            "environment",
            f"{shown} lets each program look names up: .tuunel names leak to the name server, and do not work",
            f"write {better}:// instead of {url.scheme}://, as 'tuunel setup env' does",
        )
    return None


def _place(url: SplitResult) -> str:
    return url.netloc.rpartition("@")[2]


def _exceptions(environ: Mapping[str, str]) -> Iterator[Finding]:
    for name in EXCEPTIONS:
        hosts = [host.strip().lower().partition(":")[0] for host in environ.get(name, "").split(",")]
        past = [host for host in hosts if host == "*" or f".{host}".endswith(".tuunel")]
        if past:
            yield wrong(
                "environment",
                f"{name} sends programs past the proxy for {', '.join(past)}: .tuunel names leak to the name server, and do not work",
                f"take {', '.join(past)} out of {name}",
            )
