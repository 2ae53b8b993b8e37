// The CPU kernels of the depthwise convolution and their registration.
#include "depthwise_conv2d/depthwise_conv2d_cpu.h"

#include <ATen/Parallel.h>
#include <c10/util/bit_cast.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/activation.h"
#include "common/channel_tiles.h"
#include "common/dispatch.h"
#include "common/grain.h"
#include "common/isa.h"
#include "common/normal_cdf.h"
#include "common/rows.h"
#include "common/scratch.h"
#include "depthwise_conv2d/depthwise_conv2d_binding.h"
#include "depthwise_conv2d/map.h"

namespace mixer_kernels {
namespace {

// y[o] = sum over the taps k of u[o * stride + k * dilation - offset] * weight[k], where u is x with spread - 1 zeros
// between its elements and zeros around them: a convolution, or the gradient of one with respect to its input.
template <typename scalar_t>
struct Correlation {
  int64_t batch, channels;
  Extent in, out, kernel, stride, dilation, offset, spread;
  Extent tile;  // of outputs, that a task computes
  Map<const scalar_t> x;
  const scalar_t* weight;  // (C, 1, KH, KW)
  bool flipped, amx, channels_last;

  // The sizes of u without the zeros around it.
  Extent plane() const { return {(in.h - 1) * spread.h + 1, (in.w - 1) * spread.w + 1}; }
};

// residual + scale * act(z + bias) + shift, with zeros behind the parameters up to whole vectors; bias may be null.
template <typename scalar_t>
struct Epilogue {
  const acc_of<scalar_t>*bias, *scale, *shift;
  Map<const scalar_t> residual;  // of no data where it is absent
  Activation activation;
  bool scaled;  // whether there is a scale or a shift

  bool is_only_bias() const { return activation == Activation::kNone && !scaled && residual.data == nullptr; }
};

// Means and sums of squared deviations, a vector of each for every task, or null.
struct Moments {
  double *mean, *deviations;
};

// How many inputs some outputs reach over.
inline int64_t input_size(int64_t outputs, int64_t stride, int64_t taps, int64_t dilation) {
  return (outputs - 1) * stride + (taps - 1) * dilation + 1;
}

}  // namespace
}  // namespace mixer_kernels

#define MIXER_KERNELS_ISA_BF16
#define MIXER_KERNELS_ISA_FILE "depthwise_conv2d/depthwise_conv2d_simd.h"
#include "common/foreach_isa.h"

namespace mixer_kernels {
namespace {

template <typename scalar_t>
Correlation<scalar_t> forward_correlation(const at::Tensor& x, const scalar_t* weight, const Geometry& g, Extent out) {
  return {.batch = x.size(0),
          .channels = x.size(1),
          .in = size_of(x),
          .out = out,
          .kernel = g.kernel,
          .stride = g.stride,
          .dilation = g.dilation,
          .offset = g.padding,
          .spread = {1, 1},
          .tile = TileGrid::tile(out),
          .x = Map<const scalar_t>(x),
          .weight = weight,
          .flipped = false,
          .amx = cpu_isa() == Isa::kAmx,
          .channels_last = x.stride(1) == 1 && x.size(1) > 1};
}

// With the kernel turned around, and zeros between the elements of dz where the convolution stepped over those of x.
template <typename scalar_t>
Correlation<scalar_t> backward_correlation(const at::Tensor& dz, const scalar_t* weight, const Geometry& g,
                                           Extent out) {
  Correlation<scalar_t> c = forward_correlation(dz, weight, g, out);
  c.stride = {1, 1};
  c.spread = g.stride;
  c.offset = {(g.kernel.h - 1) * g.dilation.h - g.padding.h, (g.kernel.w - 1) * g.dilation.w - g.padding.w};
  c.flipped = true;
  return c;
}

template <typename scalar_t>
void convolve(const Correlation<scalar_t>& c, const Epilogue<scalar_t>& e, const at::Tensor& y,
              const Moments& moments = {}) {
  select_isa(&baseline::depthwise_convolve<scalar_t>, &avx2::depthwise_convolve<scalar_t>,
             &avx512::depthwise_convolve<scalar_t>,
             &avx512_bf16::depthwise_convolve<scalar_t>)(c, e, Map<scalar_t>(y), moments);
}

// Of all tiles of a channel, one after another (Chan, Golub and LeVeque): no difference of large numbers.
template <typename acc_t>
void merge_moments(const TileGrid& grid, const double* means, const double* deviations, acc_t* mean, acc_t* var) {
  for (int64_t channel = 0; channel < grid.channels(); ++channel) {
    const int64_t size = grid.block(), block = channel / size, lane = channel % size;
    double count = 0, center = 0, squares = 0;
    for (int64_t task = block * grid.tasks_of_block(); task < (block + 1) * grid.tasks_of_block(); ++task) {
      const TileOfMap tile = grid[task];
      const double pixels = static_cast<double>(tile.rows * tile.columns);
      const double apart = means[task * size + lane] - center;
      squares += deviations[task * size + lane] + apart * apart * count * pixels / (count + pixels);
      count += pixels;
      center += apart * pixels / count;
    }
    mean[channel] = static_cast<acc_t>(center);
    var[channel] = static_cast<acc_t>(squares / count);
  }
}

}  // namespace

void CpuConvolution::forward(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                             const OptionalTensor& scale, const OptionalTensor& shift, const OptionalTensor& residual,
                             const Geometry& geometry, int64_t activation, const at::Tensor& y) {
  dispatch_floating(x.scalar_type(), "depthwise_conv2d", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const at::Tensor whole = weight.contiguous();
    const auto biases = padded_parameter<scalar_t>(bias, x.size(1), 0);
    const auto scales = padded_parameter<scalar_t>(scale, x.size(1), 1);
    const auto shifts = padded_parameter<scalar_t>(shift, x.size(1), 0);
    convolve(
        forward_correlation(x, whole.const_data_ptr<scalar_t>(), geometry, size_of(y)),
        Epilogue<scalar_t>{bias ? biases.get() : nullptr, scales.get(), shifts.get(), Map<const scalar_t>(residual),
                           static_cast<Activation>(activation), scale.has_value() || shift.has_value()},
        y);
  });
}

