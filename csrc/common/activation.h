// The activations between two products.
#pragma once

namespace mixer_kernels {

// The codes of mixer_kernels/ops/_activation.py. kGelu is the exact form with erf, kGeluTanh its approximation.
enum class Activation { kNone, kRelu, kGelu, kGeluTanh };

}  // namespace mixer_kernels
