"""Apply the OpenAPI body of an HTTP API, which the emulator ignores: CORS, authorizers, integrations and routes.

It uses the public API, and a repeated run changes only the differences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vigil.local.errors import LocalError
from vigil.local.stack import client_config

if TYPE_CHECKING:
    import boto3
    from mypy_boto3_apigatewayv2.client import ApiGatewayV2Client

_ANY_METHOD = "x-amazon-apigateway-any-method"
_FUNCTION_IN_URI = re.compile(r"functions/(?P<arn>\$\{[^}]+\}|arn:[^/]+)/invocations")


@dataclass(frozen=True)
class Authorizer:
    """A REQUEST authorizer in the terms of the emulator's API."""

    name: str
    function: str
    identity_sources: tuple[str, ...]
    ttl_s: int
    payload_format: str
    simple_responses: bool


@dataclass(frozen=True)
class Route:
    """A route to a function. `authorizer` is a name, or None for a public route."""

    key: str
    function: str
    payload_format: str
    authorizer: str | None


@dataclass(frozen=True)
class ApiDefinition:
    """The settings of an HTTP API from its OpenAPI body. Functions are named by their logical ids."""

    cors: Mapping[str, Any] | None
    authorizers: tuple[Authorizer, ...]
    routes: tuple[Route, ...]


def parse_openapi(body: Mapping[str, Any]) -> ApiDefinition:
    """Parse the body of an `AWS::ApiGatewayV2::Api` of a processed template.

    Raises:
        LocalError: The body uses a kind of authorizer or integration that the local cloud does not serve.
    """
    schemes = body.get("components", {}).get("securitySchemes", {})
    return ApiDefinition(
        cors=body.get("x-amazon-apigateway-cors"),
        authorizers=tuple(_read_authorizers(schemes)),
        routes=tuple(_read_routes(body.get("paths", {}), set(schemes))),
    )


def _read_authorizers(schemes: Mapping[str, Any]) -> Iterator[Authorizer]:
    for name, scheme in schemes.items():
        definition = scheme["x-amazon-apigateway-authorizer"]
        if definition["type"] != "request":
            raise LocalError(
                f"The local cloud supports only Lambda authorizers; {name} is a {definition['type']} authorizer."
            )
        yield Authorizer(
            name=name,
            function=_function_of(definition["authorizerUri"]),
            identity_sources=tuple(definition.get("identitySource", [])),
            ttl_s=definition.get("authorizerResultTtlInSeconds", 300),
            payload_format=str(definition.get("authorizerPayloadFormatVersion", "2.0")),
            simple_responses=bool(definition.get("enableSimpleResponses")),
        )


def _read_routes(paths: Mapping[str, Any], authorizers: set[str]) -> Iterator[Route]:
    for path, methods in paths.items():
        for method, operation in methods.items():
            integration = operation.get("x-amazon-apigateway-integration")
            if integration is None:
                continue
            names = [
                name for requirement in operation.get("security", []) for name in requirement if name in authorizers
            ]
            verb = "ANY" if method == _ANY_METHOD else method.upper()
            yield Route(
                key=path if path == "$default" else f"{verb} {path}",
                function=_function_of(integration["uri"]),
                payload_format=str(integration.get("payloadFormatVersion", "2.0")),
                authorizer=names[0] if names else None,
            )


def _function_of(uri: Any) -> str:
    """Return the logical id of the function in an invocation URI, a `Fn::Sub` with or without variables."""
    substitution = uri["Fn::Sub"] if isinstance(uri, Mapping) else uri
    text, variables = (substitution, {}) if isinstance(substitution, str) else (substitution[0], substitution[1])
    match = _FUNCTION_IN_URI.search(text)
    if match is None:
        raise LocalError(f"Not the URI of a function: {json.dumps(uri)}")
    name = match["arn"].strip("${}")
    if name in variables:
        return str(variables[name]["Fn::GetAtt"][0])
    return name.removesuffix(".Arn")


def apply_openapi(aws: boto3.Session, endpoint_url: str, stack_name: str) -> None:
    """Apply the OpenAPI body of every HTTP API of a stack's processed template.

    Raises:
        LocalError: A body is not supported.
    """
    cloudformation = aws.client("cloudformation", endpoint_url=endpoint_url, config=client_config())
    template = cloudformation.get_template(StackName=stack_name, TemplateStage="Processed")["TemplateBody"]
    # boto3 returns a JSON template as a dict, although its type hints say text.
    document: Any = template
    resources = cloudformation.describe_stack_resources(StackName=stack_name)["StackResources"]
    physical_ids = {entry["LogicalResourceId"]: entry["PhysicalResourceId"] for entry in resources}
    functions = aws.client("lambda", endpoint_url=endpoint_url, config=client_config())

    def arn_of(logical_id: str) -> str:
        return functions.get_function(FunctionName=physical_ids[logical_id])["Configuration"]["FunctionArn"]

    gateway = aws.client("apigatewayv2", endpoint_url=endpoint_url, config=client_config())
    for logical_id, resource in document["Resources"].items():
        body = resource.get("Properties", {}).get("Body")
        if resource["Type"] == "AWS::ApiGatewayV2::Api" and body:
            _ApiUpdater(gateway, physical_ids[logical_id], arn_of).apply(parse_openapi(body))


