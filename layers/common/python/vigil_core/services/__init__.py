"""Use cases by capability: functions that receive a context with their collaborators, and return domain values."""
