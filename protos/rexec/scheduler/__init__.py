"""Of the scheduler: its journal, and frontends and tools that are processes of their own."""
