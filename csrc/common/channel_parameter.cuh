// Parameters of the channels in device code.
#pragma once

#include "common/channel_parameter.h"
#include "common/vector.cuh"

namespace mixer_kernels {

template <typename scalar_t>
__device__ __forceinline__ float channel_value(const ChannelParameter& parameter, int channel, float absent) {
  if (parameter.data == nullptr) return absent;
  if (parameter.is_float) return static_cast<const float*>(parameter.data)[channel];
  return to_acc(static_cast<const scalar_t*>(parameter.data)[channel]);
}

}  // namespace mixer_kernels
