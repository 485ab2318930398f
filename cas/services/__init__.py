"""The REAPI services over stores and action caches, free of any server library."""
