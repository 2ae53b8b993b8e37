// How much work makes a task worth a thread.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mixer_kernels {

// How many rows of so many elements, each passed over a few times.
inline int64_t rows_per_task(int64_t columns) {
  constexpr int64_t kElements = 32768;
  return kElements / std::max<int64_t>(columns, 1) + 1;
}

}  // namespace mixer_kernels
