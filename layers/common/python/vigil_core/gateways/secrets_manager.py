"""The secrets that targets name, from Parameter Store or Secrets Manager, cached for a minute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from vigil_core.domain.errors import MalformedRequest
from vigil_core.domain.exact_json import loads
from vigil_core.domain.executors.targets import SecretUnavailable
from vigil_core.domain.executors.templates import SecretPlaceholder

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager.client import SecretsManagerClient
    from mypy_boto3_ssm.client import SSMClient

CACHE_TTL_S = 60.0
_UNAVAILABLE_CODES = frozenset(
    {
        "AccessDeniedException", "DecryptionFailure", "InvalidRequestException", "ParameterNotFound",
        "ResourceNotFoundException", "ValidationException",
    }
)  # fmt: skip


class SecretValues:
    """Secrets by namespace and name.

    The secret `/name` of the namespace `team` is `/PREFIX/team/name` in Parameter Store and `PREFIX/team/name` in
    Secrets Manager. A target can therefore name no secret of another namespace.
    """

    def __init__(
        self,
        ssm: Callable[[], SSMClient],
        secrets_manager: Callable[[], SecretsManagerClient],
        *,
        prefix: str,
        monotonic: Callable[[], float],
    ) -> None:
        self._ssm = ssm
        self._secrets_manager = secrets_manager
        self._prefix = prefix
        self._monotonic = monotonic
        self._cache: dict[tuple[str, str], tuple[float, str]] = {}

    def value(self, namespace: str, secret: SecretPlaceholder) -> str:
        """Read the text of a secret.

        Raises:
            SecretUnavailable: The secret cannot be read; the error contains its name and never its value.
        """
        text = self._text(namespace, secret)
        if secret.key is None:
            return text
        try:
            members: Any = loads(text)
            value = members[secret.key]
        except (MalformedRequest, KeyError, TypeError, IndexError):
            raise SecretUnavailable(f"{secret} is not a member of a JSON object") from None
        if not isinstance(value, str):
            raise SecretUnavailable(f"{secret} is not a string")
        return value

    def _text(self, namespace: str, secret: SecretPlaceholder) -> str:
        name = f"{self._prefix}/{namespace}{secret.name}"
        cached = self._cache.get((secret.source, name))
        if cached is not None and cached[0] > self._monotonic():
            return cached[1]
        try:
            if secret.source == "ssm":
                response = self._ssm().get_parameter(Name=f"/{name}", WithDecryption=True)
                text = response["Parameter"]["Value"]
            else:
                text = self._secrets_manager().get_secret_value(SecretId=name)["SecretString"]
        except KeyError as error:
            raise SecretUnavailable(f"{secret} is not text") from error
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _UNAVAILABLE_CODES:
                raise SecretUnavailable(f"{secret} cannot be read: {code}") from error
            raise
        self._cache[(secret.source, name)] = (self._monotonic() + CACHE_TTL_S, text)
        return text
