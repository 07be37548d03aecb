"""Use cases of waits: register, resolve, show."""
