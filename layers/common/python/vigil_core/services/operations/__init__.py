"""Everything about operations in this layer."""
