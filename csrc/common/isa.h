// Which instruction set the CPU kernels use, chosen at run time.
#pragma once

namespace mixer_kernels {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best of what the CPU has, capped by MIXER_KERNELS_ISA=baseline|avx2|avx512 (read at every call: tests walk it).
Isa cpu_isa();

const char* isa_name(Isa isa);

// Picks between the copies of one function that foreach_isa.h compiled.
template <typename Function>
Function* select_isa(Function* baseline, Function* avx2, Function* avx512) {
  switch (cpu_isa()) {
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    default:
      return baseline;
  }
}

}  // namespace mixer_kernels
