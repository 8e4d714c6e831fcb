"""`explore`: one widget with several panels and one selection, which Python and every panel read and set.

Values stay in Python. The routing of the text travels once, as bytes; what else a panel needs it asks for by name, and the
functions in `panels.py` answer from view-models. A panel that stands alone is the same widget with one panel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anywidget
import traitlets

from grokscope.sites import near
from grokscope.text.visible import visible
from grokscope.trace.trace import Trace
from grokscope.views import routing
from grokscope.views.answers import Answers, named
from grokscope.views.colouring import check_marks, hues_of
from grokscope.views.compare import trace_text
from grokscope.views.opening import opening
from grokscope.views.payload import nested, pack
from grokscope.views.routing import Values, routing_view
from grokscope.widgets.assets import joined, style
from grokscope.widgets.bench import Bench
from grokscope.widgets.display import show_with_picture
from grokscope.widgets.editing_panel import directions
from grokscope.widgets.panels import ANSWERS, PANELS, lacks, panels_of

if TYPE_CHECKING:
    from grokscope.model.model import Model

AT_ONCE, FIRST = 5_000_000, 2
"""Beyond so many bytes of routing the first slots are sent alone; the page asks for the rest when it is there."""
SELECTION = ("text", "layer", "token", "head", "expert", "slot", "colour", "marks")
"""The traits that linked widgets share."""


class Workbench(anywidget.AnyWidget, Bench):
    """A trace to look around in; `grokscope.explore` makes one.

    text: which of the trace's texts. layer and head: their numbers in the model. token: its place in the kept text. slot: 0
    is the best expert. colour: what tokens are coloured by, "expert" or a name of `colours`. Set them, or observe them:
    what the browser selects comes back here. marks: which of more than eight experts have a colour: "used" (the most used of
    each layer), "clusters" (those chosen together) or up to six numbers. A value that is not there raises TraitError.
    """

    _esm = joined()
    _css = style()

    text = traitlets.Int(0).tag(sync=True)
    layer = traitlets.Int(0).tag(sync=True)
    token = traitlets.Int(0).tag(sync=True)
    head = traitlets.Int(0).tag(sync=True)
    expert = traitlets.Int(0).tag(sync=True)
    slot = traitlets.Int(0).tag(sync=True)
    colour = traitlets.Unicode("expert").tag(sync=True)
    marks = traitlets.Union([traitlets.Unicode(), traitlets.List(traitlets.Int())], default_value="used").tag(sync=True)
    panels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    data = traitlets.Dict().tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)
    _links: tuple[traitlets.link, ...] = ()

    def __init__(
        self,
        trace: Trace,
        other: Trace | None = None,
        *,
        model: Model | None = None,
        values: Values | None = None,
        panels: Sequence[str] | None = None,
        vectors: Mapping[str, Any] | None = None,
        answers: Answers | None = None,
        link: Workbench | None = None,
    ) -> None:
        for name, given in (("trace", trace), ("other", other)):
            if not isinstance(given, Trace) and (name == "trace" or given is not None):
                made = "a workbench holds one, as its .trace" if isinstance(given, Workbench) else "model.trace(text) makes one"
                what = f"; {made}" if isinstance(given, str) or hasattr(given, "trace") else ""
                raise TypeError(f"explore: {name}: wanted a Trace, got {type(given).__name__}{what or '; give what a run left'}")
        if isinstance(model, str):
            raise TypeError(f"explore: model: wanted a Model, got str {model[:40]!r}; gs.load({model[:40]!r}) makes one")
        panels = panels_of(panels or ())
        self.trace, self.other, self.model, self.values = trace, other, model, dict(values or {})
        self.given = other
        self.edits: list[Any] = []
        self.written: list[str] = []
        self.answers = named(answers)
        self.vectors = directions(vectors or {}, trace)
        view = routing_view(trace, 0, self.values)
        data = self._data(view)
        at = opening(routing.Text(trace), other and trace_text(other, 0))
        start = {**at._asdict(), "head": data["heads"][0] if data["heads"] else 0}
        shown = [p for p in PANELS if p != "answers" or self.answers]
        super().__init__(panels=list(panels or shown), **start, data=data, picture=uuid4().hex)
        self.on_msg(self._asked)
        if link is not None:
            self._links = tuple(traitlets.link((link, name), (self, name)) for name in SELECTION)

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises AttributeError for a name that nothing reads: a misspelt one would do nothing."""
        if not name.startswith("_") and not hasattr(type(self), name) and name not in Bench.__annotations__:
            raise AttributeError(f"Workbench has no {name!r}; set one of {', '.join(SELECTION)}{near(name, SELECTION)}")
        super().__setattr__(name, value)

    @property
    def colours(self) -> list[str]:
        """What `colour` may be for this text."""
        return ["expert", *(name for name, _ in self.data["colours"])]

    def close(self) -> None:
        """Take it away, and every link with it."""
        for pair in self._links:
            pair.unlink()
        self._links = ()
        self.on_msg(self._asked, remove=True)
        super().close()

    def show(self, other: Trace | None) -> None:
        """Set the trace that the Compare panel puts beside this one; None: the one that was given at first, if any."""
        self.other = self.given if other is None else other
        self.data = self._data(routing_view(self.trace, self.text, self.values))

    def _data(self, view: Any) -> dict[str, Any]:
        hues = hues_of(routing.Text(self.trace, self.text), self.marks)
        told = {"lacks": lacks(self), "compared": self.other is not None, "hues": hues}
        shown = {f: getattr(view, f) for f in view.__dataclass_fields__}
        if not shown["heads"] and "attention" not in told["lacks"]:  # the panel asks the model for them
            shown["heads"] = list(range(self.trace.config.num_heads))
        told["vectors"] = [visible(name) for name in self.vectors]
        told["answers"] = list(self.answers)
        told["patches"] = self.given is not None
        told["slots"] = self.trace.data.sizes["slot"]
        if 2 * shown["experts"].nbytes > AT_ONCE:
            shown["experts"] = shown["experts"][..., :FIRST]
            shown["gates"] = shown["gates"] and replace(shown["gates"], q=shown["gates"].q[..., :FIRST])
        return nested(*pack(told | shown))

    @traitlets.observe("text")
    def _text_changed(self, change: dict[str, Any]) -> None:
        self.token = 0
        self.data = self._data(routing_view(self.trace, self.text, self.values))

    @traitlets.validate("marks")
    def _marked(self, proposal: Any) -> Any:
        try:
            check_marks(proposal["value"], self.trace.config.router.num_experts)
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from error
        return proposal["value"]

    @traitlets.validate("panels")
    def _are_panels(self, proposal: Any) -> Any:
        try:
            return panels_of(proposal["value"])
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from error

    @traitlets.validate("text", "layer", "token", "head", "expert", "slot", "colour")
    def _there(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        sizes, shown = self.trace.data.sizes, self.data
        if not shown:
            return value
        known = {
            "text": range(sizes["batch"]),
            "layer": shown["layers"],
            "token": range(len(shown["pieces"])),
            "head": shown["heads"] or [0],
            "expert": range(shown["num_experts"]),
            "slot": range(sizes["slot"]),
            "colour": ["expert", *(n for n, _ in shown["colours"])],
        }[name]
        if name == "colour" and f"values:{value}" in known:
            return f"values:{value}"
        if value not in known:
            there = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(map(str, known))
            raise traitlets.TraitError(f"{name}: wanted one of {there}, got {value!r}")
        return value

    def _asked(self, widget: Any, content: Any, buffers: Any) -> None:
        """Answer one question of a panel; a failure goes back as a line for its reader."""
        try:
            want, number = str(content["want"]), int(content["id"])
        except (TypeError, KeyError, ValueError):
            return
        try:
            answer, data = pack(ANSWERS[want](self, dict(content.get("params") or {})))
            self.send({"id": number, "answer": answer}, data)
        except KeyError:
            self.send({"id": number, "error": f"nothing answers {want[:40]!r}"})
        except (ValueError, TypeError, IndexError, MemoryError, traitlets.TraitError, OSError) as error:
            self.send({"id": number, "error": str(error)})

    def _ipython_display_(self) -> None:
        show_with_picture(self, self.picture, self._repr_mimebundle_())

    def __repr__(self) -> str:
        return f"Workbench({self.trace.provenance['model']}, panels={list(self.panels)})"


def explore(
    trace: Trace,
    other: Trace | None = None,
    *,
    model: Model | None = None,
    values: Values | None = None,
    panels: Sequence[str] | None = None,
    vectors: Mapping[str, Any] | None = None,
    answers: Answers | None = None,
) -> Workbench:
    """The linked workbench: text, routing map, router, experts, attention, prediction, comparison, edits.

    other: a second trace, shown beside the first. model: what the Edit panel, the lens and the attention run; without it they
    load the embedded model where the trace is its. values: arrays [T] or [L, T] of your own by name, to colour tokens by.
    answers: Datasets over some of layer, token, expert, head and slot, as of gs.experiments.patch, in a list or by name: maps
    whose cells select. vectors: directions [D] by name, to steer the stream with in Edit. panels: which to show, as "text",
    "map" or "attention"; all of them if not given. A recording made elsewhere is shown as far as its data go; a panel that lacks
    something says what.

    It opens at the layer whose experts are used least evenly, at the busiest one there and the token that gives it the largest
    gate; beside another trace at the token whose experts differ at most layers, and the first of these.

    >>> bench = gs.explore(trace)
    >>> bench.layer, bench.token = 3, 12      # every panel follows
    >>> bench.observe(print, "expert")        # and what is clicked comes back
    >>> gs.explore(trace, values={"length": [len(p) for p in trace.pieces[0]]}).colour = "length"
    """
    return Workbench(trace, other, model=model, values=values, panels=panels, vectors=vectors, answers=answers)


def _alone(panel: str, what: str) -> Any:
    def __init__(self: Workbench, trace: Trace, other: Trace | None = None, **options: Any) -> None:
        Workbench.__init__(self, trace, other, panels=(panel,), **options)

    doc = f"{what} alone; see `Workbench` for its options. link=another widget shares the selection."
    return type(PANELS[panel].title.replace(" ", ""), (Workbench,), {"__init__": __init__, "__doc__": doc, "__module__": __name__})


Text = _alone("text", "The prompt, each token coloured by what is chosen,")
RoutingMap = _alone("map", "Layers by tokens, coloured by expert or value,")
Router = _alone("router", "The router's numbers for the selected token")
Experts = _alone("experts", "A layer's experts: load, tokens, co-activation, flow,")
Attention = _alone("attention", "A layer's heads")
Prediction = _alone("prediction", "The next tokens, and the logit lens,")
Compare = _alone("compare", "Two traces side by side")
Edit = _alone("edit", "Banning or forcing experts")
