"""The outbound policy: which addresses Vigil may call when a user names them. Private networks are excluded.

An address is checked twice: its text when the user names it, and, after the resolution of its name, every resolved IP
address. The hosts that a deployment allows by name (`host` or `host:port`) are exempt from both checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Literal, TypeAlias

from vigil_core.domain.errors import TargetRefused

Scheme: TypeAlias = Literal["http", "https"]

MAX_URL_CHARS = 2_048
ALLOWLIST_HINT: Final = "The parameter AllowedPrivateHosts of the deployment can allow the host"

_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(#.*)?",
    re.IGNORECASE | re.ASCII,
)
_AUTHORITY = re.compile(
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?\.?)(:(?P<port>[0-9]{1,5}))?",
    re.IGNORECASE | re.ASCII,
)
_PRINTABLE_ASCII = re.compile(r"[!-~]*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[ -~\t]*")
_RESERVED_HEADERS = frozenset(
    {"connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers of the connection. The HTTP client sets them."""

# Addresses that no public host has, according to the registries of IANA:
# https://www.iana.org/assignments/iana-ipv4-special-registry and …/iana-ipv6-special-registry
_NOT_PUBLIC_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, with the instance metadata at 169.254.169.254
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_PUBLIC_6 = IPv6Network("2000::/3")
"""All allocated public addresses. The unique local fc00::/7 is not part of it (instance metadata: fd00:ec2::254)."""
_NOT_PUBLIC_6 = tuple(IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "3ffe::/16", "3fff::/20"))
_IPV4_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = IPv6Network("2002::/16")

Address: TypeAlias = IPv4Address | IPv6Address


class RequestInterrupted(Exception):
    """Signal that a slow request was interrupted, because its work may not take long now."""


@dataclass(frozen=True, kw_only=True)
class SlowRequestPolicy:
    """The decision whether a request that is slow may continue."""

    slow_after_s: float
    """The time after which a request is slow."""
    may_continue: Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class OutboundTarget:
    """A parsed URL. No other code parses the text again, so the checks and the request always agree.

    Attributes:
        host: The host in lower case. A literal IPv6 address has no brackets.
        path: The path with the query.
        is_allowlisted: True if the deployment allows this host although its address may be private.
    """

    scheme: Scheme
    host: str
    port: int
    path: str
    is_allowlisted: bool


def parse_outbound_url(url: str, allowed_hosts: Collection[str]) -> OutboundTarget:
    """Parse a URL and check it against the outbound policy.

    Raises:
        TargetRefused: The text is not an absolute HTTP(S) URL, or the policy forbids its host.
    """
    if len(url) > MAX_URL_CHARS:
        raise TargetRefused(f"A URL has at most {MAX_URL_CHARS} characters")
    if not _PRINTABLE_ASCII.fullmatch(url):
        raise TargetRefused("A URL contains only ASCII characters without spaces: use percent-encoding or punycode")
    match = _URL.fullmatch(url)
    if match is None or (scheme := match["scheme"].lower()) not in _PORTS:
        raise TargetRefused("A URL must begin with https:// and a host")
    if "@" in match["authority"]:
        raise TargetRefused("A URL must not contain a user name or a password")
    authority = _AUTHORITY.fullmatch(match["authority"])
    port = int(authority["port"] or _PORTS[scheme]) if authority else 0
    if authority is None or not 0 < port < 65_536:
        raise TargetRefused("The URL has no valid host, or no port from 1 to 65535")
    host = _normalize_host(authority["host"])
    is_allowlisted = is_allowed(host, port, allowed_hosts)
    if scheme != "https" and not is_allowlisted:
        raise TargetRefused(f"A URL must begin with https://. {ALLOWLIST_HINT}")
    if (ip_literal := _parse_ip_literal(host)) is not None:
        check_addresses([ip_literal], is_allowlisted=is_allowlisted)
    return OutboundTarget(
        scheme="https" if scheme == "https" else "http",
        host=host,
        port=port,
        path=(match["path"] or "/") + (match["query"] or ""),
        is_allowlisted=is_allowlisted,
    )


def check_addresses(addresses: Iterable[Address], *, is_allowlisted: bool) -> None:
    """Check every IP address that a host name resolved to.

    Raises:
        TargetRefused: One of the addresses is not public, and the host is not on the allowlist.
    """
    if not is_allowlisted and not all(map(is_public, addresses)):
        raise TargetRefused(f"The host has an address that is not public. {ALLOWLIST_HINT}")


def is_public(address: Address) -> bool:
    """Return True for a public address. An IPv6 address that embeds an IPv4 address is judged by the latter."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None:
        return False
    if address in _IPV4_MAPPED or address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    if address in _SIX_TO_FOUR:
        return is_public(IPv4Address(int(address) >> 80 & 0xFFFF_FFFF))
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)


def is_allowed(host: str, port: int, allowed_hosts: Collection[str]) -> bool:
    """Return True if the deployment allows a host, either for all ports or for this port."""
    url_host = f"[{host}]" if ":" in host else host
    return not {url_host, f"{url_host}:{port}"}.isdisjoint(allowed_hosts)


def parse_allowed_hosts(text: str) -> frozenset[str]:
    """Parse a list `host, host:port, …` for `is_allowed`.

    Raises:
        ValueError: An entry is neither a host nor host:port.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    return frozenset(map(_normalize_allowed_host, names))


def check_headers(method: str, headers: Mapping[str, str]) -> None:
    """Check the method and the headers of a request.

    Raises:
        TargetRefused: HTTP does not allow the method or a header, or the HTTP client sets that header itself.
    """
    if not _TOKEN.fullmatch(method) or method.upper() == "CONNECT":
        raise TargetRefused("This is not a valid request method")
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or name.lower() in _RESERVED_HEADERS:
            raise TargetRefused("This is not the name of a header that you may set", header=name)
        if not _HEADER_VALUE.fullmatch(value):
            raise TargetRefused(f"The value of the header {name} is not printable ASCII", header=name)


def _normalize_host(host: str) -> str:
    """Return the canonical text of a host."""
    bare = host.strip("[]").lower().removesuffix(".")
    ip_literal = _parse_ip_literal(bare)
    if ip_literal is None and host.startswith("["):
        raise TargetRefused("The URL has no valid host, or no port from 1 to 65535")
    return bare if ip_literal is None else str(ip_literal)


def _parse_ip_literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _normalize_allowed_host(name: str) -> str:
    match = _AUTHORITY.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is neither a host nor host:port")
    host = _normalize_host(match["host"])
    url_host = f"[{host}]" if ":" in host else host
    return f"{url_host}:{int(match['port'])}" if match["port"] else url_host
