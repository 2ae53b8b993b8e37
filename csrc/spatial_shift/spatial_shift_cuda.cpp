// Binds the CUDA launcher of the spatial shift to its ops.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <vector>

#include "common/element_type_of.h"
#include "spatial_shift/spatial_shift_binding.h"

namespace mixer_kernels {
namespace {

void shift(const char* op, const at::Tensor& in, const at::Tensor& out, c10::IntArrayRef codes, bool adjoint) {
  std::vector<Direction> directions;
  for (const int64_t code : codes) directions.push_back(static_cast<Direction>(code));
  const c10::cuda::CUDAGuard guard(in.device());
  spatial_shift_cuda(element_type_of(in, op), in.const_data_ptr(), strides_of(in), out.mutable_data_ptr(),
                     strides_of(out), shape_of(in), directions.data(), static_cast<int64_t>(directions.size()), adjoint,
                     c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CUDA, m) { mixer_kernels::bind_spatial_shift<&mixer_kernels::shift>(m); }
