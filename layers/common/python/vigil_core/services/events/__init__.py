"""Use cases of events: publish, subscribe and send to WebSockets."""
