"""Version numbers as messages."""
