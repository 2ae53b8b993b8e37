"""The activations and their derivatives, by the codes 0 None, 1 relu, 2 gelu (erf), 3 gelu_tanh."""

from __future__ import annotations

from mixer_kernels.ops._triton_jit import jit, tl


@jit
def activate(z, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr):
    """Return the activation of ``z``, float32; it will be rounded to DTYPE."""
    if ACTIVATION == 1:
        # Written so that NaN passes.
        z = tl.where(z <= 0.0, 0.0, z)
    elif ACTIVATION == 2:
        z *= _normal_cdf(z, DTYPE)
    elif ACTIVATION == 3:
        z *= tl.sigmoid(_twice_u(z))
    return z


@jit
def activate_with_derivative(z, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr):
    """Return the activation of ``z``, float32, and its derivative there; both will be rounded to DTYPE."""
    if ACTIVATION == 1:
        h = tl.where(z <= 0.0, 0.0, z)
        derivative = tl.where(z <= 0.0, 0.0, 1.0)
    elif ACTIVATION == 2:
        cdf = _normal_cdf(z, DTYPE)
        h = z * cdf
        # 1 / sqrt(2 pi)
        derivative = cdf + z * (0.3989422804014327 * tl.exp(-0.5 * z * z))
    elif ACTIVATION == 3:
        # The gate and one minus it, both from the exponential that cannot overflow: neither cancels.
        decay = tl.exp(-tl.abs(_twice_u(z)))
        upper = 1.0 / (1.0 + decay)
        lower = decay * upper
        gate = tl.where(z >= 0.0, upper, lower)
        h = z * gate
        # The derivative of 2u.
        slope = 1.5957691216057308 + 0.21406444881780076 * z * z
        derivative = gate + z * (upper * lower) * slope
    else:
        h = z
        derivative = tl.full(z.shape, 1.0, tl.float32)
    return h, derivative


@jit
def _normal_cdf(z, DTYPE: tl.constexpr):
    """Return the normal distribution function of ``z``."""
    if DTYPE.primitive_bitwidth < 32:
        # An odd polynomial, within 5e-5: well below what float16 and bfloat16 resolve, and in less than half of the
        # instructions. GELU takes more of them than the products do. It is lowered by what is left of it at -4.25, so
        # that below it is zero: there z multiplies it.
        z = tl.clamp(z, -4.25, 4.25)
        square = z * z
        odd = 4.586955e-11 * square - 4.539121e-09
        odd = odd * square + 1.9914127e-07
        odd = odd * square - 5.1522256e-06
        odd = odd * square + 8.8491215e-05
        odd = odd * square - 1.0788275e-03
        odd = odd * square + 9.7171878e-03
        odd = odd * square - 6.6186905e-02
        odd = odd * square + 3.9881745e-01
        cdf = tl.maximum(0.499998 + z * odd, 0.0)
    else:
        cdf = 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
    return cdf


@jit
def _twice_u(z):
    """Return 2u, where u = sqrt(2 / pi) (z + 0.044715 z^3): gelu_tanh is z (1 + tanh(u)) / 2, z times a gate of 2u."""
    return z * (1.5957691216057308 + 0.07135481627260025 * z * z)
