// The depthwise half of a ConvMixer layer in training on the CPU, some channels after others: a channel's statistics
// are its own, so that of conv(x) + bias and of its gradient only a part is there at any time. In NCHW that fits into a
// cache. None of it is kept for backward, which convolves anew.
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "depthwise_conv2d/depthwise_conv2d_binding.h"
#include "depthwise_conv2d/depthwise_conv2d_cpu.h"

namespace mixer_kernels {
namespace {

constexpr auto kOp = "depthwise_conv2d_batch_norm";

// The channels [first, first + count) of maps and parameters.
struct Channels {
  int64_t first, count;

  at::Tensor of_map(const at::Tensor& map) const { return map.narrow(1, first, count); }
  at::Tensor of_parameter(const at::Tensor& parameter) const { return parameter.narrow(0, first, count); }
  OptionalTensor of_parameter(const OptionalTensor& parameter) const {
    return parameter ? OptionalTensor(of_parameter(*parameter)) : std::nullopt;
  }
};

// How many channels are taken at a time, whole vectors of them.
int64_t channels_at_a_time(const at::Tensor& x, bool channels_last) {
  constexpr int64_t kVector = 16, kLines = 64;
  // Narrow strips of pixels are slow to walk over: two halves, whose room and what is kept are less than PyTorch keeps.
  if (channels_last) return ((x.size(1) + 1) / 2 + kLines - 1) / kLines * kLines;
  // About half of a second-level cache, and some for every thread if that is possible.
  constexpr int64_t kBytes = int64_t{1} << 20;
  const int64_t fitting = kBytes / (x.numel() / x.size(1) * x.element_size());
  const int64_t even = x.size(1) / (2 * at::get_num_threads());
  return std::max<int64_t>(1, std::min(fitting, even) / kVector) * kVector;
}

// Calls f(channels, room) for all channels, where the room is for one map of them.
template <typename F>
void for_channels(const at::Tensor& x, const F& f) {
  const bool channels_last = x.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
  const int64_t most = std::min(channels_at_a_time(x, channels_last), x.size(1)),
                blocks = (x.size(1) + most - 1) / most;
  // Where there are few, threads share the work on each.
  const int64_t threads = channels_last || blocks < at::get_num_threads() ? 1 : at::get_num_threads();
  // The caller's: other threads return memory as soon as they can, and the system then makes new pages.
  std::vector<at::Tensor> rooms;
  for (int64_t thread = 0; thread < threads; ++thread) {
    rooms.push_back(empty_map(x.narrow(1, 0, most), size_of(x)));
  }
  const auto run = [&](int64_t begin, int64_t end) {
    // Other threads know nothing of the caller's dispatch.
    const at::AutoDispatchBelowADInplaceOrView guard;
    const at::Tensor& room = rooms[threads == 1 ? 0 : at::get_thread_num()];
    for (int64_t block = begin; block < end; ++block) {
      const Channels channels{block * most, std::min(most, x.size(1) - block * most)};
      f(channels, room.narrow(1, 0, channels.count));
    }
  };
  if (threads == 1) return run(0, blocks);
  at::parallel_for(0, blocks, 1, run);
}

// Both directions need that: x is the residual.
Geometry check_half(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, c10::IntArrayRef stride,
                    c10::IntArrayRef padding, c10::IntArrayRef dilation) {
  const Geometry geometry = check_convolution("x", x, weight, bias, stride, padding, dilation);
  const Extent size = convolved_size(size_of(x), geometry, padding);
  TORCH_CHECK_VALUE(size.h == x.size(2) && size.w == x.size(3), kOp, ": padding must keep the size of x, got shape ",
                    x.sizes());
  TORCH_CHECK_VALUE(x.numel() > 0, kOp, ": x must not be empty, got shape ", x.sizes());
  return geometry;
}

at::Tensor reciprocal_deviation(const at::Tensor& var, double eps) { return (var + eps).rsqrt(); }

at::Tensor scaled(const at::Tensor& rstd, const OptionalTensor& norm_weight) {
  return norm_weight ? rstd * *norm_weight : rstd;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& x, const at::Tensor& weight,
                                                       const OptionalTensor& bias, const OptionalTensor& norm_weight,
                                                       const OptionalTensor& norm_bias, double eps,
                                                       c10::IntArrayRef stride, c10::IntArrayRef padding,
                                                       c10::IntArrayRef dilation, int64_t activation) {
  const Geometry geometry = check_half(x, weight, bias, stride, padding, dilation);
  check_channel_parameter(kOp, "norm_weight", norm_weight, x, 1);
  check_channel_parameter(kOp, "norm_bias", norm_bias, x, 1);
  const at::Tensor y = empty_map(x, size_of(x)), mean = empty_sums(x), var = empty_sums(x);
  for_channels(x, [&](const Channels& c, const at::Tensor& z) {
    const at::Tensor inputs = c.of_map(x), center = c.of_parameter(mean), variance = c.of_parameter(var);
    CpuConvolution::statistics(inputs, c.of_parameter(weight), c.of_parameter(bias), geometry, activation, z, center,
                               variance);
    const at::Tensor scale = scaled(reciprocal_deviation(variance, eps), c.of_parameter(norm_weight));
    const at::Tensor shift = -center * scale;
    CpuEpilogue::epilogue_forward(z, scale, norm_bias ? shift + c.of_parameter(*norm_bias) : shift, inputs, activation,
                                  c.of_map(y));
  });
  return {y, mean, var};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& norm_weight, const at::Tensor& mean, const at::Tensor& var, double eps,
    c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation, int64_t activation, bool wants_input,
    bool wants_convolution) {
  const Geometry geometry = check_half(x, weight, bias, stride, padding, dilation);
  check_channel_parameter(kOp, "norm_weight", norm_weight, x, 1);
  check_argument(kOp, "dy", dy, x, x.scalar_type(), x.sizes());
  const at::Tensor dnorm_weight = empty_sums(x), dnorm_bias = empty_sums(x);
  for (const at::Tensor& moment : {mean, var})
    check_argument(kOp, "a moment", moment, x, dnorm_bias.scalar_type(), {x.size(1)});
  const auto absent = [&] { return at::empty({0}, x.options()); };
  const at::Tensor dx = wants_input ? empty_map(x, size_of(x)) : absent();
  const at::Tensor dweight = wants_convolution ? at::empty(weight.sizes(), x.options()) : absent();
  const at::Tensor dbias = wants_convolution ? at::empty({x.size(1)}, x.options()) : absent();
  const double numbers = static_cast<double>(x.numel() / x.size(1));
  for_channels(x, [&](const Channels& c, const at::Tensor& room) {
    const at::Tensor inputs = c.of_map(x), outputs = c.of_map(dy), taps = c.of_parameter(weight);
    const at::Tensor center = c.of_parameter(mean), rstd = reciprocal_deviation(c.of_parameter(var), eps);
    CpuConvolution::forward(inputs, taps, c.of_parameter(bias), {}, {}, {}, geometry, 0, room);
    const at::Tensor sum_dy = c.of_parameter(dnorm_bias), sum_dy_act = c.of_parameter(dnorm_weight);
    CpuEpilogue::epilogue_sums(outputs, room, center, activation, sum_dy, sum_dy_act);
    sum_dy_act.mul_(rstd);
    if (!wants_input && !wants_convolution) return;
    // With a = act(z) and n = (a - mean) * rstd, the gradient of a is linear in dy and a:
    // gamma * rstd * (dy - sum(dy) / N - n * sum(dy * n) / N).
    const at::Tensor c0 = scaled(rstd, c.of_parameter(norm_weight));
    const at::Tensor c1 = c0 * rstd * sum_dy_act / -numbers;
    const at::Tensor c2 = c0 * sum_dy / -numbers - c1 * center;
    CpuEpilogue::epilogue_backward(outputs, room, c0, c1, c2, activation, room);
    if (wants_input) CpuConvolution::backward_input(room, taps, outputs, geometry, c.of_map(dx));
    if (wants_convolution)
      CpuConvolution::backward_weight(room, inputs, geometry, c.of_parameter(dweight), c.of_parameter(dbias));
  });
  return {dx, dweight, dbias, dnorm_weight, dnorm_bias};
}

}  // namespace
}  // namespace mixer_kernels

TORCH_LIBRARY_IMPL(mixer_kernels, CPU, m) {
  m.impl("depthwise_conv2d_batch_norm_fwd", &mixer_kernels::forward);
  m.impl("depthwise_conv2d_batch_norm_bwd", &mixer_kernels::backward);
}
