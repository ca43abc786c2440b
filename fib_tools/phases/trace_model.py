"""Workloads from a transformers model that is run here: what it calls, matched with Definitions, each executed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from fib_tools.dataset.store import Dataset
from fib_tools.errors import ConfigError, FibError, FormatError, RequestError
from fib_tools.host.locks import hold
from fib_tools.model.base import Model
from fib_tools.model.definition import Definition
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.model.workload import Origin
from fib_tools.phases.collect import list_targets, settle_workloads
from fib_tools.phases.collect_result import CollectEntry
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import workspace_lock
from fib_tools.phases.weights import DummyOption, Loading, WeightsArgument, find_device, load_tokenizer, load_weights

if TYPE_CHECKING:
    from fib_tools.capture.collection.candidates import Tally as Collected
    from fib_tools.capture.forward.call import Call, Unmapped
    from fib_tools.capture.forward.watch import Tally, Watch

__all__ = ["MissingDefinition", "TraceModelResult", "UnmappedCall", "count_padded", "match_calls", "trace_model"]

_SEED = 0
_SHOWN = 40


class MissingDefinition(Model):
    """A Definition that calls were of, and that the dataset has not got."""

    name: str
    kernel: str
    calls: int
    reason: str = ""
    """Why it cannot be made from the calls alone; empty if it can."""


class UnmappedCall(Model):
    """What ran and is no call of a kernel type."""

    what: str
    """The module or torch's function."""
    kernel: str = ""
    """The kernel type that it would be one of, if there is one."""
    reason: str
    calls: int
    shapes: tuple[str, ...] = ()
    """Of what it took, such as `[4, 8, 64] x [64, 64]`: one for each kind of call."""


class TraceModelResult(Result):
    """What a model called, and the Workloads that came of it."""

    rows = "entries"
    row_fields = ("definition", "op_type", "status", "calls", "distinct", "workloads")

    model: str
    dataset: str
    origin: Origin
    seconds: float
    """Of generating, watched."""
    calls: int
    """That were seen; each is one that was matched, or has no Definition, or is of no kernel type."""
    matched: int
    entries: tuple[CollectEntry, ...]
    created: tuple[str, ...] = ()
    """Definitions that were created."""
    would_create: tuple[MissingDefinition, ...] = ()
    """In a dry run: Definitions that would be brought to the gate."""
    missing: tuple[MissingDefinition, ...] = ()
    unmapped: tuple[UnmappedCall, ...] = ()
    doubtful_passes: int = 0
    """Whose calls were counted as those of the pass before, and that may have made others."""
    padded_calls: int = 0
    """Whose rows may count padding, since it is not known which sequences they are of."""

    @property
    def has_errors(self) -> bool:
        """A Workload that the reference does not take is an error."""
        return any(entry.rejected for entry in self.entries)

    def summary(self) -> Summary:
        """Show what was matched, then what was not and how to have it matched."""
        rows = tuple(
            (each.definition, each.status, str(each.calls), str(each.distinct), str(each.workloads))
            for each in self.entries[:_SHOWN]
        )
        tables = [
            Table(title=self.model, columns=("Definition", "status", "calls", "distinct", "Workloads"), rows=rows)
        ]
        if self.would_create:
            names = tuple((each.name, str(each.calls)) for each in self.would_create[:_SHOWN])
            tables.append(Table(title="would be created", columns=("name", "calls"), rows=names))
        if self.missing:
            lines = tuple((each.name, str(each.calls), each.reason) for each in self.missing[:_SHOWN])
            tables.append(Table(title="no Definition", columns=("name", "calls", "why"), rows=lines))
        if self.unmapped:
            told = tuple(
                (each.what, each.kernel, str(each.calls), _shorten(each.shapes), each.reason)
                for each in self.unmapped[:_SHOWN]
            )
            columns = ("what", "would be", "calls", "shapes", "why")
            tables.append(Table(title="not described", columns=columns, rows=told))
        return Summary(tables=tuple(tables), lines=tuple(self._conclude()))

    def _conclude(self) -> Iterable[str]:
        yield f"{self.calls} calls in {self.seconds:.1f} s ({self.origin}); {len(self.entries)} Definitions in {self.dataset}"
        missing, unmapped = (sum(each.calls for each in items) for items in (self.missing, self.unmapped))
        yield f"calls seen: {self.calls}, matched: {self.matched}, without a Definition: {missing}, missed: {unmapped}"
        if self.created:
            yield f"created: {', '.join(self.created)}"
        if self.would_create:
            count = sum(each.calls for each in self.would_create)
            yield f"would be created: {len(self.would_create)} Definitions, of {count} more calls"
        if self.doubtful_passes:
            yield f"{self.doubtful_passes} passes were counted like the one before them, and may have made other calls"
        if self.padded_calls:
            yield f"{self.padded_calls} calls are of rows that may count padding"
        if any(not each.reason for each in self.missing):
            yield "to create what is missing, run it again with --create-missing"


