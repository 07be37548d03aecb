"""Everything about waits in this layer."""
