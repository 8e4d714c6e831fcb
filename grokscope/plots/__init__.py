"""Figures for a paper or a notebook: the answers of `gs.routing` and `gs.experiments` as plotly Figures, each with its null.

`lines` over layers, `bars` over experts, `heatmap` over any two dimensions, `flow` from layer to layer, `ranking` of what stands
out, as of knock-outs. Each takes a Dataset (or a Trace), the variable to show and, as further keywords, what to choose along
the other dimensions: `bars(gs.routing.expert_load(trace), layer=6)`.

What is drawn grey is the null: its mean ± 2 of its sd; whiskers are the 95 % interval. Where a dataset has neither, the figure
says so under its title. The background is transparent and the text mid-grey, for light pages and dark ones. The answer is a
plain `plotly.graph_objects.Figure`: `figure.update_layout(width=600, title="...", font_color="black")`.

`figure.write_image("load.pdf")` (or .svg, .png) writes one for a paper. It needs kaleido, `pip install 'grokscope[pictures]'`,
which draws with a Chrome or Chromium of the machine, or with the one that BROWSER_PATH names. `figure.write_html("load.html")`
needs neither.

May import analysis and what is below it. Read charts.py first.
"""

from grokscope.arguments import offered
from grokscope.plots.charts import bars, lines, ranking
from grokscope.plots.maps import flow, heatmap

__all__ = ["bars", "flow", "heatmap", "lines", "ranking"]

__getattr__ = offered(globals(), "grokscope.plots")