def trace_model(
    context: Context,
    model: WeightsArgument,
    *,
    max_new_tokens: Annotated[int, Field(ge=1, le=4096, description="Tokens to generate after each prompt.")] = 16,
    prompts: Annotated[
        Path | None,
        Field(description="File with a prompt on each line; needs the model's tokenizer beside the weights."),
    ] = None,
    lengths: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...],
        Field(description="Without prompts: lengths of sequences drawn at random, one batch.", min_length=1),
    ] = (48, 21, 33, 8),
    layers: Annotated[
        int | None, Field(ge=1, description="Only the first layers: others call the same kernels.")
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], Field(description="What the weights are converted to.")
    ] = "bfloat16",
    device: Annotated[Literal["cpu", "cuda"], Field(description="Where to run it.")] = "cpu",
    device_map: Annotated[
        Literal["auto"] | None,
        Field(
            description="auto, in place of --device: what has no room on one GPU goes to others, then to the host's memory and the disk, by accelerate."
        ),
    ] = None,
    dummy_weights: DummyOption = False,
    num_samples: Annotated[int, Field(ge=1, le=10_000, description="The most Workloads of one Definition.")] = 100,
    create_missing: Annotated[bool, Field(description="Create the Definitions that the dataset has not got.")] = False,
    dry_run: Annotated[bool, Field(description="Say what would be written; nothing is written.")] = False,
) -> TraceModelResult:
    """Run a transformers model here, watch the kernels it calls, and write their Workloads into the dataset.

    Exit status 0: written; 1: a Workload was refused by its reference; 2: the weights or the request cannot be served.
    """
    import time

    dataset = context.dataset if create_missing else _open_dataset(context)
    if device_map is not None:
        context.workspace.create()  # for the weights that go to the disk
    context.progress(f"loading {model}", 0, 3)
    how = Loading(layers=layers, dtype=dtype, device=device, is_dummy=dummy_weights, device_map=device_map)
    loaded, inputs, origin = _load(context, model, prompts, lengths, how, max_new_tokens)
    context.progress("generating", 1, 3)
    begun = time.perf_counter()
    watch = _generate(loaded, inputs, max_new_tokens)
    tallies = watch.tallies
    seconds = time.perf_counter() - begun
    context.progress("matching", 2, 3)
    created = _create(context, dataset, tallies) if create_missing and not dry_run else ()
    collected, missing, unmapped = match_calls(dataset, tallies, num_samples)
    would_create = tuple(each for each in missing if create_missing and dry_run and not each.reason)
    calls = sum(tally.count for tally in tallies)
    return TraceModelResult(
        model=model,
        dataset=str(dataset.root),
        origin=origin,
        seconds=round(seconds, 3),
        calls=calls,
        matched=calls - sum(each.calls for each in missing) - sum(each.calls for each in unmapped),
        entries=tuple(settle_workloads(context, dataset, collected, origin=origin, dry_run=dry_run, adds=True)),
        created=created,
        would_create=would_create,
        missing=tuple(each for each in missing if each not in would_create),
        unmapped=unmapped,
        doubtful_passes=watch.doubtful,
        padded_calls=count_padded(tallies),
    )


def count_padded(tallies: Iterable[Tally]) -> int:
    """Count calls whose rows may count padding: they kept what their rows are made of."""
    return sum(tally.count for tally in tallies if getattr(tally.call, "rows", ()))


def _open_dataset(context: Context) -> Dataset:
    try:
        return Dataset.open(context.dataset.root)
    except RequestError as error:
        todo = f"{error.todo}, or pass --create-missing: what the model calls is then created there"
        raise RequestError(error.what, where=error.where, todo=todo) from error


