"""The paper's open questions, each a grid with one thing varied, and what its cells say about it.

file or flags -> grid with variants (`kinds`) -> cells (pemt.bench) -> findings -> table, plot
"""
