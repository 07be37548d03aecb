"""Rows of jobs, batches, job types and dependencies."""
