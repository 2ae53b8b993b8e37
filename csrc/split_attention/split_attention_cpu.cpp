// The CPU kernels of the shifted split attention and their registration.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/activation.h"
#include "common/dispatch.h"
#include "common/grain.h"
#include "common/isa.h"
#include "common/normal_cdf.h"
#include "common/rows.h"
#include "common/scratch.h"
#include "split_attention/split_attention_binding.h"

namespace mixer_kernels {
namespace {

// A (B, H, W, channels) tensor whose channels lie side by side.
template <typename scalar_t>
struct FeatureMap {
  scalar_t* data;
  int64_t image_step, row_step, column_step;

  explicit FeatureMap(const at::Tensor& t)
      : data(elements_of<scalar_t>(t)), image_step(t.stride(0)), row_step(t.stride(1)), column_step(t.stride(2)) {}

  scalar_t* pixel(int64_t image, int64_t row, int64_t column) const {
    return data + image * image_step + row * row_step + column * column_step;
  }
};

// Pixels [begin, end) of a row.
struct Stretch {
  int64_t image, row, begin, end;
};

// The pixels of all images, cut into stretches: rows, or parts of long ones. `channels` are those of one branch.
struct FeatureShape {
  int64_t batch, height, width, channels;

  explicit FeatureShape(const at::Tensor& branch_map, int64_t channels)
      : batch(branch_map.size(0)), height(branch_map.size(1)), width(branch_map.size(2)), channels(channels) {}

  static constexpr int64_t kLongest = 64;
  int64_t stretches_of_row() const { return (width + kLongest - 1) / kLongest; }
  int64_t stretches_of_image() const { return height * stretches_of_row(); }

  Stretch stretch(int64_t index) const {
    const int64_t of_row = stretches_of_row(), part = index % of_row;
    return {index / stretches_of_image(), index / of_row % height, part * width / of_row, (part + 1) * width / of_row};
  }
};

// The perceptron between the passes: `channels` of a branch, and units of its hidden layer.
struct GateShape {
  int64_t batch, channels, hidden;
};

// The perceptron's matrices, (hidden, channels) and (branches * channels, hidden).
template <typename scalar_t>
struct GateMatrices {
  scalar_t *weight1, *weight2;
};

}  // namespace
}  // namespace mixer_kernels

#define MIXER_KERNELS_ISA_BF16
#define MIXER_KERNELS_ISA_FILE "split_attention/split_attention_simd.h"
#include "common/foreach_isa.h"

namespace mixer_kernels {
namespace {

constexpr auto kOp = "split_attention";

struct CpuKernels {
  static void forward(const at::Tensor& x, const at::Tensor& weight1, const at::Tensor& weight2, const at::Tensor& y,
                      const at::Tensor& total, const at::Tensor& weights) {
    dispatch_floating(x.scalar_type(), kOp, [&](auto tag) {
      using scalar_t = typename decltype(tag)::type;
      using acc_t = acc_of<scalar_t>;
      select_isa(&baseline::attend<scalar_t>, &avx2::attend<scalar_t>, &avx512::attend<scalar_t>,
                 &avx512_bf16::attend<scalar_t>)(
          FeatureShape(y, y.size(3)), weight1.size(0), FeatureMap<const scalar_t>(x),
          {elements_of<const scalar_t>(weight1), elements_of<const scalar_t>(weight2)}, FeatureMap<scalar_t>(y),
          elements_of<acc_t>(total), elements_of<acc_t>(weights));
    });
  }

  static void backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& total, const at::Tensor& weights,
                       const at::Tensor& weight1, const at::Tensor& weight2, const SplitGradients& to) {
    dispatch_floating(x.scalar_type(), kOp, [&](auto tag) {
      using scalar_t = typename decltype(tag)::type;
      using acc_t = acc_of<scalar_t>;
      const FeatureShape shape(dy, dy.size(3));
      const FeatureMap<const scalar_t> gradient(dy);
      const Scratch<acc_t> da(total.numel());
      GateMatrices<scalar_t> products{};
      if (to.wants_weights) products = {elements_of<scalar_t>(to.dweight1), elements_of<scalar_t>(to.dweight2)};
      select_isa(&baseline::gate_backward<scalar_t>, &avx2::gate_backward<scalar_t>, &avx512::gate_backward<scalar_t>,
                 &avx512_bf16::gate_backward<scalar_t>)(
          shape, weight1.size(0), gradient, FeatureMap<const scalar_t>(x), elements_of<const acc_t>(total),
          elements_of<const acc_t>(weights),
          {elements_of<const scalar_t>(weight1), elements_of<const scalar_t>(weight2)}, da.get(), products);
      if (!to.wants_input) return;
      select_isa(&baseline::spread_gradient<scalar_t>, &avx2::spread_gradient<scalar_t>,
                 &avx512::spread_gradient<scalar_t>, &avx512_bf16::spread_gradient<scalar_t>)(
          shape, gradient, elements_of<const acc_t>(weights), da.get(), FeatureMap<scalar_t>(to.dx));
    });
  }
};

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CPU, m) { mixer_kernels::bind_split_attention<mixer_kernels::CpuKernels>(m); }
