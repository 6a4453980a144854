"""Eight numbers side by side as one value inside a kernel, with the arithmetic of its elements.

LLVM makes vector code of a loop only where it can prove that no two arrays overlap, which it cannot where a table says which
rows to add. These values are vectors from the start, on every CPU: in one instruction where it has them as wide, else in
several. Each element goes through the same IEEE (or wrapping 32-bit) operations that a scalar would.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import lower_builtin, models, register_model, type_callable

from hubq.formats.gguf.encode.bits import intrinsic

WIDTH = 8


class Vector(types.Type):
    """The numba type of WIDTH elements of one scalar type."""

    def __init__(self, element: types.Type, code: ir.Type) -> None:
        super().__init__(name=f"{element}x{WIDTH}")
        self.element, self.code = element, ir.VectorType(code, WIDTH)


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, kind.code)


FLOATS = Vector(types.float32, ir.FloatType())
INTEGERS = Vector(types.int32, ir.IntType(32))
TRUTHS = Vector(types.boolean, ir.IntType(1))
_OF = {kind.element: kind for kind in (FLOATS, INTEGERS)}


def _splat(builder, kind, number):
    first = builder.insert_element(ir.Constant(kind.code, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(INTEGERS.code, [0] * WIDTH))


def _address(context, builder, array, data, index, kind):
    start = builder.gep(context.make_array(array)(context, builder, data).data, [index])
    return builder.bitcast(start, kind.code.as_pointer())


@intrinsic
def load(typing, array, index):
    """The vector array[index : index + WIDTH] of a flat, contiguous float32 or int32 array; nothing checks the bounds."""
    kind = _OF[array.dtype]

    def build(context, builder, signature, arguments):
        return builder.load(_address(context, builder, array, *arguments, kind), align=4)

    return kind(array, types.intp), build


@intrinsic
def store(typing, array, index, vector):
    """array[index : index + WIDTH] = vector, of a flat, contiguous array; nothing checks the bounds."""

    def build(context, builder, signature, arguments):
        builder.store(arguments[2], _address(context, builder, array, *arguments[:2], vector), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), build


@intrinsic
def splat(typing, number):
    """The vector with `number`, a float32 or int32, in every place."""
    kind = _OF[number]
    return kind(number), lambda context, builder, signature, arguments: _splat(builder, kind, *arguments)


@intrinsic
def where(typing, mask, yes, no):
    """Per place: `yes` where the mask is true, else `no`."""
    return yes(mask, yes, yes), lambda context, builder, signature, arguments: builder.select(*arguments)


@intrinsic
def bits(typing, vector):
    """The bits of floats, as integers."""
    return INTEGERS(FLOATS), lambda context, builder, signature, arguments: builder.bitcast(*arguments, INTEGERS.code)


@intrinsic
def floats(typing, vector):
    """Integers as floats, rounded where need be."""
    return FLOATS(INTEGERS), lambda context, builder, signature, arguments: builder.sitofp(*arguments, FLOATS.code)


@intrinsic
def mask(typing, vector):
    """Truths as the bits of an int64, the first one lowest."""

    def build(context, builder, signature, arguments):
        return builder.zext(builder.bitcast(*arguments, ir.IntType(WIDTH)), ir.IntType(64))

    return types.int64(TRUTHS), build


@intrinsic
def trailing_zeros(typing, number):
    """How many zeros follow the lowest one of an int64 that is not 0."""

    def build(context, builder, signature, arguments):
        return builder.cttz(*arguments, ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), build


@intrinsic
def lowest(typing, vector):
    """The lowest of the integers."""

    def build(context, builder, signature, arguments):
        kind, name = ir.FunctionType(ir.IntType(32), [INTEGERS.code]), f"llvm.vector.reduce.smin.v{WIDTH}i32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    return types.int32(INTEGERS), build


@intrinsic
def square_root(typing, vector):
    """Square roots of floats."""

    def build(context, builder, signature, arguments):
        kind = ir.FunctionType(FLOATS.code, [FLOATS.code])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{WIDTH}f32"), arguments)

    return FLOATS(FLOATS), build


def _define(symbol, instructions: dict[Vector, tuple[str, ...]], compares: bool = False) -> None:
    """Give an operator a meaning between two vectors of one type, or a vector and a scalar of its type."""

    @type_callable(symbol)
    def typer(context):
        def result(a, b):
            kind = a if isinstance(a, Vector) else b
            fits = kind in instructions and {a, b} <= {kind, kind.element}
            return (TRUTHS if compares else kind) if fits else None

        return result

    def build(context, builder, signature, arguments):
        kind = next(kind for kind in signature.args if isinstance(kind, Vector))
        name, *leading = instructions[kind]
        sides = [
            side if one == kind else _splat(builder, kind, side) for one, side in zip(signature.args, arguments, strict=True)
        ]
        return getattr(builder, name)(*leading, *sides)

    for pair in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(symbol, *pair)(build)


_define(operator.add, {FLOATS: ("fadd",), INTEGERS: ("add",)})
_define(operator.sub, {FLOATS: ("fsub",), INTEGERS: ("sub",)})
_define(operator.mul, {FLOATS: ("fmul",), INTEGERS: ("mul",)})
_define(operator.truediv, {FLOATS: ("fdiv",)})
_define(operator.and_, {INTEGERS: ("and_",), TRUTHS: ("and_",)})
_define(operator.or_, {INTEGERS: ("or_",), TRUTHS: ("or_",)})
_define(operator.xor, {INTEGERS: ("xor",)})
_define(operator.lshift, {INTEGERS: ("shl",)})
_define(operator.rshift, {INTEGERS: ("ashr",)})
_define(operator.lt, {FLOATS: ("fcmp_ordered", "<"), INTEGERS: ("icmp_signed", "<")}, True)
_define(operator.gt, {FLOATS: ("fcmp_ordered", ">"), INTEGERS: ("icmp_signed", ">")}, True)
_define(operator.le, {FLOATS: ("fcmp_ordered", "<=")}, True)
_define(operator.eq, {INTEGERS: ("icmp_signed", "==")}, True)
_define(operator.ne, {INTEGERS: ("icmp_signed", "!=")}, True)
