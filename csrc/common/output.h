// Outputs of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mixer_kernels {

// On the CPU, large outputs are often new memory, which the C library has just asked the system for, and the page
// faults of 4 KiB pages then take longer than the kernel that fills them: ask for 2 MiB pages. From 4 MiB on, one fits.
inline at::Tensor in_huge_pages(at::Tensor y) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kLarge = size_t{4} << 20;
  constexpr uintptr_t kPage = 4096;
  if (y.is_cpu() && y.nbytes() >= kLarge) {
    const auto begin = (reinterpret_cast<uintptr_t>(y.mutable_data_ptr()) + kPage - 1) & ~(kPage - 1);
    const auto end = reinterpret_cast<uintptr_t>(y.mutable_data_ptr()) + y.nbytes();
    // Advice: a kernel without huge pages refuses, and nothing is lost.
    madvise(reinterpret_cast<void*>(begin), (end - begin) & ~(kPage - 1), MADV_HUGEPAGE);
  }
#endif
  return y;
}

// An uninitialised tensor like x, strides included where x is dense.
inline at::Tensor empty_output_like(const at::Tensor& x) { return in_huge_pages(at::empty_like(x)); }

// An uninitialised contiguous tensor of x's shape.
inline at::Tensor empty_contiguous_output(const at::Tensor& x) {
  return in_huge_pages(at::empty(x.sizes(), x.options()));
}

}  // namespace mixer_kernels
