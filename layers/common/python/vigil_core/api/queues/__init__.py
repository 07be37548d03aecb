"""Routes and models of queues."""
