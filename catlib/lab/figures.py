"""One visual language: the colours, the curves and the tables of the paper, drawn from records."""

import matplotlib.pyplot as plt

# Okabe and Ito's palette, told apart by colour-blind readers too; AT and CAT look the same everywhere
COLOURS = {"AT": "#0072B2", "CAT": "#D55E00"}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def use_style() -> None:
    """Set matplotlib up for the notebooks: sizes for reading on a page, light grid, the palette."""
    plt.rcParams.update({
        "figure.figsize": (7, 3.4), "figure.dpi": 80, "savefig.dpi": 80, "figure.constrained_layout.use": True,
        "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
        "lines.linewidth": 1.8, "image.cmap": "gray", "axes.prop_cycle": plt.cycler(color=PALETTE)})
