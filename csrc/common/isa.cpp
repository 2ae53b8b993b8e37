#include "common/isa.h"

#include <ATen/cpu/Utils.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mixer_kernels {
namespace {

constexpr Isa kAll[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx};

#if defined(__x86_64__)
bool has_amx_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kExtendedFeatures = 7, kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if (!__get_cpuid_count(kExtendedFeatures, 0, &eax, &ebx, &ecx, &edx)) {
    return false;
  }
  // init_amx asks the kernel for the tile registers.
  return (edx & kAmxBf16) && (edx & kAmxTile) && at::cpu::init_amx();
}
#endif

Isa best_supported() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    if (!__builtin_cpu_supports("avx512bf16")) {
      return Isa::kAvx512;
    }
    return has_amx_bf16() ? Isa::kAmx : Isa::kAvx512Bf16;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return Isa::kAvx2;
  }
#endif
  return Isa::kBaseline;
}

Isa supported_isa() {
  static const Isa supported = best_supported();
  return supported;
}

// Cores of Intel that have dot products of bfloat16 pairs make four multiply-adds of float32 in the time of one, twice
// as many products: where their tile registers are hidden, as in some virtual machines, bfloat16 is multiplied as
// float32.
Isa fastest_isa() {
#if defined(__x86_64__)
  static const bool is_intel = __builtin_cpu_is("intel");
  if (is_intel && supported_isa() == Isa::kAvx512Bf16) {
    return Isa::kAvx512;
  }
#endif
  return supported_isa();
}

// The name of the instruction set that is asked for, or null.
const char* asked_isa() { return std::getenv("MIXER_KERNELS_ISA"); }

bool is_emulated_amx(const char* name) { return name != nullptr && std::strcmp(name, "amx_emulated") == 0; }

}  // namespace

bool has_amx() { return supported_isa() == Isa::kAmx && !is_emulated_amx(asked_isa()); }

Isa cpu_isa() {
  const char* asked = asked_isa();
  if (asked != nullptr) {
    const Isa best = supported_isa() == Isa::kAvx512Bf16 ? Isa::kAmx : supported_isa();
    if (is_emulated_amx(asked)) return best;
    for (Isa isa : kAll) {
      if (std::strcmp(asked, isa_name(isa)) == 0) {
        return std::min(isa, best);
      }
    }
  }
  return fastest_isa();
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace mixer_kernels
