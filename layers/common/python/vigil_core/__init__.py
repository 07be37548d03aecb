"""Vigil's server side: jobs, waits and the engine that resolves them, shared by every Lambda function as one layer."""
