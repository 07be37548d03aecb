"""Rows of API keys and WebSocket tickets."""
