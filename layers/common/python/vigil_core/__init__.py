"""Vigil's server side, the Lambda layer: jobs, waits, workflows and the functions that process them."""
