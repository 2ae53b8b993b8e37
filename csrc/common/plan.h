// What planning a launch takes on the host: rounding, and dealing out device memory.
#pragma once

#include <cstdint>

namespace mixer_kernels {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Deals out device memory; without any, it only counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    char* begin = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(begin);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace mixer_kernels
