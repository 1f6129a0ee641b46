"""A second engine of truth, from other parts than the embedded one: rooflines per kernel class instead of linear costs.

chip: what a step costs and what each sequence caused. serving: who is in a step. meter: what sensors show of it.
recording: the files that a foreign tool would have left. May not know: the embedded engine, the estimator.
"""
