// Compiles the file named by MIXER_KERNELS_ISA_FILE once for each instruction set, in the namespaces
// mixer_kernels::{baseline, avx2, avx512}. One object file then carries every path, and no build flag differs.
// The named file holds functions only: what it needs is included before this header, outside the target regions,
// so that no shared inline function is ever compiled for an instruction set that the machine may lack.
// kVectorBytes is the width of a register there.

#ifndef MIXER_KERNELS_ISA_FILE
#error "define MIXER_KERNELS_ISA_FILE before including foreach_isa.h"
#endif

namespace mixer_kernels::baseline {
constexpr int kVectorBytes = 16;
#include MIXER_KERNELS_ISA_FILE
}  // namespace mixer_kernels::baseline

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif
namespace mixer_kernels::avx2 {
constexpr int kVectorBytes = 32;
#include MIXER_KERNELS_ISA_FILE
}  // namespace mixer_kernels::avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,bmi2,prefer-vector-width=512")
#endif
namespace mixer_kernels::avx512 {
constexpr int kVectorBytes = 64;
#include MIXER_KERNELS_ISA_FILE
}  // namespace mixer_kernels::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace mixer_kernels {
namespace avx2 = baseline;
namespace avx512 = baseline;
}  // namespace mixer_kernels

#endif
