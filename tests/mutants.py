"""Small faults that may be put into a module's text, for the scripts that count how many of them are noticed."""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
SWAPS = [
    ("min", "max"),
    ("amin", "amax"),
    ("argmin", "argmax"),
    ("minimum", "maximum"),
    ("any", "all"),
    ("sum", "mean"),
]
NAMES = dict(SWAPS) | {new: old for old, new in SWAPS}
NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.arguments)


@dataclass(frozen=True)
class Mutant:
    """``old``, which lies at ``start:end`` of the module's text, is replaced by ``new``."""

    path: str
    line: int
    function: str
    kind: str
    old: str
    new: str
    start: int
    end: int

    @property
    def key(self) -> str:
        return f"{self.path}:{self.line} {self.old} -> {self.new} at {self.start}"

    @property
    def package(self) -> str:
        """The folder under the package's root, or nothing for its files."""
        return Path(self.path).parts[1] if len(Path(self.path).parts) > 2 else ""

    def apply(self, text: bytes) -> bytes:
        return text[: self.start] + self.new.encode() + text[self.end :]


def changed(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Kinds of change to this very expression, not to its parts, and the result of each."""
    other = copy.deepcopy(node)
    match other:
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            other.op = OPERATORS[type(op)]()  # type: ignore[assignment]
            yield "arithmetic", other
        case ast.Compare(ops=[op]):
            other.ops = [OPERATORS[type(op)]()]  # type: ignore[list-item]
            yield "comparison", other
        case ast.BoolOp(op=op):
            other.op = OPERATORS[type(op)]()  # type: ignore[assignment]
            yield "and/or", other
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield "sign", operand
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield "constant", ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield "constant", ast.Constant(2 * value or 1.0)
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in NAMES:
            setattr(other.func, "attr" if isinstance(other.func, ast.Attribute) else "id", NAMES[name])
            yield "reduction", other


def expressions(node: ast.AST, apart: Callable[[ast.AST], bool]) -> Iterator[ast.expr]:
    """The expressions of a function's own code: no nested functions, defaults, annotations, nor what is apart."""
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or field in ("annotation", "returns", "decorator_list"):
                continue
            if isinstance(child, NESTED) or apart(child):
                continue
            if isinstance(child, ast.expr):
                yield child
            yield from expressions(child, apart)


def is_message(node: ast.AST) -> bool:
    return isinstance(node, ast.Raise | ast.JoinedStr) or (isinstance(node, ast.Call) and speaks(node))


def speaks(call: ast.Call) -> bool:
    """A call that takes a message: its arguments are text, or what the text tells."""
    return any(isinstance(part, ast.JoinedStr) for part in call.args) or ast.unparse(call.func) in (
        "cast",
        "warnings.warn",
    )


def conditions(function: ast.AST) -> set[ast.expr]:
    return {node.test for node in ast.walk(function) if isinstance(node, ast.If | ast.IfExp | ast.While)}


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{child.name}".lstrip(".")
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, child
        yield from functions(child, name)


def written(new: ast.expr, old: ast.expr) -> str:
    """The new expression's text, in brackets if it is an operation where there was none."""
    text = ast.unparse(new)
    return f"({text})" if isinstance(new, ast.BinOp | ast.BoolOp) and type(new) is not type(old) else text


def mutants(
    path: Path,
    parts: Callable[[ast.AST], Iterator[tuple[str, ast.AST]]] = functions,
    changes: Callable[[ast.expr], Iterator[tuple[str, ast.expr]]] = changed,
    apart: Callable[[ast.AST], bool] = is_message,
) -> dict[str, list[Mutant]]:
    """All mutants of a module, by function, or by other parts of it."""
    text = path.read_bytes()
    lines = text.splitlines(keepends=True)
    starts = [sum(map(len, lines[:i])) for i in range(len(lines))]
    found: dict[str, list[Mutant]] = {}
    for name, function in parts(ast.parse(text)):
        tests, here = conditions(function), []
        for node in expressions(function, apart):
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
            results = [(kind, written(new, node)) for kind, new in changes(node)]
            if node in tests and not results:
                results.append(("condition", f"not ({ast.unparse(node)})"))
            for kind, new in results:
                place = path.relative_to(ROOT).as_posix()
                here.append(Mutant(place, node.lineno, name, kind, ast.unparse(node), new, start, end))
        if here:
            found[f"{name}:{here[0].line}"] = here
    return found


def differs(mutant: Mutant) -> bool:
    """Whether the new text is Python, and other Python: an expression printed anew may need brackets it has not."""
    text = (ROOT / mutant.path).read_bytes()
    try:
        tree = ast.parse(mutant.apply(text))
    except SyntaxError:
        return False
    return ast.dump(tree) != dumped(text)


@cache
def dumped(text: bytes) -> str:
    return ast.dump(ast.parse(text))
