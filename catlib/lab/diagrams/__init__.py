"""Diagrams that a lecturer would draw on the board, one module each, made by matplotlib.

Each module has one function that draws its diagram and returns the figure, so that a notebook
shows it in one line and anyone may change it.
"""
