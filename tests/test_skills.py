from __future__ import annotations

import re
from pathlib import Path

import pytest

from fib_tools import skills
from fib_tools.checks.dataset import FAMILIES
from fib_tools.docs import find_tools, render_document
from fib_tools.errors import DocumentTooLargeError, FormatError, MissingDependencyError, RequestError
from fib_tools.operations import JOB_TOOLS, OPERATIONS
from fib_tools.phases.onboard import OnboardResult
from fib_tools.phases.outcomes import DefineEntry
from fib_tools.skills import Skill, get_skill, list_skills, load_skill, skills_folder

ROOT = Path(__file__).parents[1]
SKILLS = list_skills(ROOT / "skills")
TOOLS = {operation.tool for operation in OPERATIONS if operation.tool} | {name for name, _, _ in JOB_TOOLS}
RULES = {rule.id for family in FAMILIES for rule in family.rules}

PARAMETERS = {
    "add-new-model": "--model-name --hf-repo-id --sglang-path",
    "add-reference-tests": "--definition-name --op-type --all --tolerance",
    "benchmark-kernels": "--definition-name --op-type --all --tolerance",
    "clone-repos": "--target-dir --refresh",
    "collect-workloads": "--model-name --definition-name --op-type --all",
    "discover-models": "--model-name --hf-repo-id --tp-list --ep-list --op-types --discover --refresh",
    "extract-kernel-definitions": (
        "--model-name --hf-repo-id --tp-list --ep-list --manual --op-types --dry-run --skip-existing"
    ),
    "extract-model-from-hf": "--model-name --hf-repo-id --output",
    "find-sglang-baseline": "--model-name --sglang-path",
    "generate-model-definition": "--model-name --config --output --sglang-impl",
    "onboard-model": (
        "--model-name --hf-repo-id --phases --dry-run --discover --skip-workload --submit-prs --tp-list --ep-list "
        "--op-types --skip-existing --refresh"
    ),
    "optimize-kernel": "--definition-name --op-type --model-name",
    "submit-onboarding-prs": "--manifest --model-name --definition-name --dry-run",
    "trace-model": "--model-name --op-types",
    "track-models": "--model-name --discover --refresh --refresh-status",
    "validate-dataset": "--definition-name --op-type --op-types --all",
}
"""What users know to type."""

KNOWN_TO_USERS = (
    "--model-name --hf-repo-id --phases --dry-run --discover --skip-workload --submit-prs --tp-list --ep-list --manual "
    "--op-types --skip-existing --definition-name --op-type --all --tolerance --target-dir --manifest --refresh"
)

PHASES = {
    0: "clone-repos",
    1: "discover-models",
    2: "extract-kernel-definitions",
    3: "collect-workloads",
    4: "submit-onboarding-prs",
}

each_skill = pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)


def _own_words(skill: Skill) -> str:
    return skill.body.partition("## Tools")[0]


def find_description_faults(text: str) -> list[str]:
    """Tell what keeps a description from being one that says when, and nothing else."""
    faults = []
    if not text.startswith("Use when "):
        faults.append("does not begin with 'Use when'")
    if not 100 <= len(text) <= 400:
        faults.append(f"{len(text)} characters")
    if re.search("[<>]", text):
        faults.append("angle brackets")
    if re.search(r"\b(I|we|you|your)\b", text):
        faults.append("not in the third person")
    return faults


def find_body_faults(body: str) -> list[str]:
    """Tell what a skill's text may not hold."""
    forbidden = {
        "a block of code": "```|~~~",
        "a dangerous command": r"rm -r|pkill|killall|sudo |curl ",
        "a path of one machine": r"(?<![\w.`])/(work|home|root|tmp|mnt|Users|data|opt|srv|var)\b",
    }
    faults = [name for name, pattern in forbidden.items() if re.search(pattern, body)]
    if body.count("$ARGUMENTS") != 1:
        faults.append(f"$ARGUMENTS {body.count('$ARGUMENTS')} times")
    return faults


