// Parameters of the channels as launchers take them.
#pragma once

namespace mixer_kernels {

// A parameter of the channels, (C) and contiguous, in float32 or in the type of x; absent if null.
struct ChannelParameter {
  const void* data;
  bool is_float;
};

}  // namespace mixer_kernels
