"""Use cases of limits: admission, counting, request rates, and the state of namespaces."""
