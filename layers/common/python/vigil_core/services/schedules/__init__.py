"""Use cases of schedules: manage and fire."""
