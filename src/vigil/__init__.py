"""Vigil keeps watch over long-running jobs: what people install."""
