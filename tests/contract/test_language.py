"""The language of the repository: plain prose, the standard words of the field, and small modules.

Prose is every docstring and comment of the product and the benchmarks, and every page. Texts are the string literals
of the product with three words or more, the prose of the tests, the template, the Makefile and the changelog. The rates
are hits per 10,000 words.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PERSONS = re.compile(r"\b(who|whoever|whom|he|him|his|she|somebody|nobody|anybody|everybody)\b", re.IGNORECASE)
ROUNDABOUT = re.compile(
    r"\b(anew|lest|of which|told|tells?|hears?|heard|beside|as good|comes? to|mends?|goes on|went on|stands?|stood|"
    r"for ever|what becomes of|at rest|sees to|seen to|is to|are to|but for)\b",
    re.IGNORECASE,
)
RIDDLE = re.compile(r"^test_(who|what|nobody|somebody|whoever)_|_whoever_|_nobody_|_somebody_|_who_")
MAX_TEST_NAME_CHARS = 90
MAX_MODULE_LINES = 700
MAX_FUNCTION_LINES = 60
MAX_SERVICE_MODULES = 16
MAX_SHARED_CLASS_NAMES = 3
MAX_DOCSTRING_WORDS = 20

PRIVATE_NAMES = frozenset(
    re.findall(
        r"\w+",
        """
        mind_queue keep_waiting look_after_run look_after log_fates take_holds follow_run follow_jobs show_run
        do_wide_work run_clock run_schedule tell_webhooks waits_api change_job hold_job hold_run mourn bury
        heard told_of decided_since judge judged attend sighting queue_up owned_by guarded settle_chunks let_go
        let_held_go let_some_go let_owners_go let_go_one look_whether_over carry_out tell_run_of_skips retake_slot
        hand_out_chunks hold_back standings_of standings standing id_at try_to_look_after why_nothing_goes_on
        cancel_the_rest claims_for_new claims_for_retry claims_at_release admit hand_over hand_over_again standstill
        clear_line put_off on_time arrived offer_upload ask_clock mend mended not_mended remedy patience hastily
        patiently
        place_in_line line_up let_in concerns_line comes_after workflow_place mutex_queues pardoned hands_out redefined
        passed_over sketch knots spelled understand has_past brings sendable left_out succeeding handed_over given_up
        contested look_again next_place prolong beside find_shown show_in_place place_of note_lost forget_held
        keep_beside listening note_day keep_day held_by_priority watched_by_status watch_expiry settle_early_outcomes
        told_apart still_time saboteur mortal restless pager former_secret former_until failed_tries look_at for_matcher
        awaited options_echo has_echo exactly_due_at decisions_open
        """,
    )
)
"""Names of earlier versions that an engineer of the field would not search for, without leading underscores."""


@cache
def listed() -> list[str]:
    """Return the paths of all files in git."""
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


@cache
def source(name: str) -> str:
    return (ROOT / name).read_text()


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(source(name))


def product() -> list[str]:
    return [name for name in listed() if name.endswith(".py") and name.startswith(("layers/", "src/", "functions/"))]


def modules_of_tests() -> list[str]:
    return [name for name in listed() if name.endswith(".py") and name.startswith("tests/")]


def code() -> list[str]:
    return [name for name in listed() if name.endswith(".py") and not name.startswith("tests/")]


def text_of(statement: ast.stmt) -> str | None:
    """Return the text of a statement that is a string literal: a docstring of a definition or an attribute."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return text
    return None


def definitions(name: str) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def prose(name: str) -> Iterator[str]:
    """Yield the docstrings and comments of a module."""
    for node in definitions(name):
        statements = node.body if isinstance(node, ast.Module | ast.ClassDef) else node.body[:1]
        yield from (text for text in map(text_of, statements) if text is not None)
    for token in tokenize.generate_tokens(io.StringIO(source(name)).readline):
        if token.type == tokenize.COMMENT and "noqa" not in token.string and "type:" not in token.string:
            yield token.string.lstrip("# ")


def literals(name: str) -> Iterator[str]:
    """Yield the string literals of a module with three words or more, without its docstrings."""
    docstrings = {
        id(node.body[0].value) for node in definitions(name) if node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree(name)):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docstrings and text.count(" ") > 1:
                yield text


