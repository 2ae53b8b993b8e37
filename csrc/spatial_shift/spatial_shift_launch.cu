#include "spatial_shift/spatial_shift_kernels.cuh"

namespace mixer_kernels {

void spatial_shift_cuda(ElementType type, const void* in, const ShiftStrides& in_strides, void* out,
                        const ShiftStrides& out_strides, const ShiftShape& shape, const Direction* directions,
                        int64_t groups, bool adjoint, cudaStream_t stream) {
  run_spatial_shift(type, in, in_strides, out, out_strides, shape, directions, groups, adjoint,
                    [&](auto* kernel, dim3 grid, const auto&... arguments) {
                      kernel<<<grid, kShiftThreads, 0, stream>>>(arguments...);
                    });
}

}  // namespace mixer_kernels
