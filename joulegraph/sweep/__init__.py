"""Sweeps: many runs over factors that are never pooled, in a balanced order, resumable, with intervals and plots.

config reads the file, plan orders, setup makes the trace and the engine of a point, play runs one point, drive runs all
of them, rows and stats turn run directories into figures, tables and plots write them.
"""
