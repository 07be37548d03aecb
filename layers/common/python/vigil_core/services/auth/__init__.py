"""Everything about auth in this layer."""
