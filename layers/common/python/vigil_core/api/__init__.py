"""The HTTP API: routing, authorisation, validation, problem documents and the OpenAPI document."""
