"""Everything about webhooks in this layer."""
