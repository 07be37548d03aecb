"""`vigil demo`: three simulated test machines run jobs, three clients wait for them, a WebSocket shows the events."""
