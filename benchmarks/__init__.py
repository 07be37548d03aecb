"""Benchmarks of the AWS costs and the speed of jobs, waits and workflows: `make bench`."""
