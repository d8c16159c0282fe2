"""What a task is, without training it: its measures, results and drawings."""
