"""Everything about queues in this layer."""