def _load(
    context: Context, model: str, prompts: Path | None, lengths: Sequence[int], how: Loading, more: int
) -> tuple[Any, dict[str, Any], Origin]:
    """Load the weights and make a batch; what was drawn at random is no real prompt.

    Raises:
        RequestError: there is no such device, no prompt, or no room for so many tokens and `more`.
    """
    import torch

    if how.device == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            "torch sees no GPU", where="--device", todo="use --device cpu, with --layers for a large model"
        )
    lines = None if prompts is None else _read_prompts(context, prompts)
    is_local = bool(model.strip()) and Path(model).exists()
    if is_local:
        context.check_readable(Path(model))
    inputs = _tokenize(model, lines) if lines is not None and is_local else None  # before minutes of loading
    try:
        loaded, _ = load_weights(context, model, replace(how, attention="sdpa"))
    except ConfigError:  # it has no such attention, or is not one that transformers knows: then this says so
        loaded, _ = load_weights(context, model, replace(how, attention="eager"))
    text = loaded.config.get_text_config()
    if how.layers is not None:
        _check_layers(text)
    origin: Origin = "dummy" if how.is_dummy else "synthetic"
    if lines is not None:
        inputs = inputs or _tokenize(model, lines)
        _check_positions(text, inputs["input_ids"].shape[1], more, where="--prompts")
        return loaded, inputs, origin if how.is_dummy or how.layers else "real"
    _check_positions(text, max(lengths), more, where="--lengths")
    return loaded, _draw(int(text.vocab_size), lengths), origin


def _check_positions(config: Any, longest: int, more: int, *, where: str) -> None:
    """Refuse sequences that the model has no positions for, with the tokens that come after them."""
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and longest + more > most:
        todo = f"the model has {most} positions: take shorter sequences, or fewer --max-new-tokens"
        raise RequestError(f"{longest} tokens and {more} new ones are too many", where=where, todo=todo)


