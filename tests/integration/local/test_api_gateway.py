"""Routes, functions and authorizers in the OpenAPI body that SAM writes."""

from __future__ import annotations

from typing import Any

import pytest

from vigil.local.api_gateway import ApiDefinition, Authorizer, Route, parse_openapi
from vigil.local.errors import LocalError

URI = "arn:${AWS::Partition}:apigateway:${AWS::Region}:lambda:path/2015-03-31/functions/%s/invocations"


def route(function: str, **more: Any) -> dict[str, Any]:
    integration = {"type": "aws_proxy", "uri": {"Fn::Sub": URI % f"${{{function}.Arn}}"}, "payloadFormatVersion": "2.0"}
    return {"x-amazon-apigateway-integration": integration, **more}


def authorizer(**more: Any) -> dict[str, Any]:
    uri = {"Fn::Sub": [URI % "${__FunctionArn__}", {"__FunctionArn__": {"Fn::GetAtt": ["AuthorizerFunction", "Arn"]}}]}
    document = {
        "type": "request",
        "authorizerUri": uri,
        "authorizerResultTtlInSeconds": 60,
        "identitySource": ["$request.header.Authorization"],
        "authorizerPayloadFormatVersion": "2.0",
        "enableSimpleResponses": True,
        **more,
    }
    return {"type": "apiKey", "x-amazon-apigateway-authorizer": document}


def test_routes_functions_and_authorizers_are_read_from_the_body() -> None:
    body = {
        "x-amazon-apigateway-cors": {"allowOrigins": ["*"]},
        "components": {"securitySchemes": {"ApiKey": authorizer()}},
        "paths": {
            "/v1/jobs": {
                "get": route("Api", security=[{"ApiKey": []}]),
                "post": route("Api", security=[{"ApiKey": []}]),
            },
            "/openapi.json": {"get": route("Api", security=[{"NONE": []}])},
            "/any": {"x-amazon-apigateway-any-method": route("Other"), "options": {"responses": {}}},
            "$default": {"x-amazon-apigateway-any-method": route("Api", security=[{"NONE": []}], isDefaultRoute=True)},
        },
    }
    assert parse_openapi(body) == ApiDefinition(
        cors={"allowOrigins": ["*"]},
        authorizers=(
            Authorizer(
                name="ApiKey",
                function="AuthorizerFunction",
                identity_sources=("$request.header.Authorization",),
                ttl_s=60,
                payload_format="2.0",
                simple_responses=True,
            ),
        ),
        routes=(
            Route("GET /v1/jobs", "Api", "2.0", "ApiKey"),
            Route("POST /v1/jobs", "Api", "2.0", "ApiKey"),
            Route("GET /openapi.json", "Api", "2.0", None),
            Route("ANY /any", "Other", "2.0", None),
            Route("$default", "Api", "2.0", None),
        ),
    )


def test_empty_api_body_has_no_routes() -> None:
    assert parse_openapi({"paths": {}}) == ApiDefinition(cors=None, authorizers=(), routes=())


def test_unsupported_authorizer_type_is_refused() -> None:
    with pytest.raises(LocalError, match="Tokens is a jwt authorizer"):
        parse_openapi({"components": {"securitySchemes": {"Tokens": authorizer(type="jwt")}}})


def test_integration_that_is_not_a_function_is_refused() -> None:
    elsewhere = {"x-amazon-apigateway-integration": {"uri": "http://elsewhere"}}
    with pytest.raises(LocalError, match="http://elsewhere"):
        parse_openapi({"paths": {"/": {"get": elsewhere}}})
