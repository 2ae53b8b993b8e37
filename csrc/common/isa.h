// Which instruction set the CPU kernels use, chosen at run time.
#pragma once

namespace mixer_kernels {

// kAmx runs the code of kAvx512Bf16, with matrix products of bfloat16 and of float32 in tile registers.
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The fastest of what the CPU has, unless MIXER_KERNELS_ISA=baseline|avx2|avx512|avx512_bf16|amx asks for another that
// it can run (read at every call: tests walk it). Where there is avx512_bf16, amx can be asked for: the tile registers
// are emulated then. amx_emulated asks for that where they are, too.
Isa cpu_isa();

// Whether to use the CPU's own tile registers.
bool has_amx();

const char* isa_name(Isa isa);

// Picks between the copies of one function that foreach_isa.h compiled.
template <typename Function>
Function* select_isa(Function* baseline, Function* avx2, Function* avx512, Function* avx512_bf16, Function* amx) {
  switch (cpu_isa()) {
    case Isa::kAmx:
      return amx;
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
Function* select_isa(Function* baseline, Function* avx2, Function* avx512, Function* avx512_bf16) {
  return select_isa(baseline, avx2, avx512, avx512_bf16, avx512_bf16);
}

template <typename Function>
Function* select_isa(Function* baseline, Function* avx2, Function* avx512) {
  return select_isa(baseline, avx2, avx512, avx512);
}

}  // namespace mixer_kernels
