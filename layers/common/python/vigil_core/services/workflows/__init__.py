"""Use cases of workflow runs: create, advance, command, query, supervise, reconcile."""
