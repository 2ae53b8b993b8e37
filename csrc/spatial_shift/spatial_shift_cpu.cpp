// The CPU kernels of the spatial shift and their registration.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/dispatch.h"
#include "common/isa.h"
#include "spatial_shift/spatial_shift_binding.h"

namespace mixer_kernels {
namespace {

struct Axis {
  int64_t size, in, out;  // strides of source and target, in elements
};

// One block of work: `row` is the moving axis, `element` the innermost of the other two.
struct ShiftBlock {
  Axis row, run, element;
  bool adjoint;
};

}  // namespace
}  // namespace mixer_kernels

#define MIXER_KERNELS_ISA_FILE "spatial_shift/spatial_shift_simd.h"
#include "common/foreach_isa.h"

namespace mixer_kernels {
namespace {

// Blocks are cut until every thread has several, so that a slow core does not hold up the rest.
constexpr int64_t kBlocksPerThread = 4;

template <typename scalar_t>
void shift_elements(const scalar_t* in, const ShiftStrides& in_strides, scalar_t* out, const ShiftStrides& out_strides,
                    const ShiftShape& shape, c10::IntArrayRef directions, bool adjoint) {
  auto* const shift_block =
      select_isa(&baseline::shift_block<scalar_t>, &avx2::shift_block<scalar_t>, &avx512::shift_block<scalar_t>);
  const int64_t groups = static_cast<int64_t>(directions.size());
  const int64_t tasks = shape.batch * groups;
  const int64_t pieces = (kBlocksPerThread * at::get_num_threads() + tasks - 1) / tasks;

  at::parallel_for(0, tasks * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t piece = index % pieces;
      const int64_t group = index / pieces % groups;
      const int64_t image = index / pieces / groups;
      const int64_t first = group * shape.channels / groups;
      const int64_t channels = (group + 1) * shape.channels / groups - first;
      const auto direction = static_cast<Direction>(directions[group]);
      const bool along_h = direction == Direction::kPlusH || direction == Direction::kMinusH;
      const bool backwards = direction == Direction::kMinusH || direction == Direction::kMinusW;

      const Axis h{shape.height, in_strides.h, out_strides.h};
      const Axis w{shape.width, in_strides.w, out_strides.w};
      ShiftBlock block{along_h ? h : w, along_h ? w : h, {channels, in_strides.c, out_strides.c}, adjoint};
      if (block.run.in < block.element.in) std::swap(block.run, block.element);

      const scalar_t* source = in + image * in_strides.b + first * in_strides.c;
      scalar_t* target = out + image * out_strides.b + first * out_strides.c;
      if (backwards) {
        source += (block.row.size - 1) * block.row.in;
        target += (block.row.size - 1) * block.row.out;
        block.row.in = -block.row.in;
        block.row.out = -block.row.out;
      }
      const int64_t from = piece * block.run.size / pieces;
      const int64_t to = (piece + 1) * block.run.size / pieces;
      source += from * block.run.in;
      target += from * block.run.out;
      block.run.size = to - from;
      shift_block(source, target, block);
    }
  });
}

void shift(const char* op, const at::Tensor& in, const at::Tensor& out, c10::IntArrayRef directions, bool adjoint) {
  dispatch_floating(in.scalar_type(), op, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    shift_elements(in.const_data_ptr<scalar_t>(), strides_of(in), out.mutable_data_ptr<scalar_t>(), strides_of(out),
                   shape_of(in), directions, adjoint);
  });
}

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CPU, m) { mixer_kernels::bind_spatial_shift<&mixer_kernels::shift>(m); }
