"""The model under a question: what an expert matters, what another route would give, who wrote a logit.

Each function runs a `Model` on texts and returns a labelled `xarray.Dataset`; an edit is made, measured beside its
load-matched control, and gone. Each function's page gives its formula, its source, its control and what can mislead.
"""
