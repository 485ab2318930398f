"""The cases, by subject. A module here is part of the kit once all_cases.py imports it."""
