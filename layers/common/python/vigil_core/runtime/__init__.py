"""The Lambda runtime: settings, log, metrics, tracing and batch responses."""
