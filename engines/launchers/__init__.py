"""Engines that are not ours: started, awaited, described, stopped. One module per engine, the same few words from each.

May not know: proxy, loadgen, energy, the command line.
"""
