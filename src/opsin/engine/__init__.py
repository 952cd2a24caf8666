"""The engine: one loop for every task, what surrounds it, and nothing that knows a task."""
