"""Templates of targets: placeholders, and values that cannot break out of their context."""

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
from vigil_core.domain.executors.templates import (
    ABSENT,
    PathPlaceholder,
    RenderContext,
    SecretPlaceholder,
    Template,
    TemplateFailed,
    render_json,
)

TOKEN = SecretPlaceholder(source="ssm", name="/token")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)


def scope(payload: JsonValue = None, **roots: JsonValue) -> RenderContext:
    return RenderContext({"payload": payload, "fields": {}, "job": {"id": "j1"}, **roots}, {TOKEN: "s3cr3t"})


def http(**parts: Any) -> HttpTarget:
    return HttpTarget(**{"method": "POST", "url": "https://a.example/", **parts})


def url_of(url: str, payload: JsonValue) -> str:
    return http(url=url).render_request(scope(payload)).url


def header_of(value: str, payload: JsonValue) -> str:
    return http(headers={"x": value}).render_request(scope(payload)).headers["X"]


class TestPlaceholders:
    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("", ()),
            ("no place, } or {", ("no place, } or {",)),
            ("{{payload}}", (PathPlaceholder(("payload",)),)),
            ("a{{ payload.b-c.0.D_ }}z", ("a", PathPlaceholder(("payload", "b-c", "0", "D_")), "z")),
            ("{{fields.x?}}", (PathPlaceholder(("fields", "x"), optional=True),)),
            ("{{job.id}}/{{job.attempt}}", (PathPlaceholder(("job", "id")), "/", PathPlaceholder(("job", "attempt")))),
            ("Bearer {{secret:ssm:/token}}", ("Bearer ", TOKEN)),
            ("{{secret:secretsmanager:/a/b#k}}", (SecretPlaceholder(source="secretsmanager", name="/a/b", key="k"),)),
            ('{{"{{"}}payload}}', ("{{payload}}",)),
        ],
    )
    def test_template_is_split_into_text_and_placeholders(self, text: str, parts: tuple[object, ...]) -> None:
        assert Template.parse(text).fragments == parts

    @pytest.mark.parametrize(
        "text",
        [
            "{{", "{{}}", "{{ }}", "{{payload", "{{payload}", "{{payload.}}", "{{.payload}}", "{{payload..x}}",
            "{{payload.x()}}", "{{payload['x']}}", "{{payload.x|upper}}", "{{1+1}}", "{{env.HOME}}", "{{__class__}}",
            "{{job}}", "{{job.lease_token}}", "{{secret:ssm:token}}", "{{secret:file:/etc/passwd}}", "{{secret:ssm:/}}",
            "{{secret:ssm:/a//b}}", "{{payload{{payload}}}}", "{{payload\u0660}}", "{{päyload}}",
        ],
    )  # fmt: skip
    def test_invalid_placeholder_is_refused(self, text: str) -> None:
        with pytest.raises(TemplateFailed):
            Template.parse(text)

    @given(TEXT)
    def test_any_text_is_parsed_or_refused(self, text: str) -> None:
        try:
            parts = Template.parse(text).fragments
        except TemplateFailed:
            assert "{{" in text
        else:
            assert "{{" in text or "".join(str(part) for part in parts) == text

    @given(st.text('{}."?payloadjobsecretsm:/# ', max_size=40))
    def test_text_similar_to_a_placeholder_is_parsed_or_refused(self, text: str) -> None:
        try:
            Template.parse(text)
        except TemplateFailed:
            assert "{{" in text

    def test_placeholder_cannot_read_object_attributes(self) -> None:
        for names in (("payload", "__class__"), ("payload", "0", "__len__"), ("payload", "keys")):
            with pytest.raises(TemplateFailed):
                scope(["x"]).value(PathPlaceholder(names))

    def test_index_counts_from_0_and_never_from_the_end(self) -> None:
        assert scope(["a", "b"]).value(PathPlaceholder(("payload", "1"))) == "b"
        for index in ("2", "-1", "9" * 30):
            with pytest.raises(TemplateFailed):
                scope(["a", "b"]).value(PathPlaceholder(("payload", index)))

    def test_inserted_value_is_not_expanded_again(self) -> None:
        assert render_json("{{payload.x}} {{payload.x}}", scope({"x": "{{secret:ssm:/token}}"})) == (
            "{{secret:ssm:/token}} {{secret:ssm:/token}}"
        )

    def test_template_error_names_the_placeholder_and_hides_the_value(self) -> None:
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
    def test_string_of_one_placeholder_becomes_the_value(self, value: JsonValue) -> None:
        assert render_json({"a": ["{{payload}}"]}, scope(value)) == {"a": [value]}

    @given(VALUES, st.text(max_size=10).filter(lambda text: "{{" not in text))
    def test_value_inserted_into_text_cannot_change_the_body_structure(self, value: JsonValue, around: str) -> None:
        body = {"said": "<{{payload}}>" + around, "admin": False}
        sent = http(body=body).render_request(scope(value)).body
        assert sent is not None
        told: Any = loads(sent)
        assert set(told) == {"said", "admin"}
        assert told["admin"] is False
        text = value if isinstance(value, str) else dumps(value)
        assert told["said"] == f"<{text}>{around}"

    def test_absent_optional_value_is_left_out(self) -> None:
        body: JsonValue = {
            "a": "{{payload.a?}}",
            "b": ["{{payload.b?}}", 1],
            "c": "c={{payload.c?}}",
        }
        assert render_json(body, scope({"a": None})) == {"b": [1], "c": "c="}
        assert render_json("{{payload.a?}}", scope({})) is ABSENT
        with pytest.raises(TemplateFailed, match="has no value"):
            render_json({"a": "{{payload.a}}"}, scope({}))

    def test_numbers_are_rendered_exactly(self) -> None:
        sent = http(body="{{payload}}").render_request(scope(loads("[1.10, 1e400, 12345678901234567890]"))).body
        assert sent == b"[1.10,1E+400,12345678901234567890]"

    def test_body_over_the_rendered_size_limit_is_refused(self) -> None:
        with pytest.raises(TemplateFailed, match="more than"):
            http(body=["{{payload}}"] * 1000).render_request(scope("x" * 300_000))


