"""Use cases, one verb a file. Each takes a `Context` with all it needs and returns domain values or raises."""
