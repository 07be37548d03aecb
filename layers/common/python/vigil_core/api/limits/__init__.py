"""The route of usage."""
