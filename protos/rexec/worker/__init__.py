"""Between the scheduler and its workers."""
