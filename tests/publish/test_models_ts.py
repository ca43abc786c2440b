"""Entries in `models.ts`: ours come and change, and not a byte of anybody else's does."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fib_tools.errors import FormatError
from fib_tools.publish.models_ts import EMPTY_MODELS, EntryModule, ModelEntry, update_models
from fib_tools.publish.models_ts_reading import read_models

MODULES = (
    EntryModule(key="TinyForCausalLM", count=1, type="block"),
    EntryModule(key="mlp.gate", count=3, parent="TinyForCausalLM", type="layer", definitions=("gemm_n8_k64",)),
)
ENTRY = ModelEntry(id="tiny", name="Tiny", description="One layer.", modules=MODULES, remarks=("org/tiny",))
OTHER = ENTRY.model_copy(update={"name": "Tinier"})

RENDERED = """\
  {
    // fib pages: %s, written by that command, which writes it anew until somebody edits it
    // org/tiny
    id: "tiny",
    name: "Tiny",
    description: "One layer.",
    modules: {
      TinyForCausalLM: {
        count: 1,
        type: "block",
        definitions: [],
      },
      "mlp.gate": {
        count: 3,
        parent: "TinyForCausalLM",
        type: "layer",
        definitions: ["gemm_n8_k64"],
      },
    },
  },
