"""Everything about executors in this layer."""
