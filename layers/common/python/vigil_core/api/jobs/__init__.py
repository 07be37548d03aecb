"""Routes and models of jobs and job types."""
