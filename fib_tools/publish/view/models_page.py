"""The list of models, and the page of one: its facts, its layers, and the tree of modules with their kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from fib_tools.architecture.facts_schema import LayerFacts, MlpKind, ModelFacts
from fib_tools.architecture.quantization import QuantizationScheme
from fib_tools.publish.markup import Html, breakable, join, tag
from fib_tools.publish.report_scales import TIMES
from fib_tools.publish.view.cells import card, count, fact_list, parts_bar
from fib_tools.publish.view.frame import Page, crumbs
from fib_tools.publish.view.model_tree import Coverage, ModelKernel, ModelView, Node, build_tree
from fib_tools.publish.view.paths import MODELS, TIMELINES, definition_path, link, model_path

__all__ = ["build_model_page", "build_models_page", "show_model_cards"]

_COVERAGE: Mapping[Coverage, tuple[str, str]] = {
    "measured": ("measured", "k-measured"),
    "workloads": ("with Workloads", "k-workloads"),
    "definition": ("Definition only", "k-definition"),
    "missing": ("missing", "k-missing"),
}
_MIXERS = {
    "full": ("full attention", "c0"),
    "sliding": ("sliding window", "c2"),
    "chunked": ("chunked attention", "c2"),
    "compressed_sparse": ("compressed sparse attention", "c2"),
    "compressed_heavy": ("compressed attention", "c0"),
    "gdn": ("gated delta net", "c3"),
    "kda": ("Kimi delta attention", "c3"),
    "mamba2": ("Mamba 2", "c4"),
    "lightning": ("lightning attention", "c5"),
    "none": ("no mixer", "c8"),
}
_MLPS = {"dense": ("dense MLP", "c7"), "moe": ("mixture of experts", "c1"), "none": ("no MLP", "c8")}


def build_models_page(models: Sequence[ModelView]) -> Page:
    """Build the list of models."""
    said = "Models that Definitions are tagged with, or that were onboarded in this workspace."
    body = [
        tag("h1", "Models"),
        tag("p", said, class_="lead"),
        show_model_cards(models, of=MODELS)
        if models
        else tag("p", "None yet: fib onboard MODEL brings the first.", class_="card dim"),
    ]
    return Page(path=MODELS, title="Models", body=tuple(body), section=MODELS)


def show_model_cards(models: Sequence[ModelView], *, of: str, heading: str = "h2") -> Html:
    """Show each model with what the dataset has of its kernels; `heading` is the level of their names."""
    return tag("div", *(_card(model, of, heading) for model in models), class_="model-cards")


def _card(model: ModelView, of: str, heading: str) -> Html:
    facts = model.facts
    said = [tag("p", _describe(facts), class_="dim")] if facts else []
    return tag(
        "article",
        tag(heading, tag("a", model.slug, href=link(model_path(model.slug), of=of))),
        *said,
        _coverage_bar(model),
        class_="card model",
    )


def _coverage_bar(model: ModelView) -> Html:
    counted = Counter(kernel.coverage for kernel in model.kernels)
    parts = [(name, counted[key], classes) for key, (name, classes) in _COVERAGE.items()]
    return parts_bar(parts, label=f"{len(model.kernels)} kernels of {model.slug} by what the dataset has of them")


def _describe(facts: ModelFacts) -> str:
    """Say in one line what kind of model it is."""
    words = [f"{facts.num_layers} layers", f"hidden {facts.hidden_size:,}"]
    attention = next(iter(facts.attentions.values()), None)
    if attention is not None:
        heads = f"{attention.num_heads} heads"
        words.append(f"MLA, {heads}" if attention.mla else f"{heads}, {attention.num_kv_heads} KV")
    if facts.moe is not None:
        words.append(f"{facts.moe.num_experts} experts, top {facts.moe.top_k}")
    return " · ".join(words)


def build_model_page(model: ModelView, timelines: Sequence[str] = ()) -> Page:
    """Build the page of a model; `timelines` are the files of its traces."""
    path = model_path(model.slug)
    tree = build_tree(model.kernels)
    ways = sorted({tp for kernel in model.kernels for tp in kernel.tp})
    body = [
        crumbs(("Models", MODELS), (model.slug, ""), of=path),
        tag("h1", model.slug, class_="name"),
        tag("p", model.repo_id, class_="lead") if model.repo_id else join([]),
        tag("div", *_about(model, timelines, path), class_="split"),
        card(
            "Modules and kernels",
            _choose_tp(ways) if len(ways) > 1 else join([]),
            tag("ul", *(_node(child, path) for child in tree.children.values()), class_="tree"),
            note=f"Known from {model.source}.",
            aside=count(len(model.kernels), "kernel"),
        ),
        *_open(model),
    ]
    return Page(path=path, title=model.slug, body=tuple(body), section=MODELS)


def _about(model: ModelView, timelines: Sequence[str], path: str) -> Iterable[Html]:
    coverage = [_coverage_bar(model)]
    if model.serving:
        ways = [way.partition(" (") for way in model.serving]
        coverage += [tag("h3", "Served as"), tag("ul", *(tag("li", way[0]) for way in ways), class_="plain-list")]
        sources = dict.fromkeys(way[2].removesuffix(")") for way in ways if way[2])
        coverage += [tag("p", "by ", source, class_="cap") for source in sources]
    if timelines:
        links = (tag("li", tag("a", file, href=link(TIMELINES, of=path))) for file in timelines)
        coverage += [tag("h3", "Timelines"), tag("ul", *links, class_="plain-list")]
    yield card("In this dataset", *coverage)
    if model.facts is not None:
        yield card("Architecture", _facts(model.facts), *_layers(model.facts))


def _facts(facts: ModelFacts) -> Html:
    scheme = facts.quantization.scheme
    pairs = [
        ("architecture", facts.architecture),
        ("hidden size", f"{facts.hidden_size:,}"),
        ("vocabulary", f"{facts.vocab_size:,}"),
        ("weights", facts.dtype if scheme is QuantizationScheme.NONE else scheme.value),
    ]
    for key, attention in facts.attentions.items():
        heads = f"{attention.num_heads} heads, {attention.num_kv_heads} KV, width {attention.head_dim}"
        latent = f"; latent {attention.mla.kv_lora_rank} + {attention.mla.qk_rope_head_dim}" if attention.mla else ""
        window = f"; window {attention.window:,}" if attention.window else ""
        pairs.append((f"attention {key}", f"{heads}{latent}{window}"))
    for key, linear in facts.linears.items():
        pairs.append(
            (f"linear {key}", f"{linear.num_value_heads} heads, {linear.key_head_dim} {TIMES} {linear.value_head_dim}")
        )
    if facts.moe is not None:
        moe = facts.moe
        shared = f", {moe.num_shared_experts} shared" if moe.num_shared_experts else ""
        pairs.append(("experts", f"{moe.num_experts}, top {moe.top_k}{shared}, width {moe.intermediate_size:,}"))
    return fact_list(pairs)


def _layers(facts: ModelFacts) -> Iterable[Html]:
    """Draw a cell for each layer: what mixes tokens above, what follows below."""
    yield tag("h3", "Layers")
    mixers = [_MIXERS[layer.mixer.value] for layer in facts.layers]
    mlps = [_MLPS[layer.mlp.value] for layer in facts.layers]
    label = "; ".join(_say_run(run) for run in _list_runs(facts.layers))
    strips = (
        tag("div", *(tag("i", class_=classes) for _, classes in kinds), class_="strip-row") for kinds in (mixers, mlps)
    )
    yield tag("div", *strips, class_="layers", role="img", aria_label=label[:2000])
    counted = Counter(
        (*mixers, *(kind for kind, layer in zip(mlps, facts.layers, strict=True) if layer.mlp is not MlpKind.NONE))
    )
    keys = (
        tag("li", tag("i", class_=f"dot {classes}"), tag("span", f"{number} {name}"))
        for (name, classes), number in counted.items()
    )
    yield tag("ul", *keys, class_="legend small")


def _list_runs(layers: Sequence[LayerFacts]) -> Iterable[tuple[str, int, int]]:
    """Join neighbouring layers of one kind: words, first and last index."""
    for words, group in groupby(
        layers, key=lambda layer: f"{_MIXERS[layer.mixer.value][0]}, {_MLPS[layer.mlp.value][0]}"
    ):
        own = list(group)
        yield words, own[0].index, own[-1].index


def _say_run(run: tuple[str, int, int]) -> str:
    words, first, last = run
    return f"layer {first}: {words}" if first == last else f"layers {first} to {last}: {words}"


def _choose_tp(ways: Sequence[int]) -> Html:
    options = (tag("option", f"TP {tp}", value=str(tp)) for tp in ways)
    label = tag("label", "Show ", tag("select", tag("option", "every TP", value=""), *options, name="tp"))
    return tag("p", label, class_="choose")


def _node(node: Node, path: str, layers: int = 0) -> Html:
    """Show a module; `layers` is how often the layer that it stands in is repeated."""
    is_repeated = bool(node.layers) and "*" in node.name
    layers = node.layers if is_repeated else layers
    times = [tag("span", f"{TIMES} {layers}", class_="chip")] if is_repeated else []
    head = tag("summary", tag("code", node.name), *times, tag("span", count(node.count(), "kernel"), class_="dim"))
    own = [_kernel(kernel, path, layers) for kernel in node.kernels]
    inside = [_node(child, path, layers) for child in node.children.values()]
    lists = [tag("ul", *own, class_="kernels")] if own else []
    lists += [tag("ul", *inside)] if inside else []
    return tag("li", tag("details", head, *lists, open=True))


def _kernel(kernel: ModelKernel, path: str, layers: int) -> Html:
    words, classes = _COVERAGE[kernel.coverage]
    entry = kernel.entry
    name = breakable(kernel.name)
    said = words
    if entry is not None:
        name = tag("a", name, href=link(definition_path(entry.at.op_type, entry.at.definition), of=path))
    if entry is not None and entry.workloads:
        runs = f" · {count(entry.evaluations, 'run')}" if entry.evaluations else ""
        said = f"{count(entry.workloads, 'Workload')}{runs}"
    return tag(
        "li",
        tag("i", class_=f"dot {classes}", title=words),
        tag("span", name, class_="kname"),
        tag("span", *(tag("span", word, class_="chip") for word in _serve(kernel, layers)), class_="served"),
        tag("span", said, class_="dim"),
        data_tp=" ".join(map(str, kernel.tp)) or None,
    )


def _serve(kernel: ModelKernel, layers: int) -> Iterable[str]:
    """Say for which way of serving, which stage and how many of the layers it is."""
    if kernel.layers and layers and kernel.layers != layers:
        yield count(kernel.layers, "layer")
    for key, values in (("tp", kernel.tp), ("ep", kernel.ep if kernel.ep != (1,) else ()), ("ps", kernel.page_sizes)):
        if values:
            yield f"{key} {', '.join(map(str, values))}"
    if len(kernel.stages) == 1:
        yield kernel.stages[0]


def _open(model: ModelView) -> list[Html]:
    if not model.open:
        return []
    items = (tag("li", tag("b", subject), f": {reason}") for subject, reason in model.open)
    return [card("Open", tag("ul", *items, class_="plain-list"), note="Refused, or not explained by any kernel type.")]
