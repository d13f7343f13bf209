"""Products with fixed weights in float32 on the CPU, some rows at a time: sums stay in vector registers.

A tile is `ROWS` rows by one or two vectors of outputs. For each input the weights of those outputs are loaded once, the
inputs of the rows are spread over a vector each, and one fused multiply-add a row and vector adds to its sums. Rows may
lie anywhere, each at an address of its own, so a convolution multiplies the steps that it looks at where they are.

Every output is one chain of fused multiply-adds over the inputs in rising order that starts with the bias: its bits
depend neither on the batch, nor on a row's place in it, nor on the size of a tile or a vector.
"""

from __future__ import annotations

import platform
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.kernels import row_part

_FEATURES = llvm.get_host_cpu_features()
_WIDE = bool(_FEATURES.get("avx512f"))
FUSED = platform.machine() not in ("x86_64", "AMD64") or bool(
    _FEATURES.get("fma")
)  # else a product is rounded, then added
LANES = 16 if _WIDE else 8  # float32 in a vector
PART = 4 if _WIDE else 2  # rows of the smallest tile
ROWS = 3 * PART  # of the largest: with two vectors of each, sums fill the registers but for a few

_INT, _FLOAT = ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_BYTES = 4  # of a float32


class _Sums(NamedTuple):
    """What a loop carries: where it is, and the sums by row and vector."""

    at: Any  # the input of each row, counted from where the row begins
    weights: Any  # the address of its weights
    sums: list[Any]


def _tile(rows: int, vectors: int) -> Any:
    """Return the function `(x, to, weights, bias, taps, inputs, apart, relu)` for tiles of that size.

    Parameters
    ----------
    x, to : addresses of the addresses (rows,) where each row's inputs begin, and where its outputs are written.
    weights : address of (taps * inputs, vectors * LANES) float32.
    bias : address of (vectors * LANES,) float32.
    taps, inputs, apart : a row's inputs are `taps` runs of `inputs` values, which begin `apart` values apart.
    relu : whether what is below 0 becomes 0; NaN stays.
    """

    @intrinsic
    def tile(
        typingctx: Any,
        x: Any,
        to: Any,
        weights: Any,
        bias: Any,
        taps: Any,
        inputs: Any,
        apart: Any,
        relu: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _generate(builder, rows, vectors, args)
            return context.get_dummy_value()

        whole = types.intp
        return types.void(whole, whole, whole, whole, whole, whole, whole, types.boolean), generate

    return tile


def _generate(builder: Any, rows: int, vectors: int, args: Any) -> None:
    x, to, weights, bias, taps, inputs, apart, relu = args
    sources = [builder.inttoptr(_load(builder, x, r * 8, _INT), _FLOAT.as_pointer()) for r in range(rows)]
    start = [_load(builder, bias, v * LANES * _BYTES, _VECTOR) for v in range(vectors)]
    state = _Sums(_INT(0), weights, [start[v] for _ in range(rows) for v in range(vectors)])

    def tap(begin: _Sums, _: Any) -> _Sums:
        end = builder.add(begin.at, inputs)

        def add(now: _Sums, _: Any) -> _Sums:
            return _add_input(builder, sources, now, vectors)

        after = _loop(builder, begin, inputs, add)
        return after._replace(at=builder.add(builder.sub(end, inputs), apart))

    sums = _loop(builder, state, taps, tap).sums
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    for r in range(rows):
        target = _load(builder, to, r * 8, _INT)
        for v in range(vectors):
            total = sums[r * vectors + v]
            cut = builder.select(builder.fcmp_ordered("<", total, zero), zero, total)
            total = builder.select(relu, cut, total)
            pointer = builder.inttoptr(builder.add(target, _INT(v * LANES * _BYTES)), _VECTOR.as_pointer())
            builder.store(total, pointer, align=LANES * _BYTES)


def _add_input(builder: Any, sources: list[Any], now: _Sums, vectors: int) -> _Sums:
    """Add one input of each row, times its weights."""
    weights = [_load(builder, now.weights, v * LANES * _BYTES, _VECTOR) for v in range(vectors)]
    sums = []
    for r, source in enumerate(sources):
        value = builder.load(builder.gep(source, [now.at]), align=_BYTES)
        first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.IntType(32)(0))
        spread = builder.shuffle_vector(
            first, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        )
        sums += [_multiply_add(builder, spread, weights[v], now.sums[r * vectors + v]) for v in range(vectors)]
    return _Sums(builder.add(now.at, _INT(1)), builder.add(now.weights, _INT(vectors * LANES * _BYTES)), sums)


def _multiply_add(builder: Any, a: Any, b: Any, total: Any) -> Any:
    if FUSED:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        return builder.call(
            cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), [a, b, total]
        )
    return builder.fadd(builder.fmul(a, b), total)


def _load(builder: Any, base: Any, offset: int, kind: Any) -> Any:
    pointer = builder.inttoptr(builder.add(base, _INT(offset)), kind.as_pointer())
    return builder.load(pointer, align=LANES * _BYTES if kind is _VECTOR else 8)


def _loop(builder: Any, state: _Sums, count: Any, body: Any) -> _Sums:
    """Run `body(state, i) -> state` `count` times, and return the last state: phi nodes carry it."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    turn = builder.phi(_INT)
    carried = [builder.phi(value.type) for value in (state.at, state.weights, *state.sums)]
    builder.cbranch(builder.icmp_signed("<", turn, count), inside, after)
    builder.position_at_end(inside)
    now = _Sums(carried[0], carried[1], carried[2:])
    then = body(now, turn)
    following = builder.add(turn, _INT(1))
    end = builder.block
    builder.branch(head)
    for phi, first, later in zip(
        [turn, *carried],
        [_INT(0), state.at, state.weights, *state.sums],
        [following, then.at, then.weights, *then.sums],
        strict=True,
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(later, end)
    builder.position_at_end(after)
    return now


_ONE_1, _TWO_1, _THREE_1 = (_tile(parts * PART, 1) for parts in (1, 2, 3))
_ONE_2, _TWO_2, _THREE_2 = (_tile(parts * PART, 2) for parts in (1, 2, 3))


@row_part
def multiply(
    rows: int, vectors: int, x: int, to: int, weights: int, bias: int, taps: int, inputs: int, apart: int, relu: bool
) -> None:
    """Multiply a tile of `rows` (PART, 2 * PART or ROWS) by `vectors` (1 or 2); the rest as `_tile` says."""
    if vectors == 1:
        if rows == PART:
            _ONE_1(x, to, weights, bias, taps, inputs, apart, relu)
        elif rows == ROWS:
            _THREE_1(x, to, weights, bias, taps, inputs, apart, relu)
        else:
            _TWO_1(x, to, weights, bias, taps, inputs, apart, relu)
    elif rows == PART:
        _ONE_2(x, to, weights, bias, taps, inputs, apart, relu)
    elif rows == ROWS:
        _THREE_2(x, to, weights, bias, taps, inputs, apart, relu)
    else:
        _TWO_2(x, to, weights, bias, taps, inputs, apart, relu)
