"""Diagrams of workflow runs: clustering, layout and rendering."""
