"""Use cases of webhooks: manage and deliver."""
