"""The model under a question: what an expert matters, what another route would give, who wrote a logit.

Each function runs a `Model` on texts and returns a labelled `xarray.Dataset`; an edit is made, measured beside its
load-matched control, and gone. Each function's page gives its formula, its source, its control and what can mislead.

May import model and what is below it. Read effect.py first.
"""

from grokscope.analysis.output_similarity import expert_output_similarity, norm_rank
from grokscope.arguments import offered
from grokscope.experiments.attribution import attribution_table, logit_attribution, router_attribution
from grokscope.experiments.attribution_patching import attribution_patch
from grokscope.experiments.counterfactual import counterfactual_experts
from grokscope.experiments.effect import effect
from grokscope.experiments.gradients import gate_gradients
from grokscope.experiments.heads import head_scores
from grokscope.experiments.knock_out import knock_out
from grokscope.experiments.lens import logit_lens
from grokscope.experiments.patching import patch
from grokscope.experiments.path_patching import patch_path
from grokscope.experiments.precision import precision
from grokscope.experiments.probe import probe
from grokscope.experiments.rounding import within_rounding
from grokscope.experiments.routes import swap_runner_up, top_k_sweep

__all__ = ["effect", "knock_out", "swap_runner_up", "top_k_sweep"]
__all__ += ["attribution_table", "counterfactual_experts", "gate_gradients", "logit_attribution", "logit_lens"]
__all__ += ["head_scores", "router_attribution"]
__all__ += ["attribution_patch", "patch", "patch_path"]
__all__ += ["expert_output_similarity", "norm_rank", "precision", "probe", "within_rounding"]

__getattr__ = offered(globals(), "grokscope.experiments")
