// Memory that a kernel works in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace mixer_kernels {

// Uninitialised bytes, the first on a cache line. A thread keeps what it gave up, to some megabytes, for its next call:
// new memory would cost a kernel more in page faults than it saves. PyTorch's profiler counts what is in use.
class ScratchMemory {
 public:
  ScratchMemory() = default;
  explicit ScratchMemory(size_t size);
  ScratchMemory(ScratchMemory&& other) noexcept { *this = std::move(other); }
  ScratchMemory& operator=(ScratchMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~ScratchMemory();

  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// `size` uninitialised elements.
template <typename T>
class Scratch {
 public:
  static_assert(std::is_trivially_destructible_v<T>);

  Scratch() = default;
  explicit Scratch(int64_t size) : memory_(size * sizeof(T)) {}

  T* get() const { return static_cast<T*>(memory_.get()); }

 private:
  ScratchMemory memory_;
};

}  // namespace mixer_kernels
