"""Modules that two families or more use."""
