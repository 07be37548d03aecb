from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_core.domain.errors import TargetRefused
from vigil_core.domain.outbound_policy import (
    OutboundTarget,
    check_addresses,
    check_headers,
    is_allowed,
    is_public,
    parse_allowed_hosts,
    parse_outbound_url,
)

NO_ALLOWED_HOSTS: frozenset[str] = frozenset()
v4 = st.ip_addresses(v=4)
v6 = st.ip_addresses(v=6)


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.168.1.1",
        "198.19.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "2606:4700::1111%eth0",
    ],
)
def test_private_address_is_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "1.1.1.1",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
        "2002:101:101::1",
    ],
)
def test_internet_address_is_public(text: str) -> None:
    assert is_public(ip_address(text))


@given(v4)
def test_public_ipv4_address_is_global_by_the_standard_library(address: IPv4Address) -> None:
    assert not is_public(address) or (address.is_global and not address.is_multicast and not address.is_reserved)


@given(v6)
def test_public_ipv6_address_is_in_the_global_unicast_range(address: IPv6Address) -> None:
    if is_public(address) and address.ipv4_mapped is None and int(address) not in _nat64():
        assert address.is_global
        assert not address.is_multicast
        assert 0x2000 <= int(address) >> 112 < 0x4000


def _nat64() -> range:
    start = int(IPv6Address("64:ff9b::"))
    return range(start, start + 2**32)


@given(v4, st.integers(0, 2**80 - 1))
def test_embedded_ipv4_address_determines_whether_it_is_public(address: IPv4Address, rest: int) -> None:
    mapped = IPv6Address(0xFFFF << 32 | int(address))
    nat64 = IPv6Address(int(IPv6Address("64:ff9b::")) | int(address))
    six_to_four = IPv6Address(0x2002 << 112 | int(address) << 80 | rest)
    assert is_public(mapped) == is_public(nat64) == is_public(six_to_four) == is_public(address)


@given(st.lists(st.one_of(v4, v6), min_size=1, max_size=5))
def test_host_with_one_private_address_is_refused(addresses: list[IPv4Address | IPv6Address]) -> None:
    if all(map(is_public, addresses)):
        check_addresses(addresses, is_allowlisted=False)
    else:
        with pytest.raises(TargetRefused) as refused:
            check_addresses(addresses, is_allowlisted=False)
        assert not any(str(address) in str(refused.value) for address in addresses), "that would map the inside"
    check_addresses(addresses, is_allowlisted=True)


def test_url_is_parsed_and_normalised() -> None:
    assert parse_outbound_url("HTTPS://Example.COM.:8443/a/b?c=d#e", NO_ALLOWED_HOSTS) == OutboundTarget(
        scheme="https", host="example.com", port=8443, path="/a/b?c=d", is_allowlisted=False
    )
    assert parse_outbound_url("https://example.com", NO_ALLOWED_HOSTS).path == "/"
    assert parse_outbound_url("https://example.com?q", NO_ALLOWED_HOSTS).path == "/?q"
    assert parse_outbound_url("https://[2606:4700::0:1111]/", NO_ALLOWED_HOSTS).host == "2606:4700::1111"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/",
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://",
        "https:///path",
        "https://user@example.com/",
        "https://user:secret@example.com/",
        "https://example.com@169.254.169.254/",
        "https://example.com\\@169.254.169.254/",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://example.com:x/",
        "https://example.com:/",
        "https://exa mple.com/",
        "https://example.com/a b",
        "https://example.com/\r\nHost: x",
        "https://example.com/\x00",
        "https://exämple.com/",
        "https://[::1/",
        "https://[example.com]/",
        "https://[::1%25lo]/",
        "https://-example.com/",
        "https://127.0.0.1/",
        "https://127.0.0.1./",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]:8443/",
        "https://169.254.169.254/latest/meta-data/",
        "https://example.com/" + "a" * 2048,
    ],
)
def test_disallowed_url_is_refused(url: str) -> None:
    with pytest.raises(TargetRefused):
        parse_outbound_url(url, NO_ALLOWED_HOSTS)


@given(st.text(max_size=60) | st.from_regex(r"https?://[^/]{1,30}/.{0,10}", fullmatch=True))
def test_any_text_is_parsed_as_target_or_refused(text: str) -> None:
    try:
        target = parse_outbound_url(text, NO_ALLOWED_HOSTS)
    except TargetRefused:
        return
    assert target.scheme == "https"
    assert target.host == target.host.lower().strip("[].")
    assert target.path.startswith("/")
    assert target.path.isascii()
    assert target.path.isprintable()
    assert " " not in target.path


def test_allowed_hosts_match_by_name_with_any_port_or_one() -> None:
    allowed = parse_allowed_hosts(" localhost:8123, 10.0.0.5 ,Chroma.internal.,[FD00::0:1]:80,")
    assert parse_outbound_url("http://LOCALHOST:8123/x", allowed).is_allowlisted
    assert parse_outbound_url("http://10.0.0.5:9/x", allowed).is_allowlisted
    assert parse_outbound_url("https://chroma.internal/x", allowed).is_allowlisted
    assert parse_outbound_url("http://[fd00::1]/", allowed).is_allowlisted
    for url in ("http://localhost:8124/", "http://localhost/", "https://10.0.0.6/", "http://[fd00::1]:81/"):
        with pytest.raises(TargetRefused):
            parse_outbound_url(url, allowed)
    assert not parse_outbound_url("https://localhost.evil.example:8123/", allowed).is_allowlisted


@given(v4 | v6, st.integers(1, 65535))
def test_allowed_address_matches_in_any_spelling(address: IPv4Address | IPv6Address, port: int) -> None:
    if isinstance(address, IPv6Address):
        name, spelled = f"[{address}]", f"[{address.exploded.upper()}]"
    else:
        name = spelled = str(address)
    assert is_allowed(str(address), port, parse_allowed_hosts(spelled))
    assert is_allowed(str(address), port, parse_allowed_hosts(f"{spelled}:{port}"))
    assert parse_outbound_url(f"http://{spelled}:{port}/", parse_allowed_hosts(name)).host == str(address)


@pytest.mark.parametrize("text", ["http://localhost", "local host", "host:port", "fd00::1", "*", "a/b"])
def test_invalid_allowed_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a host nor host:port"):
        parse_allowed_hosts(text)


@pytest.mark.parametrize("method", ["", "CONNECT", "connect", "GET /", "G\r\nET", "GÉT"])
def test_invalid_method_is_refused(method: str) -> None:
    with pytest.raises(TargetRefused):
        check_headers(method, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Host", "inside"),
        ("content-length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "upgrade"),
        ("X Y", "1"),
        ("", "1"),
        ("X:Y", "1"),
        ("X-Y", "1\r\nHost: inside"),
        ("X-Y", "1\n 2"),
        ("X-Y", "é"),
        ("X-Y", "\x00"),
    ],
)
def test_header_that_could_change_the_request_is_refused(name: str, value: str) -> None:
    with pytest.raises(TargetRefused) as refused:
        check_headers("POST", {name: value})
    assert value not in str(refused.value) or len(value) < 4
    check_headers("POST", {"Authorization": "Bearer x", "X-Tab": "a\tb"})
