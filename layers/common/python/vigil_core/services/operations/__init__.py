"""Use cases of operators: the doctor and the redrive of dead letters."""
