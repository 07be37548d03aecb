"""Everything about workflows in this layer."""
