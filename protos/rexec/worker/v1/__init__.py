"""Between the scheduler and its workers, version 1."""
