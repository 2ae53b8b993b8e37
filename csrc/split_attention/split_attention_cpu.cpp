// The CPU kernels of the shifted split attention and their registration.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
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

// Rows for the images.
template <typename scalar_t>
struct GateFactors {
  scalar_t *own_total, *hidden, *dinner, *dlogits;
};

}  // namespace
}  // namespace mixer_kernels

#define MIXER_KERNELS_ISA_BF16
#define MIXER_KERNELS_ISA_FILE "split_attention/split_attention_simd.h"
#include "common/foreach_isa.h"

namespace mixer_kernels {
namespace {

struct CpuKernels {
  static void sums(const at::Tensor& x, const at::Tensor& a) {
    dispatch_floating(x.scalar_type(), "split_attention", [&](auto tag) {
      using scalar_t = typename decltype(tag)::type;
      select_isa(&baseline::sum_branches<scalar_t>, &avx2::sum_branches<scalar_t>, &avx512::sum_branches<scalar_t>)(
          FeatureShape(x, a.size(1)), FeatureMap<const scalar_t>(x), elements_of<acc_of<scalar_t>>(a));
    });
  }

  static void gate(const at::Tensor& x, const at::Tensor& weight1, const at::Tensor& weight2, const at::Tensor& total,
                   const at::Tensor& weights) {
    sums(x, total);
    dispatch_floating(x.scalar_type(), "split_attention", [&](auto tag) {
      using scalar_t = typename decltype(tag)::type;
      using acc_t = acc_of<scalar_t>;
      select_isa(&baseline::weigh_branches<scalar_t>, &avx2::weigh_branches<scalar_t>,
                 &avx512::weigh_branches<scalar_t>, &avx512_bf16::weigh_branches<scalar_t>)(
          {x.size(0), total.size(1), weight1.size(0)}, elements_of<const acc_t>(total),
          elements_of<const scalar_t>(weight1), elements_of<const scalar_t>(weight2), elements_of<acc_t>(weights));
    });
  }

  static void combine(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& y) {
    dispatch_floating(x.scalar_type(), "split_attention", [&](auto tag) {
      using scalar_t = typename decltype(tag)::type;
      select_isa(&baseline::combine_branches<scalar_t>, &avx2::combine_branches<scalar_t>,
                 &avx512::combine_branches<scalar_t>, &avx512_bf16::combine_branches<scalar_t>)(
          FeatureShape(y, y.size(3)), FeatureMap<const scalar_t>(x), elements_of<const acc_of<scalar_t>>(weights),
          FeatureMap<scalar_t>(y));
    });
  }

  static void backward_weights(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& dweights) {
    dispatch_floating(x.scalar_type(), "split_attention", [&](auto tag) {
      using scalar_t = typename decltype(tag)::type;
      select_isa(&baseline::sum_products<scalar_t>, &avx2::sum_products<scalar_t>, &avx512::sum_products<scalar_t>)(
          FeatureShape(dy, dy.size(3)), FeatureMap<const scalar_t>(dy), FeatureMap<const scalar_t>(x),
          elements_of<acc_of<scalar_t>>(dweights));
    });
  }

  static void backward_gate(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& total,
                            const at::Tensor& weights, const at::Tensor& weight1, const at::Tensor& weight2,
                            const GateGradient& to) {
    const at::Tensor dweights = at::empty_like(weights);
    backward_weights(dy, x, dweights);
    dispatch_floating(x.scalar_type(), "split_attention", [&](auto tag) {
      using scalar_t = typename decltype(tag)::type;
      using acc_t = acc_of<scalar_t>;
      select_isa(&baseline::weigh_branches_backward<scalar_t>, &avx2::weigh_branches_backward<scalar_t>,
                 &avx512::weigh_branches_backward<scalar_t>, &avx512_bf16::weigh_branches_backward<scalar_t>)(
          {x.size(0), total.size(1), weight1.size(0)}, elements_of<const acc_t>(dweights),
          elements_of<const acc_t>(total), elements_of<const acc_t>(weights), elements_of<const scalar_t>(weight1),
          elements_of<const scalar_t>(weight2), elements_of<acc_t>(to.da),
          {elements_of<scalar_t>(to.own_total), elements_of<scalar_t>(to.hidden), elements_of<scalar_t>(to.dinner),
           elements_of<scalar_t>(to.dlogits)});
    });
  }

  static void backward_features(const at::Tensor& dy, const at::Tensor& weights, const at::Tensor& da,
                                const at::Tensor& dx) {
    dispatch_floating(dy.scalar_type(), "split_attention", [&](auto tag) {
      using scalar_t = typename decltype(tag)::type;
      using acc_t = acc_of<scalar_t>;
      select_isa(&baseline::spread_gradient<scalar_t>, &avx2::spread_gradient<scalar_t>,
                 &avx512::spread_gradient<scalar_t>, &avx512_bf16::spread_gradient<scalar_t>)(
          FeatureShape(dy, dy.size(3)), FeatureMap<const scalar_t>(dy), elements_of<const acc_t>(weights),
          elements_of<const acc_t>(da), FeatureMap<scalar_t>(dx));
    });
  }
};

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CPU, m) { mixer_kernels::bind_split_attention<mixer_kernels::CpuKernels>(m); }
