"""Everything about jobs in this layer."""
