"""Vectors of numbers in numba code: LLVM's own, which become the registers of whatever processor there is.

A vector holds ``V`` numbers of an array's type. ``load(a, i)`` reads those that begin ``i`` numbers after the first of
the array ``a``, whatever its shape, and ``store(a, i, vector)`` writes them; nothing checks bounds. ``address(a, i)``
stands for an array from there on: a function is called faster with it. Vectors know ``+``, ``-`` and ``*``. What a sum
of products is rounded to is left to the processor, which may fuse them.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, overload, register_model

V = 16
FUSE = ("contract", "reassoc", "nsz")
# in numba's words; not a number and infinity stay what they are
OPTIONS: dict[str, Any] = {"fastmath": set(FUSE), "error_model": "numpy", "nogil": True}
# for what takes a tuple of arrays: to hand it over takes longer than to use it
INLINE = OPTIONS | {"forceinline": True}


class Vector(types.Type):  # type: ignore[misc]
    """``V`` numbers of the type ``dtype``."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(f"Vector({dtype})")

    @property
    def ir(self) -> Any:
        """The type in LLVM's words."""
        return ir.VectorType(ir.FloatType() if self.dtype == types.float32 else ir.DoubleType(), V)

    def constant(self, number: float) -> Any:
        """The same number ``V`` times."""
        return ir.Constant(self.ir, [number] * V)

    def function(self, builder: Any, name: str, result: Any, *arguments: Any) -> Any:
        """LLVM's function of that name for such vectors."""
        name = f"llvm.{name}.v{V}f{self.dtype.bitwidth}"
        return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    """A vector is one value of LLVM's."""

    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, fe_type.ir)


def pointer(context: Any, builder: Any, kind: Any, a: Any, i: Any) -> Any:
    """Where the number lies that is i numbers after the first of an array, or of an address."""
    first = a if isinstance(kind, types.CPointer) else context.make_array(kind)(context, builder, a).data
    return builder.gep(first, [i])


def load_at(builder: Any, vector: Vector, address: Any) -> Any:
    """The vector that begins at an address of any alignment."""
    value = builder.load(builder.bitcast(address, vector.ir.as_pointer()))
    value.align = vector.dtype.bitwidth // 8
    return value


def store_at(builder: Any, vector: Vector, address: Any, value: Any) -> None:
    """Writes a vector to an address of any alignment."""
    builder.store(value, builder.bitcast(address, vector.ir.as_pointer())).align = vector.dtype.bitwidth // 8


def repeat(builder: Any, vector: Vector, number: Any) -> Any:
    """One number ``V`` times."""
    undefined = ir.Constant(vector.ir, ir.Undefined)
    one = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), V), None))


@intrinsic
def address(typingctx: Any, a: Any, i: Any) -> Any:
    """Where the number ``i`` numbers after the first of ``a`` lies."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return pointer(context, builder, sig.args[0], *args)

    return types.CPointer(a.dtype)(a, types.int64), codegen


@intrinsic
def to_address(typingctx: Any, number: Any, a: Any) -> Any:
    """The address that a number is, of numbers of the type of ``a``."""
    kind = types.CPointer(a.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.int64, a), codegen


@intrinsic
def load(typingctx: Any, a: Any, i: Any) -> Any:
    """The vector ``i`` numbers after the first of ``a``."""
    vector = Vector(a.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return load_at(builder, vector, pointer(context, builder, sig.args[0], *args))

    return vector(a, types.int64), codegen


@intrinsic
def store(typingctx: Any, a: Any, i: Any, vector: Any) -> Any:
    """Writes a vector ``i`` numbers after the first of ``a``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        store_at(builder, vector, pointer(context, builder, sig.args[0], *args[:2]), args[2])
        return context.get_dummy_value()

    return types.void(a, types.int64, vector), codegen