def find_dead_links(text: str, folder: Path) -> list[str]:
    """Find relative links that go nowhere."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    return [target for target in targets if "://" not in target and not (folder / target).exists()]


def find_unknown_siblings(body: str) -> list[str]:
    """Find skills that a text hands on to, or sends the reader to, and that there are not."""
    named = re.findall(r"(?:^Hands on to|see|goes to|: ) ?([^.;\n]*)", body, re.MULTILINE)
    words = {word for part in named for word in re.findall(r"(?<![\w`/-])[a-z]+(?:-[a-z]+)+(?![\w`-])", part)}
    verbs = {skill.name.partition("-")[0] for skill in SKILLS}
    return sorted(word for word in words if word.partition("-")[0] in verbs and word not in PARAMETERS)


def test_there_is_a_skill_for_each_slash_command_that_users_know() -> None:
    assert [skill.name for skill in SKILLS] == sorted(PARAMETERS)


def test_every_parameter_that_users_know_belongs_to_a_skill() -> None:
    assert set(KNOWN_TO_USERS.split()) <= {name for text in PARAMETERS.values() for name in text.split()}


@each_skill
def test_a_skill_has_the_name_of_its_folder_and_says_when(skill: Skill) -> None:
    assert skill.name == skill.path.parent.name
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", skill.name)
    assert find_description_faults(skill.description) == []
    assert 0 < len(skill.argument_hint) <= 200


@each_skill
def test_a_skill_is_short(skill: Skill) -> None:
    assert len(skill.path.read_text(encoding="utf-8").splitlines()) <= 150
    assert len(skill.body.split()) <= 1000


def test_the_suite_is_short() -> None:
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.glob("skills/**/*.md")) < 1500


def test_onboarding_fits_its_part_of_the_context_budget() -> None:
    assert len(get_skill("onboard-model").body.encode()) <= 5 * 1024


@each_skill
def test_a_skill_leaves_the_doing_to_tools(skill: Skill) -> None:
    assert find_body_faults(skill.body) == []
    assert find_tools(skill.body), "a skill without a tool cannot do anything"


@each_skill
def test_a_skill_keeps_to_the_order_of_its_parts(skill: Skill) -> None:
    parts = re.findall(r"^## (.+)$", skill.body, re.MULTILINE)
    order = ["Before you start", "Steps", "Judge", "Stop and ask when", "Report", "Tools"]
    assert parts == [part for part in order if part in parts]
    assert {"Before you start", "Steps", "Judge", "Stop and ask when", "Tools"} <= set(parts)


@each_skill
def test_each_step_calls_a_tool_or_asks_for_a_command_that_is_none(skill: Skill) -> None:
    commands = [f"`fib {operation.verb}`" for operation in OPERATIONS if not operation.tool]
    steps = re.findall(r"^\d+\. (.+)$", skill.body, re.MULTILINE)
    assert steps
    for step in steps:
        assert find_tools(step) or any(command in step for command in commands), f"no tool in {step!r}"


@each_skill
def test_the_links_of_a_skill_go_somewhere(skill: Skill) -> None:
    assert find_dead_links(skill.body, skill.path.parent) == []
    assert find_unknown_siblings(_own_words(skill)) == []


@each_skill
def test_the_table_of_tools_is_up_to_date(skill: Skill) -> None:
    text = skill.path.read_text(encoding="utf-8")
    assert "<!-- tools: generated, do not edit -->" in text
    assert render_document(text) == text, "run: python -m fib_tools.docs"


@each_skill
def test_a_skill_names_only_tools_that_there_are(skill: Skill) -> None:
    assert set(find_tools(skill.body)) <= TOOLS


def test_every_tool_is_in_a_skill() -> None:
    assert {tool for skill in SKILLS for tool in find_tools(skill.body)} == TOOLS


@each_skill
def test_a_skill_waits_for_no_tool(skill: Skill) -> None:
    assert not set(re.findall(r"\bfib_\w+", skill.body)) - TOOLS, "a tool that there is not"


@each_skill
def test_a_skill_knows_the_parameters_that_users_type(skill: Skill) -> None:
    for parameter in PARAMETERS[skill.name].split():
        assert f"`{parameter}`" in _own_words(skill), parameter


@each_skill
def test_a_parameter_said_to_be_an_argument_of_the_same_name_is_one(skill: Skill) -> None:
    options = {
        option.name for entry in OPERATIONS if entry.tool in find_tools(skill.body) for option in entry.list_options()
    }
    said = [line for line in _own_words(skill).splitlines() if "of the same name" in line]
    for parameter in re.findall(r"`--([\w-]+)`", re.sub(r".*?: the model\.", "", "".join(said))):
        assert parameter.replace("-", "_") in options, parameter


@each_skill
def test_an_argument_that_a_parameter_becomes_is_one(skill: Skill) -> None:
    named = set(find_tools(skill.body))
    options = {option.name for entry in OPERATIONS if entry.tool in named for option in entry.list_options()}
    assert set(re.findall(r"in (?:the argument )?`([a-z_]+)`[;.,]", _own_words(skill))) <= options | {
        "checks",
        "fields",
    }


@each_skill
def test_a_skill_waits_for_long_tools(skill: Skill) -> None:
    long = {operation.tool for operation in OPERATIONS if operation.is_long}
    if long & set(find_tools(skill.body)):
        assert "`wait_seconds` 50" in skill.body
        assert "fib_get_job" in find_tools(skill.body)


@each_skill
def test_the_rules_and_families_that_a_skill_speaks_of_are_there(skill: Skill) -> None:
    families = {rule.partition(".")[0] for rule in RULES}
    for rule in re.findall(r"`([a-z]+\.[a-z_]+)`", skill.body):
        if rule.partition(".")[0] in families:
            assert rule in RULES
    for sentence in re.findall(r"the checks (.+?)[.;\n]", skill.body):
        for family in re.findall(r"`([a-z]+)`", sentence.partition(", the selection")[0]):
            assert family in families | {"executed", "limit", "wait_seconds"}


def test_the_parts_of_the_result_that_onboarding_asks_for_are_there() -> None:
    body = get_skill("onboard-model").body
    assert {"manifest_path", "sources", "defined"} <= OnboardResult.model_fields.keys()
    assert {"name", "status", "reason"} <= DefineEntry.model_fields.keys()
    for path in ("manifest_path", "sources", "defined.entries.name"):
        assert f"`{path}`" in body


def test_phases_have_the_numbers_that_the_operations_have() -> None:
    for operation in OPERATIONS:
        if operation.phase is not None:
            body = get_skill(PHASES[operation.phase]).body
            assert operation.tool in find_tools(body) if operation.tool else f"`fib {operation.verb}`" in body
    for skill in SKILLS:
        spoken = {int(number) for number in re.findall(r"[Pp]hase (\d)", skill.body)}
        own = {phase for phase, name in PHASES.items() if name == skill.name}
        assert spoken <= (PHASES.keys() if skill.name == "onboard-model" else own), skill.name


def test_the_description_check_sees_what_is_wrong() -> None:
    assert find_description_faults("I run <tools>.") == [
        "does not begin with 'Use when'",
        "14 characters",
        "angle brackets",
        "not in the third person",
    ]


def test_the_body_check_sees_what_is_wrong() -> None:
    body = "```sh\nrm -rf /home/someone/x\n```\n"
    assert find_body_faults(body) == [
        "a block of code",
        "a dangerous command",
        "a path of one machine",
        "$ARGUMENTS 0 times",
    ]


def test_the_link_checks_see_dead_links(tmp_path: Path) -> None:
    (tmp_path / "there.md").touch()
    text = "[a](there.md#part) [b](gone.md) [c](https://example.org/x)"
    assert find_dead_links(text, tmp_path) == ["gone.md"]
    assert find_unknown_siblings("Hands on to validate-datasets, then onboard-model.\n") == ["validate-datasets"]


def test_a_skill_is_rendered_with_what_the_user_typed() -> None:
    skill = get_skill("onboard-model")
    text = skill.render("kimi-k2 --note $ARGUMENTS")
    assert "The user typed: kimi-k2 --note $ARGUMENTS\n" in text
    assert text.startswith("# ")
    assert text == skill.body.replace("$ARGUMENTS", "kimi-k2 --note $ARGUMENTS")


def test_an_unknown_skill_is_answered_with_the_nearest_first() -> None:
    with pytest.raises(RequestError, match="use onboard-model, add-new-model") as caught:
        get_skill("onboard-modle")
    assert all(skill.name in str(caught.value) for skill in SKILLS)


def _write(folder: Path, text: str) -> Path:
    path = folder / "bad" / "SKILL.md"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    return path


_GOOD = '---\nname: bad\ndescription: d\nargument-hint: "[x]"\n---\n\n# Title\n'


def test_a_skill_is_loaded_with_its_parts(tmp_path: Path) -> None:
    path = _write(tmp_path, _GOOD)
    assert list_skills(tmp_path) == (
        Skill(name="bad", description="d", argument_hint="[x]", body="# Title\n", path=path),
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# No frontmatter\n", "without frontmatter"),
        ("---\nname: bad\n# never closed\n", "without frontmatter"),
        (_GOOD.replace("description: d", "description: [unclosed"), "not YAML"),
        (_GOOD.replace("description: d", f"description: {'[' * 3000}"), "not YAML"),
        (_GOOD.replace("description: d", "description: !!python/name:os.system"), "not YAML"),
        (_GOOD.replace("description: d\n", ""), "other keys"),
        (_GOOD.replace("description: d", "description: d\ncolour: red"), "other keys"),
        (_GOOD.replace("description: d", "description: 3"), "other keys"),
        (_GOOD.replace("name: bad\ndescription: d", "- name\n- description"), "not YAML"),
        ("---\n- name\n---\nbody\n", "other keys"),
    ],
)
def test_a_malformed_skill_is_refused_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(FormatError, match=fault) as caught:
        load_skill(path)
    assert caught.value.where == str(path)


def test_a_skill_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, "")
    path.write_bytes(b"---\n\xff\n---\n")
    with pytest.raises(FormatError, match="UTF-8"):
        load_skill(path)


def test_an_enormous_skill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentTooLargeError):
        load_skill(_write(tmp_path, _GOOD + "x" * (64 << 10)))


def test_an_installed_package_has_its_skills_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fib_tools"
    monkeypatch.setattr(skills, "__file__", str(package / "skills.py"))
    (tmp_path / "skills" / "other").mkdir(parents=True)
    with pytest.raises(MissingDependencyError, match="pip install"):
        skills_folder()
    (package / "_skills" / "one").mkdir(parents=True)
    (package / "_skills" / "one" / "SKILL.md").touch()
    assert skills_folder() == package / "_skills"


def test_a_checkout_has_its_skills_beside_the_package() -> None:
    assert skills_folder() == ROOT / "skills"
