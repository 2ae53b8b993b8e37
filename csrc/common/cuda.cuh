// What device code needs from CUDA: its own headers under nvcc; under a host compiler the emulator of tests/emulator,
// which supplies the same names.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_emulator.h"
#endif
