"""Parrot (microsoft/ParrotServe): its public wire protocol as values, a serve layer of our own, and a bridge.

Pure modules (protocol, lineage, serve) take values and now_ns and return values; server.py is the shell.
"""
