// Sizes that decide how the CPU kernels work: what is worth a thread, and what is too large for the caches.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mixer_kernels {

// How many rows of so many elements, each passed over a few times.
inline int64_t rows_per_task(int64_t columns) {
  constexpr int64_t kElements = 32768;
  return kElements / std::max<int64_t>(columns, 1) + 1;
}

// Bytes of an output that is stored past the caches: it would leave them anyway before somebody reads it, and would
// take with it what the kernel still needs.
constexpr int64_t kStreamedBytes = int64_t{4} << 20;

}  // namespace mixer_kernels
