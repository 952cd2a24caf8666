"""Losses as sums with counts (`opsin.task.Part`): the engine divides once, by the global count."""
