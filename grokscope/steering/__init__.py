"""Steering: a direction or some experts as edits of a strength, what they do to the wanted and to everything else, as JSON.

`difference` and `experts` make one, `.edits(strength)` are given to trace, generate and `experiments.effect`, `dose` measures it
beside its controls, `save` and `load` exchange it.

May import experiments and what is below it. Read steers.py first.
"""

from grokscope.arguments import offered
from grokscope.steering.dose import dose
from grokscope.steering.exchange import load, save
from grokscope.steering.finding import difference, experts
from grokscope.steering.steers import Direction, Experts

__all__ = ["Direction", "Experts", "difference", "dose", "experts", "load", "save"]

__getattr__ = offered(globals(), "grokscope.steering")
