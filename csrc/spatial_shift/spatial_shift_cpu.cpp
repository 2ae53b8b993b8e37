// The CPU kernels of the spatial shift and their registration.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <type_traits>
#include <vector>

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

// Where one group of a row of target pixels comes from, in bytes: `source` leads from the pixel of the same row to the
// group in the right row, `across` is how many pixels further on.
struct PulledGroup {
  int64_t offset, bytes;  // the group within a pixel
  int64_t source, across;
};

constexpr int64_t kLineBytes = 64;
constexpr int64_t kNarrowBytes = 16;  // the narrowest vector that copies

}  // namespace
}  // namespace mixer_kernels

#define MIXER_KERNELS_ISA_FILE "spatial_shift/spatial_shift_simd.h"
#include "common/foreach_isa.h"

namespace mixer_kernels {
namespace {

// In place, blocks are cut until every thread has several, so that a slow core does not hold up the rest.
constexpr int64_t kBlocksPerThread = 4;

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
        shift_block_(
            select_isa(&baseline::shift_block<scalar_t>, &avx2::shift_block<scalar_t>, &avx512::shift_block<scalar_t>)),
        pull_row_(select_isa(&baseline::pull_row_of, &avx2::pull_row_of, &avx512::pull_row_of)) {}

  void run() const { in_ == out_ ? run_in_place() : run_out_of_place(); }

 private:
  static constexpr int64_t kSize = sizeof(scalar_t);

  struct Range {
    int64_t begin, end;
  };

  struct Group {
    int64_t first, channels;
    bool along_h, plus;
  };

  Group group_of(int64_t index) const {
    const auto direction = static_cast<Direction>(directions_[index]);
    const int64_t first = index * shape_.channels / groups_;
    return {first, (index + 1) * shape_.channels / groups_ - first,
            direction == Direction::kPlusH || direction == Direction::kMinusH,
            direction == Direction::kPlusH || direction == Direction::kPlusW};
  }

  // Every group of an image is a block: its lines must be walked in order, only the axis across them can be cut.
  void run_in_place() const {
    const int64_t blocks = shape_.batch * groups_;
    const int64_t pieces = (kBlocksPerThread * at::get_num_threads() + blocks - 1) / blocks;
    at::parallel_for(0, blocks * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const Group group = group_of(index / pieces % groups_);
        const int64_t across = group.along_h ? shape_.width : shape_.height;
        const int64_t piece = index % pieces;
        const Range cut{piece * across / pieces, (piece + 1) * across / pieces};
        const Range h{0, shape_.height}, w{0, shape_.width};
        shift(index / pieces / groups_, group, group.along_h ? h : cut, group.along_h ? cut : w);
      }
    });
  }

  // Rows are independent; a thread takes a range of them, image by image.
  void run_out_of_place() const {
    at::parallel_for(0, shape_.batch * shape_.height, 1, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t image = begin / shape_.height;
        const Range h{begin % shape_.height, std::min(shape_.height, end - image * shape_.height)};
        shift_rows_of_image(image, h);
        begin += h.end - h.begin;
      }
    });
  }

  // Where channels are contiguous and no group is too narrow for vectors, pixel by pixel; otherwise group by group.
  void shift_rows_of_image(int64_t image, Range h) const {
    const Range all_w{0, shape_.width};
    const int64_t narrowest = shape_.channels / groups_ * kSize;
    if (in_strides_.c != 1 || out_strides_.c != 1 || narrowest < kNarrowBytes) {
      for (int64_t index = 0; index < groups_; ++index) shift(image, group_of(index), h, all_w);
      return;
    }
    std::vector<PulledGroup> pulled(groups_);
    for (int64_t row = h.begin; row < h.end; ++row) pull_all_groups(image, row, narrowest, pulled);
    if (!adjoint_) return;
    // Away from the borders of the moving axis the adjoint is a copy too; the borders are written again.
    for (int64_t index = 0; index < groups_; ++index) {
      const Group group = group_of(index);
      if (!group.along_h) {
        shift(image, group, h, {0, 1});
        shift(image, group, h, {shape_.width - 1, shape_.width});
        continue;
      }
      for (const int64_t border : {int64_t{0}, shape_.height - 1}) {
        if (h.begin <= border && border < h.end) shift(image, group, {border, border + 1}, all_w);
      }
    }
  }

  void pull_all_groups(int64_t image, int64_t h, int64_t narrowest, std::vector<PulledGroup>& pulled) const {
    for (int64_t index = 0; index < groups_; ++index) {
      const Group group = group_of(index);
      const int64_t step = group.plus != adjoint_ ? -1 : 1;
      const int64_t from = group.along_h ? std::min(std::max<int64_t>(h + step, 0), shape_.height - 1) : h;
      pulled[index] = {group.first * kSize, group.channels * kSize, ((from - h) * in_strides_.h + group.first) * kSize,
                       group.along_h ? 0 : step};
    }
    pull_row_(narrowest, reinterpret_cast<const char*>(in_ + image * in_strides_.b + h * in_strides_.h),
              reinterpret_cast<char*>(out_ + image * out_strides_.b + h * out_strides_.h), shape_.width,
              Step{in_strides_.w, out_strides_.w} * kSize, in_strides_.h * kSize, pulled.data(), groups_);
  }

  // Writes one group's channels of the target rows h and columns w of an image.
  void shift(int64_t image, const Group& group, Range h, Range w) const {
    const Step h_step{in_strides_.h, out_strides_.h}, w_step{in_strides_.w, out_strides_.w};
    const Range moving = group.along_h ? h : w, across = group.along_h ? w : h;
    ShiftBlock block{{group.along_h ? shape_.height : shape_.width, group.along_h ? h_step : w_step},
                     {across.end - across.begin, group.along_h ? w_step : h_step},
                     {group.channels, {in_strides_.c, out_strides_.c}},
                     moving.begin,
                     moving.end,
                     adjoint_,
                     in_ == out_};
    const scalar_t* source =
        in_ + image * in_strides_.b + group.first * in_strides_.c + across.begin * block.run.step.in;
    scalar_t* target = out_ + image * out_strides_.b + group.first * out_strides_.c + across.begin * block.run.step.out;
    if (!group.plus) {
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
  void (*pull_row_)(int64_t, const char*, char*, int64_t, Step, int64_t, const PulledGroup*, int64_t);
};

void shift(const char* op, const at::Tensor& in, const at::Tensor& out, c10::IntArrayRef directions, bool adjoint) {
  dispatch_floating(in.scalar_type(), op,
                    [&](auto tag) { Shift<typename decltype(tag)::type>(in, out, directions, adjoint).run(); });
}

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CPU, m) { mixer_kernels::bind_spatial_shift<&mixer_kernels::shift>(m); }
