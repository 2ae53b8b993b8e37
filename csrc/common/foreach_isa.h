// Compiles the file named by MIXER_KERNELS_ISA_FILE once for each instruction set, in the namespaces
// baseline, avx2 and avx512, and in avx512_bf16 too where MIXER_KERNELS_ISA_BF16 is defined. One object file then
// carries every path, and no build flag differs. They are nobody else's: another file may use the same names. The named
// file holds functions only: what it needs is included before this header, outside the target regions, so that no
// shared inline function is ever compiled for an instruction set that the machine may lack. kVectorBytes is the width
// of a register there; kHasBf16Dot whether there is a dot product of bfloat16 pairs. Where it is, there may be the tile
// registers of AMX too, and MIXER_KERNELS_ISA_AMX is defined: has_amx() tells.

#ifndef MIXER_KERNELS_ISA_FILE
#error "define MIXER_KERNELS_ISA_FILE before including foreach_isa.h"
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mixer_kernels {
namespace {
namespace baseline {
constexpr int kVectorBytes = 16;
constexpr bool kHasBf16Dot = false;
#include MIXER_KERNELS_ISA_FILE
}  // namespace baseline
}  // namespace
}  // namespace mixer_kernels

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif
namespace mixer_kernels {
namespace {
namespace avx2 {
constexpr int kVectorBytes = 32;
constexpr bool kHasBf16Dot = false;
#include MIXER_KERNELS_ISA_FILE
}  // namespace avx2
}  // namespace
}  // namespace mixer_kernels
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
namespace mixer_kernels {
namespace {
namespace avx512 {
constexpr int kVectorBytes = 64;
constexpr bool kHasBf16Dot = false;
#include MIXER_KERNELS_ISA_FILE
}  // namespace avx512
}  // namespace
}  // namespace mixer_kernels
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(MIXER_KERNELS_ISA_BF16)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c,bmi2,prefer-vector-width=512")
#endif
namespace mixer_kernels {
namespace {
namespace avx512_bf16 {
constexpr int kVectorBytes = 64;
constexpr bool kHasBf16Dot = true;
#define MIXER_KERNELS_ISA_AMX
#include MIXER_KERNELS_ISA_FILE
#undef MIXER_KERNELS_ISA_AMX
}  // namespace avx512_bf16
}  // namespace
}  // namespace mixer_kernels
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#else

namespace mixer_kernels {
namespace {
namespace avx2 = baseline;
namespace avx512 = baseline;
#if defined(MIXER_KERNELS_ISA_BF16)
namespace avx512_bf16 = baseline;
#endif
}  // namespace
}  // namespace mixer_kernels

#endif