def _check_layers(config: Any) -> None:
    """Refuse to generate with the linear attention of a model that has both: transformers counts tokens by what attention keeps."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds == {"linear_attention"}:
        todo = "pass more --layers, until there is one with attention, or none for all of them"
        raise RequestError("the layers that were taken are all of linear attention", where="--layers", todo=todo)


def _draw(vocabulary: int, lengths: Sequence[int]) -> dict[str, Any]:
    """Draw a batch of sequences, the shorter ones padded on the left."""
    import torch

    longest = max(lengths)
    ids = torch.randint(0, vocabulary, (len(lengths), longest), generator=torch.Generator().manual_seed(_SEED))
    mask = torch.stack([(torch.arange(longest) >= longest - length).long() for length in lengths])
    return {"input_ids": ids, "attention_mask": mask}


def _read_prompts(context: Context, prompts: Path) -> list[str]:
    path = context.check_readable(prompts)
    if not path.is_file():
        raise RequestError(
            f"{str(path)!r} is not there", where="--prompts", todo="pass a text file, a prompt on each line"
        )
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8: {error.reason}", where=str(path), todo="save it as UTF-8") from error
    if not lines:
        raise RequestError("the file holds no prompt", where=str(path), todo="write a prompt on each line")
    return lines


def _tokenize(model: str, lines: list[str]) -> dict[str, Any]:
    tokenizer = load_tokenizer(model, todo="leave --prompts out: sequences of --lengths are then drawn at random")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return dict(tokenizer(lines, return_tensors="pt", padding=True))


def _generate(loaded: Any, inputs: dict[str, Any], tokens: int) -> Watch:
    """Generate, watched: so many tokens for every sequence, with a draw at each as people sample."""
    import torch

    from fib_tools.capture.forward.observe import observe
    from fib_tools.capture.forward.passes import find_witness

    device = find_device(loaded)
    on_device = {name: value.to(device) for name, value in inputs.items()}
    with torch.no_grad(), observe(loaded, page_size=1, witness=find_witness(loaded)) as watch:
        loaded.generate(
            **on_device,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=True,
            top_k=50,
            top_p=0.95,
            pad_token_id=0,
        )
    return watch


def match_calls(
    dataset: Dataset, tallies: Sequence[Tally], limit: int
) -> tuple[dict[str, Collected], tuple[MissingDefinition, ...], tuple[UnmappedCall, ...]]:
    """Give every call to the Definitions that it is one of, and say which it is none of."""
    from fib_tools.capture.collection.candidates import Tally as Collected
    from fib_tools.capture.forward.call import Unmapped
    from fib_tools.capture.forward.matching import match_call

    loaded, _ = dataset.load_definitions()
    targets = list_targets(loaded.values())
    collected: dict[str, Collected] = {}
    missing: dict[str, MissingDefinition] = {}
    unmapped: dict[tuple[str, ...], UnmappedCall] = {}
    for tally in tallies:
        if isinstance(tally.call, Unmapped):
            _add_unmapped(unmapped, tally.call, tally.count)
            continue
        matches = match_call(tally.call, targets)
        for match in matches:
            name = match.target.definition.name
            collected.setdefault(name, Collected(target=match.target, limit=limit)).add(match, tally.count)
        if not matches:
            name, reason = _name_missing(tally.call, loaded)
            known = missing.get(name, MissingDefinition(name=name, kernel=tally.call.kernel, calls=0, reason=reason))
            missing[name] = known.model_copy(update={"calls": known.calls + tally.count})
    return collected, tuple(missing.values()), tuple(unmapped.values())


def _add_unmapped(found: dict[tuple[str, ...], UnmappedCall], call: Unmapped, count: int) -> None:
    shapes = " x ".join(str(list(shape)) for shape in call.shapes)
    key = (call.what, call.kernel, call.reason)
    known = found.get(key, UnmappedCall(what=call.what, kernel=call.kernel, reason=call.reason, calls=0))
    listed = tuple(dict.fromkeys((*known.shapes, *([shapes] if shapes else []))))[:_SHOWN]
    found[key] = known.model_copy(update={"calls": known.calls + count, "shapes": listed})


def _shorten(shapes: tuple[str, ...]) -> str:
    return f"{shapes[0]}, {len(shapes) - 1} more" if len(shapes) > 1 else "".join(shapes)


def _build(call: Call) -> tuple[Definition, str]:
    """Build the Definition of a call, and what sets it apart from others of its name.

    Raises:
        ValueError: the call does not show all of it.
        RequestError: there is no such kernel type, or no valid name for one of these sizes.
    """
    from fib_tools.op_types.registry import get_kernel_type

    kernel = get_kernel_type(call.kernel)
    parameters = kernel.parameters.model_validate(dict(call.parameters))
    return kernel.define(parameters), parameters.qualifier() or parameters.plain_qualifier()


def _name_missing(call: Call, loaded: Mapping[str, Definition]) -> tuple[str, str]:
    """Name the Definition that a call would be of, and say why it cannot be created; nothing if it can."""
    from fib_tools.gate.identity import compare

    try:
        definition, _ = _build(call)
    except (ValueError, FibError) as error:
        what = "how experts are chosen is not seen in the call; fib define has it from the config"
        return call.kernel, what if call.kernel.startswith("moe") else str(error).splitlines()[0]
    known = loaded.get(definition.name)
    found = compare(definition, known) if known is not None else None
    if found is None or not found.same_kernel:
        return definition.name, ""
    todo = "run the model as that is, or take another dataset"
    return definition.name, f"the dataset's is called differently: {'; '.join(found.differences)}; {todo}"


def _create(context: Context, dataset: Dataset, tallies: Sequence[Tally]) -> tuple[str, ...]:
    """Have the gate admit the Definitions that are missing: their references are executed first."""
    from fib_tools.capture.forward.call import Unmapped
    from fib_tools.capture.forward.matching import match_call
    from fib_tools.gate.execute import open_sandbox
    from fib_tools.gate.gate import AdmissionStatus, Candidate, admit
    from fib_tools.phases.admissions import stage

    loaded, _ = dataset.load_definitions()
    targets = list_targets(loaded.values())
    wanted: dict[str, Candidate] = {}
    for tally in tallies:
        if isinstance(tally.call, Unmapped) or match_call(tally.call, targets):
            continue
        try:
            definition, qualifier = _build(tally.call)
        except (ValueError, FibError):  # it is listed with its reason when calls are matched
            continue
        wanted.setdefault(f"{definition.name} {qualifier}", Candidate(definition=definition, qualifier=qualifier))
    context.workspace.create()
    with hold(workspace_lock(context), purpose="creating Definitions"), open_sandbox() as sandbox:
        admissions = list(
            admit(
                list(wanted.values()),
                index=loaded,
                stage=partial(stage, context),
                sandbox=sandbox,
                report=context.tell_if_slow("comparing with the dataset"),
            )
        )
    return tuple(
        each.definition.name for each in admissions if each.status is AdmissionStatus.ACCEPTED and each.definition
    )