@intrinsic
def at(typingctx: Any, a: Any, i: Any) -> Any:
    """The number ``i`` numbers after the first of ``a``, ``V`` times."""
    vector = Vector(a.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return repeat(builder, vector, builder.load(pointer(context, builder, sig.args[0], *args)))

    return vector(a, types.int64), codegen


@intrinsic
def splat(typingctx: Any, a: Any, number: Any) -> Any:
    """A number ``V`` times, of the type of the array ``a``."""
    vector = Vector(a.dtype)
    return vector(a, a.dtype), lambda context, builder, sig, args: repeat(builder, vector, args[1])


@intrinsic
def zeros(typingctx: Any, a: Any) -> Any:
    """Zeros of the type of the array ``a``."""
    vector = Vector(a.dtype)
    return vector(a), lambda context, builder, sig, args: vector.constant(0)


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fadd(builder.fmul(args[0], args[1], flags=FUSE), args[2], flags=FUSE)

    return a(a, a, a), codegen


@intrinsic
def total(typingctx: Any, a: Any) -> Any:
    """The sum of a vector's numbers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = a.ir.element
        function = a.function(builder, "vector.reduce.fadd", scalar, scalar, a.ir)
        return builder.call(function, [ir.Constant(scalar, -0.0), args[0]], fastmath=FUSE)

    return a.dtype(a), codegen


@intrinsic
def highest(typingctx: Any, a: Any) -> Any:
    """The highest of a vector's numbers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function = a.function(builder, "vector.reduce.fmax", a.ir.element, a.ir)
        return builder.call(function, args, fastmath=("nnan",))

    return a.dtype(a), codegen


@intrinsic
def maximum(typingctx: Any, a: Any, b: Any) -> Any:
    """Number by number the higher one; that of ``b`` where one of them is none."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[0], args[1])

    return a(a, a), codegen


@intrinsic
def where_positive(typingctx: Any, test: Any, a: Any) -> Any:
    """The numbers of ``a`` where those of ``test`` are above 0 (or none), and 0 elsewhere."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = test.constant(0)
        return builder.select(builder.fcmp_unordered(">", args[0], zero), args[1], zero)

    return a(test, a), codegen


@intrinsic
def floor(typingctx: Any, a: Any) -> Any:
    """The next lower whole numbers."""
    return a(a), lambda context, builder, sig, args: builder.call(a.function(builder, "floor", a.ir, a.ir), args)


@intrinsic
def power_of_two(typingctx: Any, a: Any) -> Any:
    """2**a of whole numbers within the type's exponents."""
    bits, mantissa, bias = (32, 23, 127) if a.dtype == types.float32 else (64, 52, 1023)
    integers = ir.VectorType(ir.IntType(bits), V)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        exponent = builder.add(builder.fptosi(args[0], integers), ir.Constant(integers, [bias] * V))
        return builder.bitcast(builder.shl(exponent, ir.Constant(integers, [mantissa] * V)), a.ir)

    return a(a), codegen


def _define(operation: Any, name: str) -> None:
    """Teaches numba an operation of two vectors."""

    @infer_global(operation)
    class Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, name)(*args, flags=FUSE)

    lower_builtin(operation, Vector, Vector)(lower)


for _operation, _name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _define(_operation, _name)


def exp(x: Any, a: Any) -> Any:
    """e**x of numbers x <= 0 of the type of the array ``a``; 0 where that is below the smallest normal number."""


@overload(exp, jit_options=INLINE)
def _exp(x: Any, a: Any) -> Any:
    """As in Cephes (Moshier 1992): 2**k times e**r with |r| <= log(2) / 2, r in two parts, e**r by a polynomial."""
    if a.dtype == types.float32:
        high, low, least = 0.693359375, -2.12194440e-4, -87.0
        first, *others = (
            1.9875691500e-4,
            1.3981999507e-3,
            8.3334519073e-3,
            4.1665795894e-2,
            1.6666665459e-1,
            5.0000001201e-1,
        )
    else:
        high, low, least = 0.693145751953125, 1.4286068203094172e-06, -708.0
        first, *others = (1 / math.factorial(n) for n in range(13, 1, -1))
    rest, log2_e, lowest = tuple(others), 1 / math.log(2), least / math.log(2) - 1

    def function(x: Any, a: Any) -> Any:
        number = a.dtype.type
        k = floor(fma(x, splat(a, number(log2_e)), splat(a, number(0.5))))
        r = fma(k, splat(a, number(-low)), fma(k, splat(a, number(-high)), x))
        p = splat(a, number(first))
        for coefficient in rest:
            p = fma(p, r, splat(a, number(coefficient)))
        p = fma(p, r * r, r + splat(a, number(1)))
        return where_positive(x - splat(a, number(least)), p * power_of_two(maximum(k, splat(a, number(lowest)))))

    return function
