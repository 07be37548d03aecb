"""Rows of workflow runs: graph, state blocks, slots, parked jobs and decisions."""
