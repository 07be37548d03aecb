"""Events and the WebSocket protocol."""
