"""The study: does CAT do what the paper says? All runs and tables come from study.toml.

    catlib study --profile smoke               # every kind of piece, on the embedded digits
    catlib study --profile paper --list        # the pieces, and how much of each is done
    catlib study --profile paper --piece cifar10_tables --minutes 9

``plan`` turns study.toml into pieces and trials, ``work`` runs them, and ``tables`` writes what
came out. A study that was stopped or killed goes on where it was when the same command is given
again: every trial is a run with checkpoints (catlib.lab.runs), and the tables are written anew from
the finished runs, whenever one finishes.
"""

from .plan import Piece, configuration, pieces_of, profiles
from .work import study

__all__ = ["Piece", "configuration", "pieces_of", "profiles", "study"]
