"""GrokScope: an interpretability workbench for mixture-of-experts language models, Grok-1 first."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grokscope import experiments as experiments
    from grokscope import plots as plots
    from grokscope import widgets as widgets
    from grokscope.analysis import routing as routing
    from grokscope.analysis.counters import RoutingCounters
    from grokscope.analysis.means import expert_means
    from grokscope.analysis.tables import export, read_csv, read_tables
    from grokscope.checkpoints import CheckpointError
    from grokscope.config import GROK_1, MIXTRAL_8X7B, ModelConfig, RouterConfig
    from grokscope.converting import convert
    from grokscope.loading import inspect, load
    from grokscope.model import Model
    from grokscope.prompt import visible
    from grokscope.sharding import mesh
    from grokscope.sites import SITES, Capture
    from grokscope.trace.routed_experts import read_routed_experts
    from grokscope.trace.router_logits import read_router_logits
    from grokscope.trace.store import open_trace
    from grokscope.trace.trace import Trace
    from grokscope.transformer import edits as edits
    from grokscope.widgets.report import report
    from grokscope.widgets.workbench import explore

__version__ = "0.1.0"

# Name -> the module that has it, imported when the name is first used: `import grokscope` stays as cheap as the names
# that a program needs.
_HOMES = {
    "Capture": "grokscope.sites",
    "CheckpointError": "grokscope.checkpoints",
    "GROK_1": "grokscope.config",
    "MIXTRAL_8X7B": "grokscope.config",
    "Model": "grokscope.model",
    "ModelConfig": "grokscope.config",
    "RouterConfig": "grokscope.config",
    "SITES": "grokscope.sites",
    "Trace": "grokscope.trace.trace",
    "convert": "grokscope.converting",
    "expert_means": "grokscope.analysis.means",
    "explore": "grokscope.widgets.workbench",
    "export": "grokscope.analysis.tables",
    "inspect": "grokscope.loading",
    "load": "grokscope.loading",
    "mesh": "grokscope.sharding",
    "open_trace": "grokscope.trace.store",
    "read_csv": "grokscope.analysis.tables",
    "read_routed_experts": "grokscope.trace.routed_experts",
    "read_router_logits": "grokscope.trace.router_logits",
    "read_tables": "grokscope.analysis.tables",
    "report": "grokscope.widgets.report",
    "RoutingCounters": "grokscope.analysis.counters",
    "visible": "grokscope.prompt",
}
_MODULES = {
    "edits": "grokscope.transformer.edits",
    "experiments": "grokscope.experiments",
    "plots": "grokscope.plots",
    "routing": "grokscope.analysis.routing",
    "widgets": "grokscope.widgets",
}
__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'grokscope' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
