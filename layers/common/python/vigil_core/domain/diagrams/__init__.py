"""Everything about diagrams in this layer."""
