"""Use cases of access: API keys, authentication and WebSocket tickets."""
