"""Whole processes: workers on several ranks, and the command as a user starts it."""