"""

HAND_WRITTEN = """\
// const models = [ in a comment is none
import type { Model } from '@/lib/schemas'
const words = `a ${ { b: `]${"}"}` }.b } c`, pattern = "]"
export const models : ReadonlyArray<{ id: string }> = [
\t{ id: 'a',  name: "it's \\"]\\"", modules: {/* } */ x: {count: 1, type: 'layer', definitions: ["gone_h1"] }} } , // first
  {
    "id": `b\\x63`, name: 'b]', modules: {},
  }
  // the end
]
const ratio = 1 / 2
"""


def write(text: str, *entries: ModelEntry) -> str:
    return update_models(text, entries, where="models.ts").text


def ids(text: str) -> list[str]:
    return [entry.id for entry in read_models(text, where="models.ts").entries]


def test_an_entry_is_written_as_the_lists_own_formatter_leaves_it() -> None:
    text = write(EMPTY_MODELS, ENTRY)
    mark = re.search(r"fib pages: (\w{16}),", text)
    assert mark is not None
    head, tail = EMPTY_MODELS.split("] satisfies")
    assert text == head + RENDERED % mark[1] + "] satisfies" + tail


def test_a_second_run_changes_nothing_and_a_changed_entry_is_replaced_where_it_stands() -> None:
    text = write(HAND_WRITTEN, ENTRY)
    assert ids(text) == ["a", "bc", "tiny"]
    assert update_models(text, [ENTRY], where="models.ts")[:2] == (text, {"tiny": "unchanged"})
    after = update_models(write(text, ENTRY.model_copy(update={"id": "second"})), [OTHER], where="models.ts")
    assert after.outcomes == {"tiny": "updated"}
    assert ids(after.text) == ["a", "bc", "tiny", "second"]
    assert '"Tinier"' in after.text
    assert '"Tiny"' in after.text


def test_what_stands_around_the_new_entry_stays_to_the_byte() -> None:
    text = write(HAND_WRITTEN, ENTRY)
    start = text.index("\n  {\n    // fib pages")
    end = text.index("  },\n]", start) + len("  },")
    assert text[:start] + text[end:] == HAND_WRITTEN.replace("  }\n  // the end", "  },\n  // the end")


def test_an_entry_that_was_edited_stays_as_it_is_and_a_reformatted_one_does_not_count_as_edited() -> None:
    text = write(HAND_WRITTEN, ENTRY)
    edited = text.replace("count: 3", "count: 4")
    assert update_models(edited, [OTHER], where="models.ts")[:2] == (edited, {"tiny": "kept"})
    commented = text.replace('id: "tiny"', '// mine\n    id: "tiny"')
    assert update_models(commented, [OTHER], where="models.ts").outcomes == {"tiny": "kept"}
    formatted = text.replace('"tiny"', "'tiny'").replace("      },\n    },", "      }\n    }").replace("        ", "\t")
    assert update_models(formatted, [ENTRY], where="models.ts")[:2] == (formatted, {"tiny": "unchanged"})
    assert update_models(formatted, [OTHER], where="models.ts").outcomes == {"tiny": "updated"}


def test_a_hand_written_entry_of_the_same_id_stays() -> None:
    mine = ENTRY.model_copy(update={"id": "bc"})
    updated = update_models(HAND_WRITTEN, [mine], where="models.ts")
    assert updated[:2] == (HAND_WRITTEN, {"bc": "kept"})
    assert [(entry.id, entry.line, entry.definitions) for entry in updated.hand_written] == [
        ("a", 5, ("gone_h1",)),
        ("bc", 6, ()),
    ]


def test_line_ends_are_those_of_the_file() -> None:
    for entry in (ENTRY, ENTRY.model_copy(update={"description": "wide " * 20})):
        text = write(HAND_WRITTEN.replace("\n", "\r\n"), entry)
        assert text == write(HAND_WRITTEN, entry).replace("\n", "\r\n")
        assert write(text, entry) == text


@pytest.mark.parametrize("start", ["const models: Model[] =", "let models=", "export default"])
@pytest.mark.parametrize("inside", ["", "\n", "{id:'a'}", "{id:'a'},", "{id:'a'} // c\n", "\n{id:'a'}, /* c */\n"])
def test_an_entry_finds_its_place_in_lists_of_every_shape(start: str, inside: str) -> None:
    text = write(f"{start} [{inside}]", ENTRY)
    assert ids(text) == [*(["a"] if "a" in inside else []), "tiny"]
    assert write(text, ENTRY) == text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no list of models"),
        ("const others = []", "no list of models"),
        ("function f() { const models = [] }", "no list of models"),
        ("const models = load()", "`models` is no list"),
        ("declare const models: Model[]\nconst others = []", "`models` is no list"),
        ("const models = [", "the list of models has no end"),
        ("const models = [{id: 'a']", "a ']' that closes nothing"),
        ("const models = [{id: 'a'}, ...others]", "an entry that is no object"),
        ("const models = [{id: 'a'} as Model]", "an entry that is no object"),
        ("const models = [{id: 'a'},, {id: 'b'}]", "an empty place"),
        ("const models = [{name: 'a'}]", "the entry at line 1 has no id"),
        ("const models = [{id: 'a' + b}]", "the entry at line 1 has no id"),
        ("const models = [{id: `a${b}`}]", "the entry at line 1 has no id"),
        ("const models = [{id: 'a', id: 'b'}]", "the entry at line 1 has no id"),
        ("const models = [{id: 'a', ...rest}]", "a property that is not `name: value`"),
        ("const models = [{id: 'a', ['i' + 'd']: 'b'}]", "a property that is not `name: value`"),
        ("const models = [{id: 'a', name}]", "a property that is not `name: value`"),
        ("const models = [{id: 'a\n'}]", "a string has no end"),
        ("const models = [{id: `a}]", "a template has no end"),
        ("/* const models = []", "a comment has no end"),
        ('const r = /["]/, models = []', "a slash may begin a regular expression"),
        ("const models = [{id: 'tiny'}, {id: 'tiny'}]", "'tiny' is there twice"),
    ],
)
def test_what_is_not_certain_is_refused_with_its_line(text: str, fault: str) -> None:
    with pytest.raises(FormatError, match=re.escape(fault)) as caught:
        write(text, ENTRY)
    assert (caught.value.where or "").startswith("models.ts, line")


@pytest.mark.parametrize(
    ("inside", "todo"),
    [
        ("{id: 'a'}, ...others", "write out in its place the entries that it spreads"),
        ("{id: 'a'} as Model", "leave out what follows its last brace"),
        ("made('a')", "write the entry itself in its place"),
        ("{id: 'a', ...rest}", "write out in its place the properties that it spreads"),
        ("{id: 'a', ['i' + 'd']: 'b'}", "write the name itself, in quotes if need be"),
        ("{id: 'a', name}", "write it as `name: value`"),
        ("{id: made()}", 'write it once, as id: "..."'),
        ("{id: 'a', like: /tiny/}", "write a regular expression as new RegExp(...)"),
    ],
)
def test_what_is_refused_is_told_how_to_be_rewritten(inside: str, todo: str) -> None:
    with pytest.raises(FormatError) as caught:
        write(f"const models = [\n{inside}\n]", ENTRY)
    assert caught.value.where == "models.ts, line 2"
    assert (caught.value.todo or "").startswith(todo)


def test_a_name_that_would_be_no_property_is_refused() -> None:
    module = EntryModule(key="__proto__", count=1, type="block")
    with pytest.raises(FormatError, match="__proto__"):
        write(EMPTY_MODELS, ENTRY.model_copy(update={"modules": (module,)}))


@given(
    st.text(max_size=30), st.text(max_size=30), st.text(min_size=1, max_size=20).filter(lambda key: key != "__proto__")
)
def test_nothing_that_a_config_says_leaves_its_string_or_comment(name: str, remark: str, key: str) -> None:
    module = EntryModule(key=key, count=1, type="layer", definitions=(name,))
    entry = ModelEntry(id="x", name="x", description=name, modules=(module,), remarks=(remark,))
    text = write(HAND_WRITTEN, entry)
    (written,) = (found for found in read_models(text, where="models.ts").entries if found.id == "x")
    assert written.is_intact
    assert written.definitions == (name,)
    assert ids(text) == ["a", "bc", "x"]


TRIVIA = st.sampled_from(["", " ", "\n", "\t", "/* ] } */", "// it's [\n", "/**/", "\r\n"])
VALUES = st.sampled_from(["1", "'}'", '"]"', "`${'}'}]`", "[1, [2]]", "{ a: { b: '{' } }", "-1e3", "f(x)", "`\\``"])


@st.composite
def entries(draw: st.DrawFn) -> str:
    pieces = [f"id:{draw(TRIVIA)}'{draw(st.sampled_from('abcdef'))}'"]
    pieces += [f"{draw(TRIVIA)}p{index}{draw(TRIVIA)}: {value}" for index, value in enumerate(draw(st.lists(VALUES)))]
    return "{" + ",".join(draw(st.permutations(pieces))) + draw(st.sampled_from(["", ","])) + draw(TRIVIA) + "}"


@given(st.lists(entries(), max_size=4), st.lists(TRIVIA, min_size=10, max_size=10), st.sampled_from(["", ","]))
def test_foreign_entries_stay_byte_for_byte(foreign: list[str], trivia: list[str], comma: str) -> None:
    inside = "".join(f"{trivia[index]}{entry}{trivia[index + 4]}," for index, entry in enumerate(foreign))
    text = f"const models = [{inside[:-1]}{comma if foreign else ''}{trivia[8]}]{trivia[9]}"
    new = write(text, ENTRY)
    (ours,) = (entry for entry in read_models(new, where="models.ts").entries if entry.id == "tiny")
    kept = [entry for entry in read_models(new, where="models.ts").entries if entry.id != "tiny"]
    assert [new[entry.start : entry.end] for entry in kept] == foreign
    without = new[: ours.start].rstrip() + new[ours.end + 1 :].lstrip()
    assert re.sub(r"[\s,]", "", without) == re.sub(r"[\s,]", "", text)
    replaced = write(new, OTHER)
    assert (replaced[: ours.start], replaced[-len(new[ours.end :]) :]) == (new[: ours.start], new[ours.end :])
