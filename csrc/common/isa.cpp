#include "common/isa.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace mixer_kernels {
namespace {

Isa detect() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return Isa::kAvx2;
  }
#endif
  return Isa::kBaseline;
}

}  // namespace

Isa cpu_isa() {
  static const Isa detected = detect();
  const char* cap = std::getenv("MIXER_KERNELS_ISA");
  if (cap != nullptr) {
    for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
      if (std::strcmp(cap, isa_name(isa)) == 0) {
        return std::min(isa, detected);
      }
    }
  }
  return detected;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace mixer_kernels
