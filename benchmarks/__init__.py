"""Measures what jobs and waits cost on AWS and how fast they are: `make bench`."""