void CpuConvolution::statistics(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                                const Geometry& geometry, int64_t activation, const at::Tensor& z,
                                const at::Tensor& mean, const at::Tensor& var) {
  dispatch_floating(x.scalar_type(), "depthwise_conv2d", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_of<scalar_t>;
    const at::Tensor whole = weight.contiguous();
    const auto biases = padded_parameter<scalar_t>(bias, x.size(1), 0);
    const auto ones = padded_parameter<scalar_t>({}, x.size(1), 1),
               zeros = padded_parameter<scalar_t>({}, x.size(1), 0);
    const auto c = forward_correlation(x, whole.const_data_ptr<scalar_t>(), geometry, size_of(z));
    const TileGrid grid = select_isa(&baseline::grid_of<scalar_t>, &avx2::grid_of<scalar_t>, &avx512::grid_of<scalar_t>,
                                     &avx512_bf16::grid_of<scalar_t>)(c);
    const Scratch<double> means(grid.tasks() * grid.block()), deviations(grid.tasks() * grid.block());
    convolve(
        c,
        Epilogue<scalar_t>{
            bias ? biases.get() : nullptr, ones.get(), zeros.get(), {}, static_cast<Activation>(activation), false},
        z, {means.get(), deviations.get()});
    merge_moments(grid, means.get(), deviations.get(), mean.mutable_data_ptr<acc_t>(), var.mutable_data_ptr<acc_t>());
  });
}

void CpuConvolution::backward_input(const at::Tensor& dz, const at::Tensor& weight, const OptionalTensor& residual,
                                    const Geometry& g, const at::Tensor& dx) {
  dispatch_floating(dz.scalar_type(), "depthwise_conv2d", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const at::Tensor whole = weight.contiguous();
    const auto ones = padded_parameter<scalar_t>({}, dz.size(1), 1);
    const auto zeros = padded_parameter<scalar_t>({}, dz.size(1), 0);
    convolve(
        backward_correlation(dz, whole.const_data_ptr<scalar_t>(), g, size_of(dx)),
        Epilogue<scalar_t>{nullptr, ones.get(), zeros.get(), Map<const scalar_t>(residual), Activation::kNone, false},
        dx);
  });
}

void CpuConvolution::backward_weight(const at::Tensor& dz, const at::Tensor& x, const Geometry& geometry,
                                     const at::Tensor& dweight, const at::Tensor& dbias) {
  dispatch_floating(x.scalar_type(), "depthwise_conv2d", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const auto c = forward_correlation<scalar_t>(x, nullptr, geometry, size_of(dz));
    select_isa(&baseline::depthwise_weight_gradient<scalar_t>, &avx2::depthwise_weight_gradient<scalar_t>,
               &avx512::depthwise_weight_gradient<scalar_t>, &avx512_bf16::depthwise_weight_gradient<scalar_t>)(
        c, Map<const scalar_t>(dz), dweight.mutable_data_ptr<scalar_t>(), dbias.mutable_data_ptr<scalar_t>());
  });
}

namespace {

struct CpuKernels : CpuConvolution, CpuEpilogue {};

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CPU, m) { mixer_kernels::bind_depthwise_conv2d<mixer_kernels::CpuKernels>(m); }