def code_prose() -> str:
    return "\n".join(text for name in code() for text in prose(name))


def pages() -> str:
    """Return the text of the pages without their code blocks."""
    of_docs = [name for name in listed() if name.startswith("docs/") and name.endswith(".md")]
    return re.sub(
        r"```.*?```",
        "",
        "\n".join(map(source, [*of_docs, "README.md", "CONTRIBUTING.md", "SECURITY.md"])),
        flags=re.DOTALL,
    )


def texts() -> str:
    return "\n".join([
        *(text for name in product() for text in literals(name)),
        *(text for name in modules_of_tests() if name != "tests/contract/test_language.py" for text in prose(name)),
        *map(source, ["template.yaml", "Makefile", "CHANGELOG.md"]),
    ])  # fmt: skip


def rate(pattern: re.Pattern[str], text: str) -> float:
    return 10_000 * len(pattern.findall(text)) / len(re.findall(r"[A-Za-z']+", text))


@pytest.mark.parametrize(
    ("subject", "max_persons", "max_roundabout"),
    [(code_prose, 3, 15), (pages, 8, 20), (texts, 8, 20)],
    ids=["code", "pages", "texts"],
)
def test_prose_names_no_persons_and_uses_no_roundabout_phrases(
    subject: object, max_persons: float, max_roundabout: float
) -> None:
    assert callable(subject)
    text = subject()
    assert rate(PERSONS, text) <= max_persons, sorted(set(PERSONS.findall(text)))
    assert rate(ROUNDABOUT, text) <= max_roundabout, sorted(set(ROUNDABOUT.findall(text)))


def test_first_line_of_a_docstring_is_short() -> None:
    for name in product():
        for node in definitions(name):
            first_line = (ast.get_docstring(node) or "").partition("\n")[0]
            assert len(first_line.split()) <= MAX_DOCSTRING_WORDS, f"{name}: {first_line}"


def test_test_names_state_condition_and_outcome() -> None:
    for name in modules_of_tests():
        for node in definitions(name):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert not RIDDLE.search(node.name), node.name
                assert len(node.name) <= MAX_TEST_NAME_CHARS, node.name


def test_product_uses_no_name_of_the_old_vocabulary() -> None:
    for name in product():
        identifiers = set(Path(name).parts) | {Path(name).stem}
        for node in ast.walk(tree(name)):
            match node:
                case ast.Name(id=identifier) | ast.Attribute(attr=identifier) | ast.arg(arg=identifier):
                    identifiers.add(identifier)
                case ast.ClassDef(name=identifier) | ast.FunctionDef(name=identifier) | ast.alias(name=identifier):
                    identifiers.add(identifier)
                case ast.keyword(arg=str(identifier)):
                    identifiers.add(identifier)
        old_names = {identifier.lstrip("_").lower() for identifier in identifiers} & PRIVATE_NAMES
        assert not old_names, f"{name} uses {sorted(old_names)}; see docs/glossary.md"


def test_public_classes_have_distinct_names() -> None:
    modules_by_class = defaultdict(set)
    for name in product():
        if "/vigil_core/" in name:
            for node in tree(name).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    modules_by_class[node.name].add(name)
    shared = {name: modules for name, modules in modules_by_class.items() if len(modules) > 1}
    assert len(shared) <= MAX_SHARED_CLASS_NAMES, shared


def test_services_are_grouped_by_capability() -> None:
    ungrouped = [name for name in product() if re.search(r"/vigil_core/services/(?!__init__)[^/]+\.py$", name)]
    assert len(ungrouped) <= MAX_SERVICE_MODULES


def test_modules_and_functions_stay_small() -> None:
    for name in product():
        assert len(source(name).splitlines()) <= MAX_MODULE_LINES, name
        for node in definitions(name):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = node.body[0] if text_of(node.body[0]) is not None else None
                lines = (node.end_lineno or 0) - node.lineno + 1
                lines -= 0 if docstring is None else (docstring.end_lineno or 0) - docstring.lineno + 1
                assert lines <= MAX_FUNCTION_LINES, f"{name}: {node.name}"
