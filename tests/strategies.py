"""Hypothesis strategies for valid documents, shared by the property tests."""

from __future__ import annotations

from keyword import iskeyword

from hypothesis import strategies as st

from fib_tools.model.definition import AxisConst, AxisVar, Definition, DType, TensorSpec
from fib_tools.model.solution import Binding, BuildSpec, Language, Solution, SourceFile
from fib_tools.model.trace import Correctness, Environment, Evaluation, EvaluationStatus, Performance, Trace
from fib_tools.model.workload import RandomInput, SafetensorsInput, ScalarInput, Workload

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
names = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True).filter(lambda name: not iskeyword(name))
sizes = st.integers(min_value=0, max_value=2**40)
descriptions = st.none() | text

axes = st.builds(AxisVar, description=descriptions) | st.builds(AxisConst, value=sizes, description=descriptions)


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    declared = draw(st.dictionaries(names, axes, min_size=1, max_size=5))
    shapes = st.none() | st.lists(st.sampled_from(sorted(declared)), max_size=4)
    specs = st.builds(TensorSpec, shape=shapes, dtype=st.sampled_from(DType), description=descriptions)
    inputs = draw(st.dictionaries(names, specs, max_size=4))
    outputs = draw(st.dictionaries(names.filter(lambda name: name not in inputs), specs, max_size=4))
    first = min(declared)
    return Definition(
        name=draw(names),
        op_type=draw(names),
        axes=declared,
        inputs=inputs,
        outputs=outputs,
        reference=draw(st.sampled_from(["def run(): pass\n", "import math\n\ndef run(*inputs):\n    return 'ü'\n"])),
        tags=draw(st.lists(text, max_size=3)),
        description=draw(descriptions),
        constraints=draw(st.lists(st.sampled_from([f"{first} == 1", f"{first} % 2 == 0"]), max_size=2)),
    )


input_specs = (
    st.builds(RandomInput)
    | st.builds(
        ScalarInput,
        value=st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False),
    )
    | st.builds(SafetensorsInput, path=text, tensor_key=text)
)
workloads = st.builds(
    Workload,
    axes=st.dictionaries(names, sizes, max_size=3),
    inputs=st.dictionaries(names, input_specs, max_size=3),
    uuid=text,
)
_errors = st.floats(min_value=0) | st.just(float("nan"))
_times = st.floats(min_value=0, allow_nan=False, allow_infinity=False)


@st.composite
def evaluations(draw: st.DrawFn) -> Evaluation:
    status = draw(st.sampled_from(EvaluationStatus))
    passed = status is EvaluationStatus.PASSED
    measured = passed or status is EvaluationStatus.INCORRECT_NUMERICAL
    correctness = st.builds(Correctness, max_relative_error=_errors, max_absolute_error=_errors)
    performance = st.builds(Performance, latency_ms=_times, reference_latency_ms=_times, speedup_factor=_times)
    return Evaluation(
        status=status,
        environment=draw(st.builds(Environment, hardware=text, libs=st.dictionaries(text, text, max_size=2))),
        timestamp=draw(text),
        log=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=8)),
        correctness=draw(correctness) if measured else None,
        performance=draw(performance) if passed else None,
    )


traces = st.builds(
    Trace, definition=names, workload=workloads, solution=st.none() | text, evaluation=st.none() | evaluations()
)


@st.composite
def solutions(draw: st.DrawFn) -> Solution:
    paths = draw(st.lists(names.map(lambda name: f"{name}.py"), min_size=1, max_size=3, unique=True))
    spec = BuildSpec(
        language=draw(st.sampled_from(Language)),
        target_hardware=draw(st.lists(text, min_size=1, max_size=2)),
        entry_point=f"{paths[0]}::run",
        dependencies=draw(st.lists(text, max_size=2)),
        destination_passing_style=draw(st.booleans()),
        binding=draw(st.none() | st.sampled_from(Binding)),
    )
    sources = [SourceFile(path=path, content=draw(text)) for path in paths]
    return Solution(
        name=draw(names),
        definition=draw(names),
        author=draw(names),
        description=draw(descriptions),
        spec=spec,
        sources=sources,
    )