class _ApiUpdater:
    """Creates, updates and deletes the parts of one HTTP API to match a definition."""

    def __init__(self, gateway: ApiGatewayV2Client, api_id: str, arn_of: Callable[[str], str]) -> None:
        self._gateway = gateway
        self._api_id = api_id
        self._arns: dict[str, str] = {}
        self._arn_of = arn_of

    def apply(self, definition: ApiDefinition) -> None:
        """Update the API: first the authorizers and integrations that routes refer to, then the routes."""
        if definition.cors is not None:
            cors: Any = {name[:1].upper() + name[1:]: value for name, value in definition.cors.items()}
            self._gateway.update_api(ApiId=self._api_id, CorsConfiguration=cors)
        authorizers = self._authorizers(definition.authorizers)
        integrations = self._integrations({(route.function, route.payload_format) for route in definition.routes})
        self._routes(definition.routes, authorizers, integrations)

    def _uri(self, function: str) -> str:
        if function not in self._arns:
            arn = self._arn_of(function)
            region = arn.split(":")[3]
            self._arns[function] = f"arn:aws:apigateway:{region}:lambda:path/2015-03-31/functions/{arn}/invocations"
        return self._arns[function]

    def _authorizers(self, desired: tuple[Authorizer, ...]) -> dict[str, str]:
        present = {entry["Name"]: entry for entry in self._gateway.get_authorizers(ApiId=self._api_id)["Items"]}
        ids: dict[str, str] = {}
        for authorizer in desired:
            settings: dict[str, Any] = {
                "AuthorizerType": "REQUEST",
                "AuthorizerUri": self._uri(authorizer.function),
                "IdentitySource": list(authorizer.identity_sources),
                "AuthorizerResultTtlInSeconds": authorizer.ttl_s,
                "AuthorizerPayloadFormatVersion": authorizer.payload_format,
                "EnableSimpleResponses": authorizer.simple_responses,
            }
            existing = present.pop(authorizer.name, None)
            if existing is None:
                ids[authorizer.name] = self._gateway.create_authorizer(
                    ApiId=self._api_id, Name=authorizer.name, **settings
                )["AuthorizerId"]
                continue
            ids[authorizer.name] = existing["AuthorizerId"]
            if _differs(existing, settings):
                self._gateway.update_authorizer(ApiId=self._api_id, AuthorizerId=existing["AuthorizerId"], **settings)
        for unused in present.values():
            self._gateway.delete_authorizer(ApiId=self._api_id, AuthorizerId=unused["AuthorizerId"])
        return ids

    def _integrations(self, desired: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
        items = self._gateway.get_integrations(ApiId=self._api_id)["Items"]
        present = {(entry.get("IntegrationUri"), entry.get("PayloadFormatVersion")): entry for entry in items}
        ids: dict[tuple[str, str], str] = {}
        for function, payload_format in desired:
            uri = self._uri(function)
            existing = present.get((uri, payload_format))
            ids[function, payload_format] = (
                existing["IntegrationId"]
                if existing
                else self._gateway.create_integration(
                    ApiId=self._api_id,
                    IntegrationType="AWS_PROXY",
                    IntegrationMethod="POST",
                    IntegrationUri=uri,
                    PayloadFormatVersion=payload_format,
                )["IntegrationId"]
            )
        return ids

    def _routes(
        self, desired: tuple[Route, ...], authorizers: dict[str, str], integrations: dict[tuple[str, str], str]
    ) -> None:
        present = {
            entry["RouteKey"]: entry
            for page in self._gateway.get_paginator("get_routes").paginate(ApiId=self._api_id)
            for entry in page["Items"]
        }
        for route in desired:
            settings: dict[str, Any] = {
                "Target": f"integrations/{integrations[route.function, route.payload_format]}",
                "AuthorizationType": "CUSTOM" if route.authorizer else "NONE",
            }
            if route.authorizer:
                settings["AuthorizerId"] = authorizers[route.authorizer]
            existing = present.pop(route.key, None)
            if existing is None:
                self._gateway.create_route(ApiId=self._api_id, RouteKey=route.key, **settings)
            elif _differs(existing, settings):
                self._gateway.update_route(
                    ApiId=self._api_id, RouteId=existing["RouteId"], RouteKey=route.key, **settings
                )
        for unused in present.values():
            self._gateway.delete_route(ApiId=self._api_id, RouteId=unused["RouteId"])


def _differs(current: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    return any(current.get(name) != value for name, value in settings.items())
