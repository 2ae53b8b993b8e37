// Memory that a kernel works in.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <type_traits>

namespace mixer_kernels {

// `size` uninitialised elements, the first on a cache line. From PyTorch's allocator, so that its profiler counts them.
template <typename T>
class Scratch {
 public:
  static_assert(std::is_trivially_destructible_v<T>);

  Scratch() = default;
  explicit Scratch(int64_t size) : data_(c10::GetCPUAllocator()->allocate(size * sizeof(T))) {}

  T* get() const { return static_cast<T*>(data_.get()); }

 private:
  c10::DataPtr data_;
};

}  // namespace mixer_kernels
