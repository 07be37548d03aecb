"""Routes and models of workflows, and the JSON schema of a definition."""
