"""Rules of workflow runs: definition, graph, run state and transition plan."""
