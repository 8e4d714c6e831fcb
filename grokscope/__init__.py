"""GrokScope: an interpretability workbench for mixture-of-experts language models, Grok-1 first."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grokscope import atlas as atlas
    from grokscope import experiments as experiments
    from grokscope import metrics as metrics
    from grokscope import plots as plots
    from grokscope import sae as sae
    from grokscope import steering as steering
    from grokscope import widgets as widgets
    from grokscope.activations.activations import Activations, open_activations
    from grokscope.analysis import routing as routing
    from grokscope.analysis.means import expert_means
    from grokscope.checkpoints import CheckpointError
    from grokscope.checkpoints.converting import convert
    from grokscope.checkpoints.inspecting import inspect, load
    from grokscope.config import ModelConfig, RouterConfig
    from grokscope.counters.counters import RoutingCounters
    from grokscope.devices.sharding import mesh
    from grokscope.model.model import Model
    from grokscope.presets import GROK_1, GROK_2, MIXTRAL_8X7B
    from grokscope.recordings.routed_experts import read_routed_experts
    from grokscope.recordings.router_logits import read_router_logits
    from grokscope.sites import SITES, Capture
    from grokscope.tables.export import export, read_csv, read_tables
    from grokscope.text.visible import visible
    from grokscope.trace.trace import Trace, open_trace
    from grokscope.transformer import edits as edits
    from grokscope.views.comparing import compare
    from grokscope.views.predictions import predictions
    from grokscope.widgets.report import report
    from grokscope.widgets.workbench import explore

__version__ = "0.1.0"

# Name -> the module that has it, imported when the name is first used: `import grokscope` stays as cheap as the names
# that a program needs.
_HOMES = {
    "Activations": "grokscope.activations.activations",
    "Capture": "grokscope.sites",
    "CheckpointError": "grokscope.checkpoints",
    "GROK_1": "grokscope.presets",
    "GROK_2": "grokscope.presets",
    "MIXTRAL_8X7B": "grokscope.presets",
    "Model": "grokscope.model.model",
    "ModelConfig": "grokscope.config",
    "RouterConfig": "grokscope.config",
    "SITES": "grokscope.sites",
    "Trace": "grokscope.trace.trace",
    "compare": "grokscope.views.comparing",
    "convert": "grokscope.checkpoints.converting",
    "expert_means": "grokscope.analysis.means",
    "explore": "grokscope.widgets.workbench",
    "export": "grokscope.tables.export",
    "inspect": "grokscope.checkpoints.inspecting",
    "load": "grokscope.model.loading",
    "mesh": "grokscope.devices.sharding",
    "open_activations": "grokscope.activations.activations",
    "open_trace": "grokscope.trace.trace",
    "predictions": "grokscope.views.predictions",
    "read_csv": "grokscope.tables.export",
    "read_routed_experts": "grokscope.recordings.routed_experts",
    "read_router_logits": "grokscope.recordings.router_logits",
    "read_tables": "grokscope.tables.export",
    "report": "grokscope.widgets.report",
    "RoutingCounters": "grokscope.counters.counters",
    "visible": "grokscope.text.visible",
}
_MODULES = {
    "atlas": "grokscope.atlas",
    "edits": "grokscope.transformer.edits",
    "experiments": "grokscope.experiments",
    "metrics": "grokscope.metrics",
    "plots": "grokscope.plots",
    "routing": "grokscope.analysis.routing",
    "sae": "grokscope.sae",
    "steering": "grokscope.steering",
    "widgets": "grokscope.widgets",
}
__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _HOMES:
        from grokscope.arguments import answering

        return answering(getattr(import_module(_HOMES[name]), name))
    from grokscope.sites import near

    raise AttributeError(f"module 'grokscope' has no attribute {name!r}; it has {', '.join(__all__)}{near(name, __all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
