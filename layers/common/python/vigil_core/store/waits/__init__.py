"""Rows of waits, their entries, outcomes and blocks."""
