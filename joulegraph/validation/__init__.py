"""The synthetic truth loop: engines whose joules are known, attribution scored against them, controls."""
