// The CPU kernels of the spatial shift and their registration.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <type_traits>

#include "common/dispatch.h"
#include "common/isa.h"
#include "spatial_shift/spatial_shift_binding.h"

namespace mixer_kernels {
namespace {

// How far to go in the source and in the target, in elements.
struct Step {
  int64_t in, out;
  Step operator*(int64_t factor) const { return {in * factor, out * factor}; }
};

struct Axis {
  int64_t size;
  Step step;
};

// One block of work: `row` is the moving axis, of which the target rows [begin, end) are written, `element` the
// innermost of the other two.
struct ShiftBlock {
  Axis row, run, element;
  int64_t begin, end;
  bool adjoint, in_place;
};

}  // namespace
}  // namespace mixer_kernels

#define MIXER_KERNELS_ISA_FILE "spatial_shift/spatial_shift_simd.h"
#include "common/foreach_isa.h"

namespace mixer_kernels {
namespace {

// In place, blocks are cut until every thread has several, so that a slow core does not hold up the rest.
constexpr int64_t kBlocksPerThread = 4;

// Out of place, source and target of a strip stay in the second-level cache while the groups pass over them.
constexpr int64_t kStripBytes = 256 * 1024;

template <typename scalar_t>
class Shift {
 public:
  Shift(const at::Tensor& in, const at::Tensor& out, c10::IntArrayRef directions, bool adjoint)
      : in_(in.const_data_ptr<scalar_t>()),
        out_(out.mutable_data_ptr<scalar_t>()),
        shape_(shape_of(in)),
        in_strides_(strides_of(in)),
        out_strides_(strides_of(out)),
        directions_(directions),
        groups_(static_cast<int64_t>(directions.size())),
        adjoint_(adjoint),
        shift_block_(select_isa(&baseline::shift_block<scalar_t>, &avx2::shift_block<scalar_t>,
                                &avx512::shift_block<scalar_t>)) {}

  void run() const { in_ == out_ ? run_in_place() : run_out_of_place(); }

 private:
  // Every group of an image is a block: its lines must be walked in order, only the axis across them can be cut.
  void run_in_place() const {
    const int64_t blocks = shape_.batch * groups_;
    const int64_t pieces = (kBlocksPerThread * at::get_num_threads() + blocks - 1) / blocks;
    at::parallel_for(0, blocks * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const int64_t group = index / pieces % groups_;
        const bool along_h = moves_along_h(group);
        const int64_t across = along_h ? shape_.width : shape_.height;
        const int64_t piece = index % pieces;
        const Range cut{piece * across / pieces, (piece + 1) * across / pieces};
        const Range h{0, shape_.height}, w{0, shape_.width};
        shift(index / pieces / groups_, group, along_h ? h : cut, along_h ? cut : w);
      }
    });
  }

  // Strip by strip of rows with all groups, so that source and target both stream through memory once.
  void run_out_of_place() const {
    const int64_t image_bytes = shape_.height * shape_.width * shape_.channels * static_cast<int64_t>(sizeof(scalar_t));
    const int64_t strips = std::min(shape_.height, image_bytes / kStripBytes + at::get_num_threads());
    at::parallel_for(0, shape_.batch * strips, 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const int64_t strip = index % strips;
        const Range h{strip * shape_.height / strips, (strip + 1) * shape_.height / strips};
        for (int64_t group = 0; group < groups_; ++group) shift(index / strips, group, h, {0, shape_.width});
      }
    });
  }

  struct Range {
    int64_t begin, end;
  };

  bool moves_along_h(int64_t group) const {
    const auto direction = static_cast<Direction>(directions_[group]);
    return direction == Direction::kPlusH || direction == Direction::kMinusH;
  }

  // Writes one group's channels of the target rows h and columns w of an image.
  void shift(int64_t image, int64_t group, Range h, Range w) const {
    const auto direction = static_cast<Direction>(directions_[group]);
    const bool along_h = moves_along_h(group);
    const bool backwards = direction == Direction::kMinusH || direction == Direction::kMinusW;
    const int64_t first = group * shape_.channels / groups_;
    const int64_t channels = (group + 1) * shape_.channels / groups_ - first;

    const Step h_step{in_strides_.h, out_strides_.h}, w_step{in_strides_.w, out_strides_.w};
    const Range moving = along_h ? h : w, across = along_h ? w : h;
    ShiftBlock block{{along_h ? shape_.height : shape_.width, along_h ? h_step : w_step},
                     {across.end - across.begin, along_h ? w_step : h_step},
                     {channels, {in_strides_.c, out_strides_.c}},
                     moving.begin,
                     moving.end,
                     adjoint_,
                     in_ == out_};
    const scalar_t* source = in_ + image * in_strides_.b + first * in_strides_.c + across.begin * block.run.step.in;
    scalar_t* target = out_ + image * out_strides_.b + first * out_strides_.c + across.begin * block.run.step.out;
    if (backwards) {
      // The same shift with the moving axis counted from its other end.
      source += (block.row.size - 1) * block.row.step.in;
      target += (block.row.size - 1) * block.row.step.out;
      block.row.step = block.row.step * -1;
      block.begin = block.row.size - moving.end;
      block.end = block.row.size - moving.begin;
    }
    if (block.run.step.in < block.element.step.in) std::swap(block.run, block.element);
    shift_block_(source, target, block);
  }

  const scalar_t* in_;
  scalar_t* out_;
  ShiftShape shape_;
  ShiftStrides in_strides_, out_strides_;
  c10::IntArrayRef directions_;
  int64_t groups_;
  bool adjoint_;
  void (*shift_block_)(const scalar_t*, scalar_t*, const ShiftBlock&);
};

void shift(const char* op, const at::Tensor& in, const at::Tensor& out, c10::IntArrayRef directions, bool adjoint) {
  dispatch_floating(in.scalar_type(), op,
                    [&](auto tag) { Shift<typename decltype(tag)::type>(in, out, directions, adjoint).run(); });
}

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CPU, m) { mixer_kernels::bind_spatial_shift<&mixer_kernels::shift>(m); }