class TestUrls:
    @given(TEXT.filter(bool))
    def test_value_in_a_path_is_one_encoded_segment(self, value: str) -> None:
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
    def test_value_in_a_query_is_one_encoded_parameter(self, value: str) -> None:
        query = urlsplit(url_of("https://a.example/?q={{payload}}&n=1", value)).query
        first, second = query.split("&")
        assert (unquote(first.removeprefix("q=")), second) == (value, "n=1")

    @pytest.mark.parametrize("value", ["..", ".", ""])
    def test_dot_segments_in_a_path_are_refused(self, value: str) -> None:
        with pytest.raises(TemplateFailed):
            url_of("https://a.example/v1/{{payload}}/x", value)

    def test_dot_segment_built_from_two_values_is_refused(self) -> None:
        for url in ("https://a.example/{{payload}}{{payload}}/x", "https://a.example/%2E{{payload}}"):
            with pytest.raises(TemplateFailed):
                url_of(url, ".")

    @pytest.mark.parametrize("value", [None, [1], {"a": 1}])
    def test_null_list_or_object_in_a_url_is_refused(self, value: JsonValue) -> None:
        with pytest.raises(TemplateFailed):
            url_of("https://a.example/{{payload}}", value)

    def test_numbers_and_booleans_are_accepted_in_a_url(self) -> None:
        assert url_of("https://a.example/{{payload.0}}/{{payload.1}}", [Decimal("1.50"), True]).endswith("/1.50/true")


class TestHeaders:
    @given(TEXT)
    def test_header_value_cannot_inject_a_header(self, value: str) -> None:
        try:
            sent = header_of("a {{payload}} z", value)
        except TemplateFailed:
            assert not value.isascii() or any(ord(character) < 32 or ord(character) == 127 for character in value)
        else:
            assert sent == f"a {value} z"
            assert sent.isprintable() or "\t" in sent

    def test_secrets_are_inserted_into_headers(self) -> None:
        sent = http(headers={"authorization": "Bearer {{secret:ssm:/token}}"}, body={}).render_request(scope())
        assert sent.headers == {"Authorization": "Bearer s3cr3t", "Content-Type": "application/json"}
        assert http(headers={"a": "{{secret:ssm:/token}}"}, body=["{{payload}}"]).secrets() == {TOKEN}
