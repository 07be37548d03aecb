"""Everything about schedules in this layer."""
