"""Rules of waits: request, conditions, counts and closing."""
