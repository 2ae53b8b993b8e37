// How a kernel moves over a map. No torch header.
#pragma once

#include <cstdint>

namespace mixer_kernels {

// Along the rows of a map and along its columns.
struct Extent {
  int64_t h, w;
};

// How a kernel moves over a map; of the padding only what lies above and to the left places an output.
struct Geometry {
  Extent kernel, stride, dilation, padding;
};

}  // namespace mixer_kernels
