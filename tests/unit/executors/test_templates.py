"""Templates of targets: what a place is, and that nothing put into one can be more than what it is put in as."""

from __future__ import annotations

import string
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_core.domain.exact_json import JsonValue, dumps, loads
from vigil_core.domain.executors.targets import HttpTarget
from vigil_core.domain.executors.templates import ABSENT, Path, Scope, Secret, Template, TemplateFailed, render_json

TOKEN = Secret(store="ssm", name="/token")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)


def scope(payload: JsonValue = None, **roots: JsonValue) -> Scope:
    return Scope({"payload": payload, "fields": {}, "job": {"id": "j1"}, **roots}, {TOKEN: "s3cr3t"})


def http(**parts: Any) -> HttpTarget:
    return HttpTarget(**{"method": "POST", "url": "https://a.example/", **parts})


def url_of(url: str, payload: JsonValue) -> str:
    return http(url=url).request(scope(payload)).url


def header_of(value: str, payload: JsonValue) -> str:
    return http(headers={"x": value}).request(scope(payload)).headers["X"]


class TestPlaces:
    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("", ()),
            ("no place, } or {", ("no place, } or {",)),
            ("{{payload}}", (Path(("payload",)),)),
            ("a{{ payload.b-c.0.D_ }}z", ("a", Path(("payload", "b-c", "0", "D_")), "z")),
            ("{{fields.x?}}", (Path(("fields", "x"), optional=True),)),
            ("{{job.id}}/{{job.attempt}}", (Path(("job", "id")), "/", Path(("job", "attempt")))),
            ("Bearer {{secret:ssm:/token}}", ("Bearer ", TOKEN)),
            ("{{secret:secretsmanager:/a/b#k}}", (Secret(store="secretsmanager", name="/a/b", key="k"),)),
            ('{{"{{"}}payload}}', ("{{payload}}",)),
        ],
    )
    def test_are_taken_apart(self, text: str, parts: tuple[object, ...]) -> None:
        assert Template.parse(text).parts == parts

    @pytest.mark.parametrize(
        "text",
        [
            "{{", "{{}}", "{{ }}", "{{payload", "{{payload}", "{{payload.}}", "{{.payload}}", "{{payload..x}}",
            "{{payload.x()}}", "{{payload['x']}}", "{{payload.x|upper}}", "{{1+1}}", "{{env.HOME}}", "{{__class__}}",
            "{{job}}", "{{job.lease_token}}", "{{secret:ssm:token}}", "{{secret:file:/etc/passwd}}", "{{secret:ssm:/}}",
            "{{secret:ssm:/a//b}}", "{{payload{{payload}}}}", "{{payload\u0660}}", "{{päyload}}",
        ],
    )  # fmt: skip
    def test_or_are_refused(self, text: str) -> None:
        with pytest.raises(TemplateFailed):
            Template.parse(text)

    @given(TEXT)
    def test_any_text_is_a_template_or_refused(self, text: str) -> None:
        try:
            parts = Template.parse(text).parts
        except TemplateFailed:
            assert "{{" in text
        else:
            assert "{{" in text or "".join(str(part) for part in parts) == text

    @given(st.text('{}."?payloadjobsecretsm:/# ', max_size=40))
    def test_whatever_is_close_to_a_place_too(self, text: str) -> None:
        try:
            Template.parse(text)
        except TemplateFailed:
            assert "{{" in text

    def test_nothing_but_what_the_job_brings_is_looked_up(self) -> None:
        for names in (("payload", "__class__"), ("payload", "0", "__len__"), ("payload", "keys")):
            with pytest.raises(TemplateFailed):
                scope(["x"]).value(Path(names))

    def test_an_index_counts_from_0_and_not_from_the_end(self) -> None:
        assert scope(["a", "b"]).value(Path(("payload", "1"))) == "b"
        for index in ("2", "-1", "9" * 30):
            with pytest.raises(TemplateFailed):
                scope(["a", "b"]).value(Path(("payload", index)))

    def test_what_is_put_in_is_no_template(self) -> None:
        assert render_json("{{payload.x}} {{payload.x}}", scope({"x": "{{secret:ssm:/token}}"})) == (
            "{{secret:ssm:/token}} {{secret:ssm:/token}}"
        )

    def test_failures_name_the_place_and_not_what_the_job_brings(self) -> None:
        secretive: list[Callable[[], object]] = [
            lambda: render_json("{{payload.missing}}", scope({"password": "hunter2"})),
            lambda: header_of("{{payload.password}}", {"password": "hunter2\nx: y"}),
            lambda: url_of("https://a/{{payload.password}}", {"password": ["hunter2"]}),
        ]
        for work in secretive:
            with pytest.raises(TemplateFailed) as failed:
                work()
            assert "hunter2" not in str(failed.value)


