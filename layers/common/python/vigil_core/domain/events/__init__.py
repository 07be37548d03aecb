"""Everything about events in this layer."""
