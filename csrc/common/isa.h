// Which instruction set the CPU kernels use, chosen at run time.
#pragma once

namespace mixer_kernels {

// kAmx runs the code of kAvx512Bf16, with its bfloat16 matrix products in PyTorch's brgemm.
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The best of what the CPU has, unless MIXER_KERNELS_ISA=baseline|avx2|avx512|avx512_bf16|amx asks for another that it
// can run (read at every call: tests walk it). brgemm runs wherever avx512_bf16 does, so amx can be asked for there.
Isa cpu_isa();

const char* isa_name(Isa isa);

// Picks between the copies of one function that foreach_isa.h compiled.
template <typename Function>
Function* select_isa(Function* baseline, Function* avx2, Function* avx512, Function* avx512_bf16) {
  switch (cpu_isa()) {
    case Isa::kAmx:
    case Isa::kAvx512Bf16:
      return avx512_bf16;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    default:
      return baseline;
  }
}

template <typename Function>
Function* select_isa(Function* baseline, Function* avx2, Function* avx512) {
  return select_isa(baseline, avx2, avx512, avx512);
}

}  // namespace mixer_kernels
