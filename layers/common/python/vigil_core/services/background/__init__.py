"""Everything about background in this layer."""