class TestBodies:
    @given(VALUES)
    def test_a_string_that_is_one_place_becomes_the_value(self, value: JsonValue) -> None:
        assert render_json({"a": ["{{payload}}"]}, scope(value)) == {"a": [value]}

    @given(VALUES, st.text(max_size=10).filter(lambda text: "{{" not in text))
    def test_whatever_is_put_into_text_the_body_stays_what_it_was(self, value: JsonValue, around: str) -> None:
        body = {"said": "<{{payload}}>" + around, "admin": False}
        sent = http(body=body).request(scope(value)).body
        assert sent is not None
        told: Any = loads(sent)
        assert set(told) == {"said", "admin"}
        assert told["admin"] is False
        text = value if isinstance(value, str) else dumps(value)
        assert told["said"] == f"<{text}>{around}"

    def test_what_is_absent_is_left_out_if_it_may_be(self) -> None:
        body: JsonValue = {
            "a": "{{payload.a?}}",
            "b": ["{{payload.b?}}", 1],
            "c": "c={{payload.c?}}",
        }
        assert render_json(body, scope({"a": None})) == {"b": [1], "c": "c="}
        assert render_json("{{payload.a?}}", scope({})) is ABSENT
        with pytest.raises(TemplateFailed, match="there is no"):
            render_json({"a": "{{payload.a}}"}, scope({}))

    def test_numbers_come_out_as_they_went_in(self) -> None:
        sent = http(body="{{payload}}").request(scope(loads("[1.10, 1e400, 12345678901234567890]"))).body
        assert sent == b"[1.10,1E+400,12345678901234567890]"

    def test_a_payload_is_not_multiplied_without_end(self) -> None:
        with pytest.raises(TemplateFailed, match="more than"):
            http(body=["{{payload}}"] * 1000).request(scope("x" * 300_000))


class TestUrls:
    @given(TEXT.filter(bool))
    def test_a_value_is_one_step_of_the_path_and_nothing_else(self, value: str) -> None:
        try:
            url = url_of("https://a.example:8443/v1/{{payload}}/end?x=1", value)
        except TemplateFailed:
            assert value in (".", "..")
            return
        parts = urlsplit(url)
        assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("https", "a.example:8443", "x=1", "")
        _, version, step, end = parts.path.split("/")
        assert (version, unquote(step), end) == ("v1", value, "end")
        assert set(url) <= set(string.ascii_letters + string.digits + "-._~%:/?=")

    @given(TEXT)
    def test_a_value_is_one_parameter_and_nothing_else(self, value: str) -> None:
        query = urlsplit(url_of("https://a.example/?q={{payload}}&n=1", value)).query
        first, second = query.split("&")
        assert (unquote(first.removeprefix("q=")), second) == (value, "n=1")

    @pytest.mark.parametrize("value", ["..", ".", ""])
    def test_no_value_climbs(self, value: str) -> None:
        with pytest.raises(TemplateFailed):
            url_of("https://a.example/v1/{{payload}}/x", value)

    def test_nor_do_two_together(self) -> None:
        for url in ("https://a.example/{{payload}}{{payload}}/x", "https://a.example/%2E{{payload}}"):
            with pytest.raises(TemplateFailed):
                url_of(url, ".")

    @pytest.mark.parametrize("value", [None, [1], {"a": 1}])
    def test_only_what_is_text_goes_in(self, value: JsonValue) -> None:
        with pytest.raises(TemplateFailed):
            url_of("https://a.example/{{payload}}", value)

    def test_numbers_and_booleans_do(self) -> None:
        assert url_of("https://a.example/{{payload.0}}/{{payload.1}}", [Decimal("1.50"), True]).endswith("/1.50/true")


class TestHeaders:
    @given(TEXT)
    def test_no_value_begins_a_second_header(self, value: str) -> None:
        try:
            sent = header_of("a {{payload}} z", value)
        except TemplateFailed:
            assert not value.isascii() or any(ord(character) < 32 or ord(character) == 127 for character in value)
        else:
            assert sent == f"a {value} z"
            assert sent.isprintable() or "\t" in sent

    def test_secrets_are_put_in(self) -> None:
        sent = http(headers={"authorization": "Bearer {{secret:ssm:/token}}"}, body={}).request(scope())
        assert sent.headers == {"Authorization": "Bearer s3cr3t", "Content-Type": "application/json"}
        assert http(headers={"a": "{{secret:ssm:/token}}"}, body=["{{payload}}"]).secrets() == {TOKEN}
