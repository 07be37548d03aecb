"""Routes and models of waits."""
