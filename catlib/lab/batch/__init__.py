"""Many runs: notebooks and trials over grids of parameters, and the notebooks of the course.

    python -m catlib.lab batch trial -p alpha=0,0.5,0.9 -p seed=0:5
    python -m catlib.lab batch notebooks/06_cat_versus_at.ipynb -p alpha=0,0.5,0.9

``parameters`` says which names and values there are, ``units`` makes the runs of a grid and checks
them, ``engine`` runs them in processes, ``cluster`` on the workers of a Dask scheduler,
``notebooks`` executes a notebook, ``series`` those of the course, and ``table`` joins what came
out.
"""

from .notebooks import course_notebooks, execute, parameter_names, refresh
from .series import run_series, series_folder

__all__ = [
    "course_notebooks",
    "execute",
    "parameter_names",
    "refresh",
    "run_series",
    "series_folder",
]
