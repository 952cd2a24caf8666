"""Recipes of the task classify."""
