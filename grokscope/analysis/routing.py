"""The analyses of routing: each takes a Trace, a recording or RoutingCounters and returns a labelled xarray.Dataset.

`value`, and where they have a meaning `null_mean`, `null_sd`, `z`, `p`, `n_eff` (attrs["n_eff_unit"] says of what), `ci_low`,
`ci_high` (95 %). Documents are the unit of all uncertainty, never tokens; under 4 shards of them z, p and intervals are absent, and
attrs says so. `null_sd` is so widened that |z| > 1.96 is 5 % also of few documents; of rare cells there is p alone. `adjust` gives
p for thousands of cells at once. Each function's page gives its formula, its source, its null and what can mislead;
`python -m tests.bench.calibration` measures what the intervals cover and how often p is under 0.05 where it should not be.
"""

from grokscope.analysis.adjusting import adjust
from grokscope.analysis.coactivation import coactivation, consecutive_repeats
from grokscope.analysis.committee import standing_committee
from grokscope.analysis.confidence import router_margin, routing_entropy
from grokscope.analysis.context import context_information
from grokscope.analysis.contrast import contrast
from grokscope.analysis.contributions import expert_contribution, slot_contributions
from grokscope.analysis.geometry import router_expert_coupling, router_geometry
from grokscope.analysis.languages import cross_lingual_divergence
from grokscope.analysis.load import dead_experts, expert_load, gate_profile, load_imbalance
from grokscope.analysis.mismatch import mismatch
from grokscope.analysis.paths import expert_paths, path_memory
from grokscope.analysis.position import position_effect
from grokscope.analysis.saturation import router_saturation, routing_agreement
from grokscope.analysis.specialization import domain_information, domain_specialization
from grokscope.analysis.super_experts import super_experts
from grokscope.analysis.transitions import transition_information, transitions
from grokscope.analysis.vocabulary import context_dependence, vocabulary_specialization
from grokscope.analysis.weight_similarity import expert_weight_similarity
from grokscope.arguments import offered

__all__ = [
    "adjust",
    "coactivation",
    "consecutive_repeats",
    "context_dependence",
    "context_information",
    "contrast",
    "cross_lingual_divergence",
    "dead_experts",
    "domain_information",
    "domain_specialization",
    "expert_contribution",
    "expert_load",
    "expert_paths",
    "expert_weight_similarity",
    "gate_profile",
    "load_imbalance",
    "mismatch",
    "path_memory",
    "position_effect",
    "router_expert_coupling",
    "router_geometry",
    "router_margin",
    "router_saturation",
    "routing_agreement",
    "routing_entropy",
    "slot_contributions",
    "standing_committee",
    "super_experts",
    "transition_information",
    "transitions",
    "vocabulary_specialization",
]

__getattr__ = offered(globals(), "grokscope.routing")
